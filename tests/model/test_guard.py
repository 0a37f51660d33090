"""The guard: what it takes for rounding, what for a fault, and what says nothing either way."""

import logging
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model.test_fast_paths import PAIRS, STEERINGS, Asked
from tests.models import random_vector
from utils.errors import UserError
from utils.model import guard as guard_module
from utils.model import reading, scoring
from utils.model.guard import Guard, relative_difference
from utils.model.runtime import Runtime
from utils.model.steering import Steering

ONE = torch.tensor([[1.0, 2.0]])


@pytest.fixture
def guard() -> Guard:
    return Guard("tiny-chat", torch.float32)


def test_a_difference_of_1e_4_is_the_most_that_float32_rounding_explains(guard: Guard) -> None:
    assert guard.allows("a", lambda: ONE * (1 + 9e-5), lambda: ONE)
    assert not guard.allows("b", lambda: ONE * (1 + 1.2e-4), lambda: ONE)


def test_a_path_is_settled_once(guard: Guard) -> None:
    def fail() -> Tensor:
        pytest.fail("compared again")

    assert guard.allows("a", lambda: ONE, lambda: ONE)
    assert guard.allows("a", fail, fail)


def test_what_overflows_on_both_paths_is_no_difference() -> None:
    overflow = torch.tensor([[torch.nan, 1.0], [1.0, 2.0]])
    assert relative_difference(overflow, overflow) == 0.0
    assert relative_difference(torch.full((2, 2), torch.nan), overflow) == torch.inf


def test_activations_are_compared_with_the_largest_of_their_row() -> None:
    expected = torch.tensor([[100.0, 0.001]])
    assert relative_difference(expected + 0.001, expected, by_row=True) == pytest.approx(1e-5, rel=1e-2)
    assert relative_difference(expected + 0.001, expected) == pytest.approx(1.0, rel=1e-2)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("out of memory"), MemoryError()])
@pytest.mark.parametrize("path", ["scoring", "reading"])
def test_running_out_of_memory_in_the_comparison_says_nothing_about_exactness(
    error: BaseException, path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = Asked()
    module, name = (scoring, "score_packed") if path == "scoring" else (reading, "read_packed")
    real, sizes = getattr(module, name), []

    def limited(runtime: Runtime, items: Sequence[Any], *args: Any) -> Any:
        if len(items) > 1:
            raise error
        sizes.append(len(items))
        return real(runtime, items, *args)

    monkeypatch.setattr(module, name, limited)
    with caplog.at_level(logging.WARNING):
        if path == "scoring":
            asked.assert_right(asked.scores(batch_size=1))
        else:
            asked.assert_activations_right()
    assert len(sizes) == 1 + 6  # the guard's, then every item on the fast path
    assert not any("packed passes" in message for message in caplog.messages)


def always_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_module, "SHARE_OF_TIME", torch.inf)


def test_items_are_compared_during_a_run_and_a_fault_in_one_stops_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = Asked()
    asked.scores(batch_size=1)
    real = scoring.score_packed
    always_due(monkeypatch)

    def wrong_for_long_prompts(runtime: Runtime, prompts: Sequence[Any], *args: Any) -> list[Tensor]:
        return [s * (1.01 if len(p) > 70 else 1) for p, s in zip(prompts, real(runtime, prompts, *args), strict=True)]

    monkeypatch.setattr(scoring, "score_packed", wrong_for_long_prompts)
    with pytest.raises(
        UserError, match=r"item \d: the packed pass differs from the plain one by 1.0e-02 .*--no_packing"
    ):
        asked.scores(batch_size=1)
    assert "trying again" in caplog.text


def test_a_difference_that_does_not_come_again_is_named_and_the_run_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = Asked()
    asked.scores(batch_size=1)
    always_due(monkeypatch)
    real, calls = scoring.score_rows, []

    def off_once(*args: Any) -> list[Tensor]:
        calls.append(1)
        return [row * (1.001 if len(calls) == 1 else 1) for row in real(*args)]

    monkeypatch.setattr(scoring, "score_rows", off_once)
    with caplog.at_level(logging.WARNING):
        asked.assert_right(asked.scores(batch_size=1))
    assert len(calls) == 1 + 1 + 5
    assert [message for message in caplog.messages if "trying again" in message] == caplog.messages != []


def test_comparisons_take_no_more_than_their_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(guard_module.time, "monotonic", lambda: clock[0])
    watch = Guard("tiny-chat", torch.float32).watch("scoring")
    watch._longest = 1.0

    def plain() -> Tensor:
        clock[0] += 1.0
        return ONE

    spent = 0
    while clock[0] < 1000:
        clock[0] += 0.5
        if watch.is_due:
            watch.compare(ONE, lambda: ONE, plain, "item")
            spent += 1
    assert spent == watch.n_compared
    assert 15 <= spent <= 20


def test_an_overflow_in_one_packed_tail_leaves_the_other_steerings_as_they_are() -> None:
    """In float16: the overflowing tail's values are infinite, and 0 x infinity is not a number."""
    asked = Asked()
    asked.wrapper.model.half()
    asked.wrapper = type(asked.wrapper)(asked.wrapper.model, asked.wrapper.tokenizer, "tiny-chat")
    half_of_it = Steering(0, 60_000.0, torch.ones(len(random_vector(0))))
    extreme = [half_of_it, half_of_it]
    prompt, letters = asked.prompts[:1], asked.letters[:1]
    [(_, alone)] = asked.wrapper.score_plainly(prompt, STEERINGS, letters)
    [(_, beside)] = asked.wrapper.score(prompt, [*STEERINGS, extreme], letters)
    assert bool(alone.isfinite().all()) and bool(beside[-1].isnan().all())
    torch.testing.assert_close(beside[: len(STEERINGS)], alone, rtol=0.1, atol=1e-4)


def test_pairs_are_compared_during_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked()
    asked.assert_activations_right()
    always_due(monkeypatch)
    real = reading.read_packed

    def wrong(runtime: Runtime, pairs: Sequence[Any], *args: Any) -> Tensor:
        return real(runtime, pairs, *args) * 1.01

    monkeypatch.setattr(reading, "read_packed", wrong)
    with pytest.raises(UserError, match=r"pair \d: the packed pass differs from the plain one"):
        list(asked.wrapper.answer_activations(PAIRS, [1, 3]))
