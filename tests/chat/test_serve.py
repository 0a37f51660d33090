"""serve.py: any OpenAI client gets a steered model, requests run together, and who goes away makes room."""

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
import uvicorn

import serve
from llama_wrapper import LlamaWrapper
from tests.browser import until
from tests.models import ARCHITECTURES, WINDOWED, build_wrapper, random_vector
from tests.roots import error_lines
from utils.chat.engine import Engine, Finished, Piece
from utils.chat.replies import seed_of
from utils.chat.server import build_server
from utils.chat.shelf import Shelf
from utils.chat.web import listen
from utils.model.ablation import ablate
from utils.model.checkpoints import choose_model
from utils.model.generation import GenerationRow
from utils.model.operators import Rotate, clamp, second_axis
from utils.model.steering import Steering
from utils.paths import DataPaths

QUESTION = [{"role": "user", "content": "What is the sea?"}]
N_NEW = 8


@pytest.fixture(scope="module")
def engine(chat_model: LlamaWrapper) -> Iterator[Engine]:
    engine = Engine(chat_model, 8)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def address(chat_root: Path, chat_model: LlamaWrapper, tiny_checkpoint: Path, engine: Engine) -> Iterator[str]:
    shelf = Shelf(DataPaths(chat_root), choose_model("", str(tiny_checkpoint), False), 4, 32)
    shelf.model = chat_model
    app = build_server(chat_model, shelf, engine, "127.0.0.1", "secret-key")
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    until(lambda: server.started, "the server starts", 10)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=address, api_key="secret-key", max_retries=0)


def say(client: openai.OpenAI, model: str = "tiny-chat", **options: Any) -> str:
    given = {"messages": QUESTION, "max_tokens": N_NEW, **options}
    return client.chat.completions.create(model=model, **given).choices[0].message.content or ""


def expected(model: LlamaWrapper, *steerings: Steering, **options: Any) -> str:
    return model.ask(QUESTION[0]["content"], steerings, max_new_tokens=N_NEW, **options)


def test_the_name_of_the_model_carries_the_steering(client: openai.OpenAI, chat_model: LlamaWrapper) -> None:
    listed = [model.id for model in client.models.list()]
    assert listed == ["tiny-chat", "tiny-chat+sycophancy@2x1", "tiny-chat+refusal@2x1"]
    assert say(client) == expected(chat_model)
    sycophancy, refusal = Steering(2, 1.5, random_vector(2)), Steering(1, -2.0, random_vector(11))
    assert say(client, "tiny-chat+sycophancy@2x1.5") == expected(chat_model, sycophancy) != expected(chat_model)
    assert say(client, "tiny-chat+sycophancy@2x1.5+refusal@1x-2") == expected(chat_model, sycophancy, refusal)
    assert say(client, "tiny-chat+sycophancy@2x0") == expected(chat_model)
    assert say(client, "tiny-chat+sycophancy") == say(client, listed[1])


def test_the_field_steering_says_it_in_full(client: openai.OpenAI, chat_model: LlamaWrapper) -> None:
    vector = random_vector(77)
    for entry, steering in (
        ({"behavior": "refusal", "layer": 3, "multiplier": 2}, Steering(3, 2.0, random_vector(13))),
        ({"vector": vector.tolist(), "layer": 0, "multiplier": -1.5, "operator": "add"}, Steering(0, -1.5, vector)),
        (
            {"vector": "normalized_vectors/refusal/vec_layer_1_tiny-chat.pt", "layer": 2},
            Steering(2, 1.0, random_vector(11)),
        ),
    ):
        assert say(client, extra_body={"steering": [entry]}) == expected(chat_model, steering)


def test_a_request_may_name_any_operator(client: openai.OpenAI, chat_model: LlamaWrapper) -> None:
    of_layers = [random_vector(10 + layer) for layer in range(4)]
    for name, operator in (("clamp", clamp), ("ablate", ablate), ("rotate", Rotate(second_axis(of_layers)))):
        entry = {"behavior": "refusal", "layer": 1, "multiplier": 0.9, "operator": name}
        steering = Steering(1, 0.9, of_layers[1], operator)
        assert say(client, extra_body={"steering": [entry]}) == expected(chat_model, steering)


