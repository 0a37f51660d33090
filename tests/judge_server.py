"""A judge on loopback for tests: a real HTTP server in a thread, with faults to order."""

import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Pair = tuple[str, str]  # question, answer


@dataclass(frozen=True)
class Request:
    """What the server was asked."""

    question: str
    answer: str
    nth: int
    """Of the requests for this question and answer, from 0."""
    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def pair(self) -> Pair:
        return self.question, self.answer

    @property
    def is_second(self) -> bool:
        """It reminds the judge of the format, after a reply that was no score."""
        return "digits only" in self.body["messages"][-1]["content"]


@dataclass(frozen=True)
class Response:
    """What it does about it."""

    content: str | None = "7"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    """For a status other than success."""
    raw: str | None = None
    """Body to send as it is."""
    stall: float = 0.0
    """Seconds before the response."""
    cut: bool = False
    """Close the connection in the middle of the body."""
    drip: float = 0.0
    """Seconds between two bytes of the body."""
    finish_reason: str = "stop"
    usage: tuple[int, int] | None = (100, 2)
    logprobs: dict[str, Any] | None = None

    def body(self) -> bytes:
        if self.raw is not None:
            return self.raw.encode()
        if self.status != 200:
            return json.dumps({"error": self.error or {"message": f"fault {self.status}"}}).encode()
        completion: dict[str, Any] = {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "served-model-1",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": self.finish_reason,
                    "message": {"role": "assistant", "content": self.content},
                }
            ],
        }
        if self.logprobs:
            completion["choices"][0]["logprobs"] = self.logprobs
        if self.usage:
            completion["usage"] = {
                "prompt_tokens": self.usage[0],
                "completion_tokens": self.usage[1],
                "total_tokens": sum(self.usage),
            }
        return json.dumps(completion).encode()


@dataclass(frozen=True)
class Event:
    """One request and what became of it."""

    request: Request
    response: Response
    delivered: bool
    """The whole body of a 200 went out without a planned stall or cut."""


class JudgeServer:
    """Use as a context manager; `respond` is what each request gets, or decides it."""

    def __init__(self, respond: Callable[[Request], Response] | Response = Response()) -> None:
        self.respond = respond
        self.events: list[Event] = []
        self.arrived: list[Request] = []
        self.most_in_flight = 0
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self._in_flight = 0
        self._server = _QuietServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> "JudgeServer":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def n_requests(self) -> int:
        return len(self.arrived)

    def n_delivered(self, pair: Pair) -> int:
        """How often this question and answer got a reply that arrived whole."""
        with self.lock:
            return sum(event.delivered and event.request.pair == pair for event in self.events)

    def wait_until_idle(self) -> None:
        """Until no request is in work, nor on its way."""
        quiet = 0
        while quiet < 4:
            time.sleep(0.02)
            quiet = quiet + 1 if self._in_flight == 0 else 0

    def enter(self, body: dict[str, Any], headers: dict[str, str]) -> Request:
        question, answer = said(body)
        with self.lock:
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
            nth = sum(earlier.pair == (question, answer) for earlier in self.arrived)
            self.arrived.append(Request(question, answer, nth, body, headers))
            return self.arrived[-1]

    def leave(self, event: Event) -> None:
        with self.lock:
            self._in_flight -= 1
            self.events.append(event)


class _QuietServer(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave in the middle are part of the tests."""


def said(body: dict[str, Any]) -> Pair:
    """Question and answer of a request; of one without them, all that it says."""
    message = body["messages"][-1]["content"]
    parts = re.findall(r"^<((?:question|answer)(?:-\d+)?)>\n(.*?)\n</\1>$", message, re.DOTALL | re.MULTILINE)
    if len(parts) != 2:
        return message, ""
    (_, question), (_, answer) = parts
    return question, answer


def _handler(server: JudgeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = server.enter(json.loads(raw), headers)
            response = server.respond(request) if callable(server.respond) else server.respond
            delivered = False
            try:
                if response.stall:
                    server.stopping.wait(response.stall)
                self._send(response)
                delivered = response.status == 200 and not response.stall and not response.cut and not response.drip
            except OSError:
                self.close_connection = True
            finally:
                server.leave(Event(request, response, delivered))

        def _send(self, response: Response) -> None:
            body = response.body()
            self.send_response(response.status)
            for name, value in {"Content-Type": "application/json", **response.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if response.cut:
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(2)
            elif response.drip:
                for place in range(len(body)):
                    self.wfile.write(body[place : place + 1])
                    self.wfile.flush()
                    if server.stopping.wait(response.drip):
                        return
            else:
                self.wfile.write(body)
                self.wfile.flush()

    return Handler
