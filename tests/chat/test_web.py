"""The page's server: who is let in, what it answers, and that its answers are those of `reply`."""

import asyncio
import io
import json
import threading
import time
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from llama_wrapper import LlamaWrapper
from tests.models import random_vector
from utils.chat.commands import Knobs
from utils.chat.guarding import new_token
from utils.chat.replies import End, ReplySettings, reply
from utils.chat.shelf import Ask, Shelf
from utils.chat.web import build_app, listen
from utils.chat.worker import Worker
from utils.errors import UserError
from utils.model.ablation import ablate
from utils.model.chat_format import Message
from utils.model.steering import Steering
from utils.settings import OPERATORS

HISTORY = [{"role": "user", "content": "What is the sea?"}]
ASK = {"source": "sycophancy", "layer": 2, "multiplier": 1.5}
KNOBS = Knobs((Ask("sycophancy", 2, 1.5),), max_new_tokens=6)


@pytest.fixture
def client(chat_model: LlamaWrapper, shelf: Shelf) -> TestClient:
    return TestClient(build_app(chat_model, shelf, KNOBS), base_url="http://127.0.0.1:8340")


def body(**changes: Any) -> dict[str, Any]:
    return {"history": HISTORY, "asks": [ASK], "max_new_tokens": 6, **changes}


def events(client: TestClient, **changes: Any) -> list[dict[str, Any]]:
    answered = client.post("/api/reply", json=body(**changes))
    assert answered.status_code == 200
    return [json.loads(line) for line in answered.text.splitlines()]


def test_columns_stream_and_end_as_reply_does(client: TestClient, chat_model: LlamaWrapper, shelf: Shelf) -> None:
    found = events(client)
    assert found[0] == {"columns": ["unsteered", "steered"]}
    tokens = [event["token"] for event in found if "token" in event]
    assert tokens[:4] == [0, 1, 0, 1], "both columns grow together"
    columns = ((), (shelf.steering(KNOBS.asks[0]),))
    settings = ReplySettings(columns, max_new_tokens=6)
    expected = [e for e in reply(chat_model, [Message("user", "What is the sea?")], settings) if isinstance(e, End)]
    ends = {event["end"]: event["text"] for event in found if "end" in event}
    assert ends == {end.column: end.text for end in expected}
    assert [event["measured"] for event in found if "measured" in event] == [0, 1]
    assert events(client, asks=[])[0] == {"columns": ["unsteered"]}
    strip = events(client, strip=True)
    assert strip[0]["columns"] == ["-2", "-1", "unsteered", "+1", "+2"]
    assert {e["end"]: e["text"] for e in strip if "end" in e}[2] == ends[0]


def test_the_page_offers_every_operator_and_answers_under_it(client: TestClient, chat_model: LlamaWrapper) -> None:
    assert tuple(client.get("/api/setup").json()["operators"]) == OPERATORS
    ablated = Steering(ASK["layer"], ASK["multiplier"], random_vector(ASK["layer"]), ablate)
    wanted = chat_model.ask("What is the sea?", ablated, max_new_tokens=6)
    found = events(client, asks=[{**ASK, "operator": "ablate"}])
    assert {event["end"]: event["text"] for event in found if "end" in event}[1] == wanted
    refused = client.post("/api/vector", json={"history": [], "asks": [{**ASK, "operator": "ablate"}]})
    assert "the operator ablate does something else" in refused.json()["error"]


def test_two_vectors_at_once_are_both_added(client: TestClient, chat_model: LlamaWrapper, shelf: Shelf) -> None:
    two = [ASK, {"source": "refusal", "layer": 1, "multiplier": -2.0}]
    steerings = tuple(shelf.steering(Ask(**ask)) for ask in two)
    settings = ReplySettings((steerings,), max_new_tokens=6)
    (end,) = (e for e in reply(chat_model, [Message("user", "What is the sea?")], settings) if isinstance(e, End))
    assert {e["end"]: e["text"] for e in events(client, asks=two) if "end" in e}[1] == end.text


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"asks": [{**ASK, "layer": 99}]}, "layer 99"),
        ({"asks": [{**ASK, "source": "hallucination"}]}, "no vectors of tiny-chat"),
        ({"history": [*HISTORY, *HISTORY]}, "takes turns"),
        ({"history": [{"role": "user", "content": "owl " * 200}]}, "no room for an answer"),
        ({"asks": [{**ASK, "multiplier": 1e30}]}, "arithmetic"),
    ],
)
def test_what_cannot_be_answered_is_one_line_in_the_stream(
    client: TestClient, changes: dict[str, Any], error: str
) -> None:
    (line,) = [event["error"] for event in events(client, **changes) if "error" in event]
    assert error in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"asks": [{**ASK, "source": "../../etc/passwd.pt"}]}, "asks.0.source"),
        ({"seed": -1}, "seed"),
        ({"nonsense": 1}, "nonsense"),
        ({"history": "x"}, "history"),
        ({"temperature": "warm"}, "temperature"),
        ({"asks": [{**ASK, "operator": "ad"}]}, "asks.0.operator"),
    ],
)
def test_broken_requests_are_refused_in_one_line(client: TestClient, changes: dict[str, Any], error: str) -> None:
    answered = client.post("/api/reply", json=body(**changes))
    assert answered.status_code == 400
    assert answered.json()["error"].startswith(error)
    assert "\n" not in answered.json()["error"]