def test_sampling_is_that_of_the_other_scripts_at_the_same_seed(
    client: openai.OpenAI, chat_model: LlamaWrapper
) -> None:
    steering = Steering(2, 1.5, random_vector(2))
    seed = seed_of([steering], 5)
    said = say(client, "tiny-chat+sycophancy@2x1.5", temperature=0.9, seed=5)
    assert said == expected(chat_model, steering, temperature=0.9, seed=seed)
    assert said != say(client, "tiny-chat+sycophancy@2x1.5", temperature=0.9, seed=6)


def test_streaming_gives_the_same_text_and_the_usage(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="tiny-chat", messages=QUESTION, max_tokens=N_NEW)
    stream = client.chat.completions.create(
        model="tiny-chat", messages=QUESTION, max_tokens=N_NEW, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts).strip() == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason == "length"
    assert chunks[-1].usage == whole.usage
    assert whole.usage is not None
    assert whole.usage.completion_tokens == N_NEW


def test_a_stop_text_ends_an_answer_before_itself(client: openai.OpenAI) -> None:
    whole = say(client, max_tokens=20)
    stop = whole[4:7]
    assert say(client, max_tokens=20, stop=[stop]) == whole[: whole.index(stop)].strip()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"model": "gpt-4"}, "/v1/models lists"),
        ({"model": "tiny-chat+sycophancy@99x1"}, "layer 99: tiny-chat has layers 0 to 3"),
        ({"model": "tiny-chat+sycophancy@2xmuch"}, "BEHAVIOR@LAYERxMULTIPLIER"),
        ({"model": "tiny-chat+nonsense@2x1"}, "unknown behavior"),
        ({"model": "tiny-chat+hallucination@2x1"}, "no vectors of tiny-chat"),
        ({"extra_body": {"steering": "much"}}, "expected a list"),
        ({"extra_body": {"steering": [{"layer": 2}]}}, "either 'behavior' or 'vector'"),
        ({"extra_body": {"steering": [{"behavior": "refusal", "layer": "2"}]}}, "not a whole number"),
        ({"extra_body": {"steering": [{"behavior": "refusal", "layer": 2, "multiplier": "x"}]}}, "not a finite number"),
        ({"extra_body": {"steering": [{"behavior": "refusal", "strength": 2}]}}, "unknown key 'strength'"),
        ({"extra_body": {"steering": [{"behavior": "refusal", "operator": "rotat"}]}}, "did you mean rotate?"),
        (
            {"extra_body": {"steering": [{"vector": [1.0] * 32, "layer": 1, "operator": "rotate"}]}},
            "at least two layers",
        ),
        ({"extra_body": {"steering": [{"vector": [1.0, 2.0], "layer": 1}]}}, "expected 32 numbers, found 2"),
        ({"extra_body": {"steering": [{"vector": [1e300] * 32, "layer": 1}]}}, "beyond the range"),
        ({"extra_body": {"steering": [{"vector": "../secret.pt", "layer": 1}]}}, "is not a .pt file under"),
        ({"extra_body": {"steering": [{"vector": "/etc/passwd", "layer": 1}]}}, "is not a .pt file under"),
        (
            {"model": "tiny-chat+refusal@1x1", "extra_body": {"steering": [{"behavior": "refusal"}]}},
            "said twice",
        ),
        ({"extra_body": {"steering": [{"behavior": "refusal", "layer": 2, "multiplier": 1e30}]}}, "arithmetic"),
        ({"n": 2}, "n: 2 is not supported"),
        ({"top_p": 0.5}, "top_p: 0.5 is not supported"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"messages": [*QUESTION, *QUESTION]}, "takes turns"),
        ({"messages": [{"role": "user", "content": "owl " * 200}]}, "no room for an answer"),
    ],
)
def test_a_bad_request_is_400_with_one_line(client: openai.OpenAI, options: dict[str, Any], error: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        say(client, **{"model": "tiny-chat", **options})
    message = caught.value.body["message"]  # type: ignore[index,call-overload]
    assert error in message
    assert "\n" not in message


def test_the_key_is_asked_for(address: str) -> None:
    with pytest.raises(openai.AuthenticationError):
        say(openai.OpenAI(base_url=address, api_key="another", max_retries=0))
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=address, api_key="another", max_retries=0).models.list()


