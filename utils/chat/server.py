"""An OpenAI-compatible server whose requests carry their steering.

Why not `transformers serve` (read at 5.23.0)? It answers 422 to a field that it does not know, so that a request
cannot say its steering, and takes the part of a model's name behind `@` for a revision. Its continuous batching packs
the tokens of all requests into one row for paged attention: a hook on a decoder block does not learn whose token is
whose, and one generation configuration serves all. All of that would have to be written anew inside it. Written here
are the HTTP part and the running batch (`utils.chat.engine`); loading, prompts, decoding and steering are the suite's
own, so that an answer is that of every other script.
"""

import json
import secrets
import time
from asyncio import wait_for
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse

from utils.chat.asked import model_names
from utils.chat.completions import Completion, parse_completion
from utils.chat.engine import Engine, Finished, Piece, Request
from utils.chat.guarding import Guard, is_loopback
from utils.chat.shelf import Shelf
from utils.errors import UserError

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

MAX_BODY = 4_000_000
SECONDS_BETWEEN_LOOKS = 0.25
"""After which it is looked whether the client is still there."""
_REASONS = {"stop": "stop", "length": "length", "context": "length"}


def build_server(model: "LlamaWrapper", shelf: Shelf, engine: Engine, host: str, api_key: str | None) -> FastAPI:
    """The server's app."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    if is_loopback(host):
        app.add_middleware(Guard, token=None)

    def refusal(request: HttpRequest) -> Response | None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if api_key is None or secrets.compare_digest(given.encode(), api_key.encode()):
            return None
        return _error("the API key is missing or wrong", 401, "invalid_api_key")

    @app.get("/v1/models")
    def models(request: HttpRequest) -> Response:
        listed = [{"id": name, "object": "model", "created": 0, "owned_by": "caa"} for name in model_names(shelf)]
        return refusal(request) or JSONResponse({"object": "list", "data": listed})

    @app.post("/v1/chat/completions")
    async def complete(request: HttpRequest) -> Response:
        if refused := refusal(request):
            return refused
        try:
            asked = parse_completion(model, shelf, await _body_of(request))
        except UserError as err:
            return _error(str(err), 400)
        answer = _Answering(engine.submit(asked.row, asked.n_new, asked.at_limit), asked, request)
        if asked.stream:
            return StreamingResponse(_sse(answer), media_type="text/event-stream")
        return await _whole_answer(answer)

    return app


async def _body_of(request: HttpRequest) -> Any:
    content = b""
    async for part in request.stream():
        content += part
        if len(content) > MAX_BODY:
            raise UserError(f"the request is larger than {MAX_BODY} bytes")

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is not a JSON number")

    try:
        return json.loads(content, parse_constant=refuse)
    except (ValueError, RecursionError) as err:
        raise UserError(f"the request is not valid JSON: {str(err)[:80]}") from err


class _Answering:
    """An answer on its way to a client."""

    def __init__(self, request: Request, asked: Completion, http: HttpRequest) -> None:
        self.request, self.asked, self.http = request, asked, http
        self.head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": asked.model}
        self.n_tokens = 0
        self._held = ""  # may be the beginning of a stop text
        self._is_first = True
        self._looked_at = time.monotonic()

    async def texts(self) -> AsyncIterator[str | Finished]:
        """What the answer grows by, and its end. A client that goes away takes its row with it."""
        try:
            while True:
                event = await self._next()
                if event is None:
                    return
                if isinstance(event, Finished):
                    if self._held:
                        yield self._held
                    yield event
                    return
                self.n_tokens = event.n_tokens
                text, is_cut = self._until_stop(event.text)
                if text:
                    yield text
                if is_cut:
                    yield Finished("stop")
                    return
        finally:
            self.request.is_left = True

    async def _next(self) -> Piece | Finished | None:
        """What comes next; None where the client has gone."""
        while True:
            if time.monotonic() - self._looked_at > SECONDS_BETWEEN_LOOKS:
                self._looked_at = time.monotonic()
                if await self.http.is_disconnected():
                    return None
            with suppress(TimeoutError):
                return await wait_for(self.request.events.get(), SECONDS_BETWEEN_LOOKS)

    def _until_stop(self, text: str) -> tuple[str, bool]:
        """What can be said of the text so far, and whether a stop text has come."""
        if self._is_first:
            text = text.lstrip()
            self._is_first = not text
        said = self._held + text
        found = [place for stop in self.asked.stop if (place := said.find(stop)) >= 0]
        if found:
            self._held = ""
            return said[: min(found)], True
        n_held = max((n for stop in self.asked.stop for n in range(1, len(stop)) if said.endswith(stop[:n])), default=0)
        self._held = said[len(said) - n_held :]
        return said[: len(said) - n_held], False

    @property
    def usage(self) -> dict[str, int]:
        n_prompt = len(self.asked.prompt)
        return {
            "prompt_tokens": n_prompt,
            "completion_tokens": self.n_tokens,
            "total_tokens": n_prompt + self.n_tokens,
        }


async def _whole_answer(answer: _Answering) -> Response:
    said = ""
    async for event in answer.texts():
        if isinstance(event, str):
            said += event
        elif event.reason == "error":
            return _error(event.error, 500 if event.is_ours else 400)
        else:
            message = {"role": "assistant", "content": said.strip()}
            choice = {"index": 0, "finish_reason": _REASONS[event.reason], "message": message, "logprobs": None}
            return JSONResponse(
                {**answer.head, "object": "chat.completion", "choices": [choice], "usage": answer.usage}
            )
    return Response(status_code=499)  # nobody reads it


async def _sse(answer: _Answering) -> AsyncIterator[str]:
    def chunk(delta: dict[str, str], reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return _line({**answer.head, "object": "chat.completion.chunk", "choices": [choice]})

    yield chunk({"role": "assistant", "content": ""})
    async for event in answer.texts():
        if isinstance(event, str):
            yield chunk({"content": event})
        elif event.reason == "error":
            yield _line({"error": {"message": event.error, "type": "invalid_request_error"}})
            return
        else:
            yield chunk({}, _REASONS[event.reason])
    if answer.asked.with_usage:
        yield _line({**answer.head, "object": "chat.completion.chunk", "choices": [], "usage": answer.usage})
    yield "data: [DONE]\n\n"


def _line(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


def _error(message: str, status: int, code: str | None = None) -> Response:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return JSONResponse({"error": error}, status_code=status)