def test_the_vector_that_is_exported_is_what_is_added(client: TestClient) -> None:
    two = [ASK, {"source": "refusal", "layer": 2, "multiplier": -1.0}]
    answered = client.post("/api/vector", json={"history": [], "asks": two})
    assert 'filename="vec_layer_2_tiny-chat.pt"' in answered.headers["content-disposition"]
    vector = torch.load(io.BytesIO(answered.content), weights_only=True)
    assert torch.allclose(vector, 1.5 * random_vector(2) - random_vector(12))
    elsewhere = client.post("/api/vector", json={"history": [], "asks": [ASK, {**ASK, "layer": 1}]})
    assert (elsewhere.status_code, "one layer" in elsewhere.json()["error"]) == (400, True)


def test_the_command_and_the_setup(client: TestClient) -> None:
    command = client.post("/api/command", json=body()).json()["command"]
    assert "./prompting_with_steering.py --behaviors sycophancy" in command
    setup = client.get("/api/setup").json()
    assert (setup["model"], setup["n_layers"]) == ("tiny-chat", 4)
    assert [one["id"] for one in setup["behaviors"]] == ["sycophancy", "refusal"]
    assert setup["behaviors"][0]["ranges"] == {}


def test_strangers_are_kept_out_at_loopback(client: TestClient) -> None:
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 403
    assert client.post("/api/reply", json=body(), headers={"Origin": "http://evil.example"}).status_code == 403
    assert client.get("/", headers={"Host": "localhost:8340"}).status_code == 200
    page = client.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "http" not in page.text.replace("http-equiv", "")


def test_elsewhere_nobody_is_answered_without_the_token(chat_model: LlamaWrapper, shelf: Shelf) -> None:
    assert new_token("127.0.0.1") is None
    token = new_token("0.0.0.0")
    assert token is not None
    assert len(token) > 20
    client = TestClient(build_app(chat_model, shelf, KNOBS, token), base_url="http://192.0.2.1:8340")
    for path in ("/", "/api/setup", "/?token=x"):
        assert client.get(path).status_code == 403
    assert client.post("/api/reply", json=body()).status_code == 403
    assert client.get(f"/?token={token}").status_code == 200
    assert client.get("/api/setup", headers={"X-Token": token}).status_code == 200


def test_a_port_that_is_taken_is_one_line() -> None:
    taken = listen("127.0.0.1", 0)
    taken.listen()
    with pytest.raises(UserError, match="choose another --port"):
        listen("127.0.0.1", taken.getsockname()[1])
    taken.close()


def test_streams_take_turns_and_one_that_is_left_is_closed() -> None:
    closed = threading.Event()
    order: list[str] = []

    def items(name: str) -> Any:
        try:
            for _ in range(50):
                time.sleep(0.002)
                order.append(name)
                yield name
        finally:
            if name == "left":
                closed.set()

    async def main() -> None:
        worker = Worker()

        async def listen_to(name: str, leave_after: int) -> None:
            stream = worker.stream(items(name))
            n = 0
            async for _ in stream:
                n += 1
                if n == leave_after:
                    break
            await stream.aclose()  # type: ignore[attr-defined]

        await asyncio.gather(listen_to("left", 3), listen_to("other", 1000))

    asyncio.run(main())
    assert closed.wait(5)
    assert order.count("left") <= 4
    assert order.count("other") == 50
    assert set(order[:4]) == {"left", "other"}