def test_requests_that_come_together_run_together_each_with_its_own_steering(
    client: openai.OpenAI, chat_model: LlamaWrapper, engine: Engine
) -> None:
    names = [f"tiny-chat+{b}@{layer}x{m}" for b in ("sycophancy", "refusal") for layer in (1, 3) for m in (-2, 1)]
    alone = {name: say(client, name, max_tokens=60) for name in names}
    most = 0
    with ThreadPoolExecutor(len(names)) as pool:
        futures = {name: pool.submit(say, client, name, max_tokens=60) for name in names}
        while not all(future.done() for future in futures.values()):
            most = max(most, engine.n_running)
            time.sleep(0.002)
    assert {name: future.result() for name, future in futures.items()} == alone
    assert len(set(alone.values())) > 4
    assert most > 2, "they never ran together"


def test_a_client_that_goes_away_frees_its_row(client: openai.OpenAI, engine: Engine) -> None:
    stream = client.chat.completions.create(model="tiny-chat", messages=QUESTION, max_tokens=450, stream=True)
    next(iter(stream))
    until(lambda: engine.n_running == 1, "the row runs", 5)
    started = time.monotonic()
    stream.close()
    until(lambda: engine.n_running == 0, "the row is free", 5)
    assert time.monotonic() - started < 1
    with pytest.raises(openai.APITimeoutError):
        say(client.with_options(timeout=0.15), max_tokens=450)
    until(lambda: engine.n_running == 0, "the row is free, streaming or not", 5)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, WINDOWED])
def test_rows_that_join_a_running_batch_say_what_they_say_alone(architecture: str) -> None:
    model = build_wrapper(architecture)
    questions = ["What is the sea?", "Do you think that cats are wiser than owls?", "Why?"]
    rows = [
        GenerationRow(model.chat_format.encode(question), Steering(place, 2.0, random_vector(place)))
        for place, question in enumerate(questions)
    ]
    lengths = (14, 9, 11)
    alone = [dict(model.generate([row], n))[0].text for row, n in zip(rows, lengths, strict=True)]

    async def main() -> list[str]:
        engine = Engine(model, 8)

        async def ask(place: int) -> str:
            request = engine.submit(rows[place], lengths[place], "length")
            said = ""
            while isinstance(event := await request.events.get(), Piece):
                said += event.text
            assert isinstance(event, Finished)
            return said.strip()

        first = asyncio.create_task(ask(0))
        await asyncio.sleep(0.01)
        others = [asyncio.create_task(ask(place)) for place in (1, 2)]
        texts = [await task for task in (first, *others)]
        engine.close()
        return texts

    assert asyncio.run(main()) == alone


def test_a_row_whose_scores_are_infinite_ends_alone(chat_model: LlamaWrapper) -> None:
    prompt = chat_model.chat_format.encode("What is the sea?")
    broken = Steering(3, 1.0, torch.full((32,), float("nan")))

    async def main() -> list[Any]:
        engine = Engine(chat_model, 8)
        requests = [engine.submit(GenerationRow(prompt, one), 5, "length") for one in (broken, None)]
        ends = []
        for request in requests:
            while isinstance(event := await request.events.get(), Piece):
                pass
            ends.append(event)
        engine.close()
        return ends

    bad, good = asyncio.run(main())
    assert (bad.reason, good.reason) == ("error", "length")
    assert "not finite" in bad.error


def test_others_are_let_in_with_a_key_only(
    chat_root: Path, tiny_checkpoint: Path, loading_is_forbidden: None, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--root", str(chat_root), "--model", str(tiny_checkpoint), "--host", "0.0.0.0"]
    assert serve.main(argv) == 2
    (line,) = error_lines(capsys.readouterr().err)
    assert "--api_key" in line
