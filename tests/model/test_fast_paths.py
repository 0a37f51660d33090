"""What keeps the fast paths honest: the guard, resuming, and going on with less memory."""

import logging
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from llama_wrapper import LlamaWrapper
from tests.models import (
    ARCHITECTURES,
    LONGROPE,
    WINDOWED,
    build_wrapper,
    count_hooks,
    random_steerings,
    steered_logits,
)
from utils.data.records import ContrastPair
from utils.errors import UserError
from utils.model import reading, scoring
from utils.model.batching import CPU_TOKENS_PER_PASS
from utils.model.chat_format import PromptTokens
from utils.model.generation import GenerationRow
from utils.model.packing import PackedBatch
from utils.model.pairs import PairTokens
from utils.model.prefixes import FEWEST_COMMON
from utils.model.runtime import Runtime
from utils.model.steering import Steering

QUESTIONS = [f"Is {'very ' * n}long text the answer?\n\nChoices:\n (A) Yes\n (B) No" for n in (4, 1, 9, 0, 6, 3)]
PAIRS = [ContrastPair(question, "A", "B") for question in QUESTIONS]
STEERINGS: list[Steering | None] = [None, *random_steerings((0, 2, 3), (-1.0, 1.0))]


class Asked:
    """A wrapper with prompts for it, and the plain path's numbers."""

    def __init__(self, architecture: str = "llama") -> None:
        self.wrapper = build_wrapper(architecture)
        self.prompts = [self.wrapper.chat_format.encode_choice(question) for question in QUESTIONS]
        self.letters = [[self.wrapper.chat_format.letter_id(letter) for letter in "AB"]] * len(QUESTIONS)

    def scores(self, **options: Any) -> dict[int, Tensor]:
        return dict(self.wrapper.score(self.prompts, STEERINGS, self.letters, **options))

    def assert_right(self, scores: dict[int, Tensor], indices: Sequence[int] = range(len(QUESTIONS))) -> None:
        """Against passes that do not go through the wrapper."""
        assert sorted(scores) == list(indices)
        for index in indices:
            prompt, letters = self.prompts[index], self.letters[index]
            rows = [steered_logits(self.wrapper.model, prompt.ids, prompt.steer_start, s)[-1] for s in STEERINGS]
            torch.testing.assert_close(scores[index], torch.stack(rows).softmax(-1)[:, letters], rtol=1e-4, atol=0)

    def assert_activations_right(self) -> None:
        read = list(self.wrapper.answer_activations(PAIRS, [1, 3]))
        plain = {i: halves for [i], *halves in self.wrapper.answer_activations_plainly(PAIRS, [1, 3])}
        assert sorted(i for indices, *_ in read for i in indices) == list(range(len(PAIRS)))
        for indices, *halves in read:
            for half, plain_half in ((0, 0), (1, 1)):
                wanted = torch.cat([plain[i][plain_half] for i in indices])
                torch.testing.assert_close(halves[half], wanted, rtol=0, atol=1e-5)


@pytest.fixture
def asked() -> Asked:
    return Asked()


def calls_of(module: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    """How many items each call of one of a module's passes gets."""
    real: Callable[..., Any] = getattr(module, name)
    sizes: list[int] = []

    def counted(runtime: Runtime, items: Sequence[Any], *args: Any) -> Any:
        sizes.append(len(items))
        return real(runtime, items, *args)

    monkeypatch.setattr(module, name, counted)
    return sizes


# --- what all items begin with ---


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, LONGROPE])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_what_all_prompts_begin_with_runs_once(architecture: str, batch_size: int | None) -> None:
    wrapper = build_wrapper(architecture)
    before = "You are told to be brief. "
    prompts = [wrapper.chat_format.encode_choice(before + question) for question in QUESTIONS]
    letters = [[wrapper.chat_format.letter_id(letter) for letter in "AB"]] * len(prompts)
    shapes: list[tuple[int, int]] = []
    block = wrapper.layers[0].register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape[:2])))
    found = dict(wrapper.score(prompts, STEERINGS, letters, batch_size))
    block.remove()
    n_opening = sum(len(set(column)) == 1 for column in zip(*(prompt.ids for prompt in prompts), strict=False))
    if architecture != LONGROPE:  # some of its prompts are beyond the switch of positions
        assert shapes[0][0] == 1 and FEWEST_COMMON <= shapes[0][1] <= n_opening
    for index, (prompt, ids) in enumerate(zip(prompts, letters, strict=True)):
        rows = [steered_logits(wrapper.model, prompt.ids, prompt.steer_start, one)[-1] for one in STEERINGS]
        torch.testing.assert_close(found[index], torch.stack(rows).softmax(-1)[:, ids], rtol=1e-4, atol=0)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_what_all_pairs_begin_with_runs_once(architecture: str) -> None:
    wrapper = build_wrapper(architecture)
    pairs = [ContrastPair(f"You are told to be brief. {question}", "A", "B") for question in QUESTIONS]
    shapes: list[tuple[int, int]] = []
    block = wrapper.layers[0].register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape[:2])))
    read = list(wrapper.answer_activations(pairs, [1, 3]))
    block.remove()
    assert shapes[0][0] == 1 and shapes[0][1] >= FEWEST_COMMON
    plain = {i: halves for [i], *halves in wrapper.answer_activations_plainly(pairs, [1, 3])}
    for indices, *halves in read:
        for place, half in enumerate(halves):
            wanted = torch.cat([plain[i][place] for i in indices])
            torch.testing.assert_close(half, wanted, rtol=0, atol=1e-5)


# --- the guard ---


def let_tails_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def plain_causal_mask(self: PackedBatch, lengths: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
        n = self.sequence_length
        blocked = torch.full((n, n), torch.finfo(dtype).min, dtype=dtype, device=device).triu(1)
        return blocked.expand(len(lengths), 1, n, n)

    monkeypatch.setattr(PackedBatch, "_build_mask", plain_causal_mask)


def shift_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    real = PackedBatch.model_inputs

    def without_positions(self: PackedBatch) -> dict[str, Any]:
        return {key: value for key, value in real(self).items() if key != "position_ids"}

    monkeypatch.setattr(PackedBatch, "model_inputs", without_positions)


def refuse_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    real = PackedBatch.model_inputs

    def flattened(self: PackedBatch) -> dict[str, Any]:
        inputs = real(self)
        return {**inputs, "attention_mask": inputs["attention_mask"][:, :, :-1]}  # no model takes such a mask

    monkeypatch.setattr(PackedBatch, "model_inputs", flattened)


def give_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    real = PackedBatch.model_inputs

    def poisoned(self: PackedBatch) -> dict[str, Any]:
        inputs = real(self)
        return {**inputs, "attention_mask": torch.full_like(inputs["attention_mask"], torch.nan)}

    monkeypatch.setattr(PackedBatch, "model_inputs", poisoned)


FAULTS = [let_tails_see_each_other, shift_positions, refuse_the_mask, give_nan]


def assert_warned_of(fault: Callable[[pytest.MonkeyPatch], None], warning: str) -> None:
    how = "fail here or give no numbers" if fault in (refuse_the_mask, give_nan) else "do not equal plain ones here"
    assert f"packed passes {how}" in warning


@pytest.mark.parametrize("break_packing", FAULTS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_where_the_packed_pass_is_wrong_scores_come_from_plain_passes_with_a_warning(
    break_packing: Callable[[pytest.MonkeyPatch], None],
    architecture: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked = Asked(architecture)
    break_packing(monkeypatch)
    packed_passes = calls_of(scoring, monkeypatch, "score_packed")
    with caplog.at_level(logging.WARNING):
        asked.assert_right(asked.scores())
        asked.assert_right(asked.scores())
    assert packed_passes == [2]  # the guard's own, once: the shortest prompt, padded by the longest
    assert len(caplog.messages) == 1
    assert_warned_of(break_packing, caplog.messages[0])
    assert count_hooks(asked.wrapper.model) == 0


@pytest.mark.parametrize("break_packing", FAULTS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_where_the_packed_pass_is_wrong_activations_come_from_plain_passes_with_a_warning(
    break_packing: Callable[[pytest.MonkeyPatch], None],
    architecture: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked = Asked(architecture)
    break_packing(monkeypatch)
    with caplog.at_level(logging.WARNING):
        asked.assert_activations_right()
    assert len(caplog.messages) == 1
    assert_warned_of(break_packing, caplog.messages[0])
    assert count_hooks(asked.wrapper.model) == 0


def test_where_the_packed_pass_is_right_the_guard_is_silent_and_asks_once(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain_passes = calls_of(scoring, monkeypatch, "score_rows")
    asked.assert_right(asked.scores())
    n_of_guard = len(plain_passes)
    assert n_of_guard > 0
    asked.assert_right(asked.scores())
    assert len(plain_passes) == n_of_guard
    asked.assert_activations_right()
    plain_reads = calls_of(reading, monkeypatch, "read_plainly")
    list(asked.wrapper.answer_activations(PAIRS, [1, 3]))
    assert plain_reads == []
    assert not caplog.messages


def test_prompts_longer_than_the_attention_window_run_plainly_and_the_others_packed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = Asked(WINDOWED)
    lengths = sorted(len(prompt) for prompt in asked.prompts)
    window = lengths[2]
    asked.wrapper.config.sliding_window = window
    wrapper = LlamaWrapper(asked.wrapper.model, asked.wrapper.tokenizer, "tiny-chat")
    for block in wrapper.layers:
        block.self_attn.sliding_window = window
    asked.wrapper = wrapper
    packed_passes = calls_of(scoring, monkeypatch, "score_packed")
    with caplog.at_level(logging.WARNING):
        asked.assert_right(asked.scores(batch_size=1))
    assert packed_passes == [2, 1, 1, 1]  # the guard's, and the three that fit
    assert caplog.messages == [
        "3 of 6 prompts are longer than the attention window of tiny-chat; they run one combination at a time"
    ]
    asked.assert_activations_right()


# --- batches ---


def test_batch_size_1_2_and_auto_give_the_same_scores(asked: Asked) -> None:
    for batch_size in (1, 2, None):
        asked.assert_right(asked.scores(batch_size=batch_size))


@pytest.mark.parametrize("batch_size", [1, 2, 4, None])
@pytest.mark.parametrize("done", [{0}, {5, 2}, {0, 1, 2, 3, 4}, {0, 1, 2, 3, 4, 5}])
def test_a_resumed_run_gives_bit_identical_scores(asked: Asked, batch_size: int | None, done: set[int]) -> None:
    undisturbed = asked.scores(batch_size=batch_size)
    resumed = asked.scores(batch_size=batch_size, skip=done)
    assert set(resumed) >= set(range(6)) - done
    for index, scores in resumed.items():
        assert torch.equal(scores, undisturbed[index])


def test_a_resumed_run_passes_over_batches_that_are_done(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    asked.scores()  # settles the guard
    packed_passes = calls_of(scoring, monkeypatch, "score_packed")
    assert sorted(asked.scores(batch_size=1, skip={0, 3, 4})) == [1, 2, 5]
    assert packed_passes == [1, 1, 1]
    assert asked.scores(batch_size=2, skip=set(range(6))) == {}
    assert len(packed_passes) == 3


def test_a_resumed_plain_run_computes_only_the_rest(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = dict(asked.wrapper.score_plainly(asked.prompts, STEERINGS, asked.letters))
    passes = calls_of(scoring, monkeypatch, "score_rows")
    resumed = dict(asked.wrapper.score_plainly(asked.prompts, STEERINGS, asked.letters, skip={0, 1, 2, 4}))
    assert sorted(resumed) == [3, 5]
    assert sum(passes) == 2 * len(STEERINGS)
    assert all(torch.equal(resumed[index], undisturbed[index]) for index in resumed)


# --- memory ---


def allow_at_most(monkeypatch: pytest.MonkeyPatch, name: str, most: int, error: BaseException) -> list[int]:
    """Let one of the scoring passes run out of memory beyond `most` items; returns the sizes that ran."""
    real: Callable[..., Any] = getattr(scoring, name)
    ran: list[int] = []

    def limited(runtime: Runtime, items: Sequence[Any], *args: Any) -> Any:
        if len(items) > most:
            raise error
        ran.append(len(items))
        return real(runtime, items, *args)

    monkeypatch.setattr(scoring, name, limited)
    return ran


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_a_batch_that_does_not_fit_is_halved_until_it_does(
    asked: Asked, error: BaseException, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked.scores(batch_size=1)  # settles the guard
    ran = allow_at_most(monkeypatch, "score_packed", 2, error)
    with caplog.at_level(logging.WARNING):
        asked.assert_right(asked.scores(batch_size=6))
    assert sum(ran) == 6 and max(ran) <= 2
    assert any("out of memory with 6 at once; continuing with 3" in message for message in caplog.messages)


def test_what_was_computed_before_memory_ran_out_is_not_computed_again(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked.scores(batch_size=1)
    real = scoring.score_packed
    attempts: list[int] = []

    def full_once(runtime: Runtime, prompts: Sequence[PromptTokens], *args: Any) -> list[Tensor]:
        attempts.append(len(prompts))
        if len(attempts) == 2:
            raise torch.OutOfMemoryError("out of memory")
        return real(runtime, prompts, *args)

    monkeypatch.setattr(scoring, "score_packed", full_once)
    asked.assert_right(asked.scores(batch_size=2))
    assert attempts[:2] == [2, 2]
    assert sum(attempts) == 6 + 2  # the batch that failed is tried again, nothing else


def test_one_item_that_does_not_fit_is_an_error_that_says_what_to_do(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked.scores(batch_size=1)
    allow_at_most(
        monkeypatch,
        "score_packed",
        0,
        torch.OutOfMemoryError("out of memory"),
    )
    with pytest.raises(UserError, match=r"out of memory on cpu with a single item; use --dtype bfloat16"):
        asked.scores()


def test_other_errors_in_a_pass_are_not_taken_for_missing_memory(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    asked.scores(batch_size=1)
    allow_at_most(monkeypatch, "score_packed", 0, RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        asked.scores()


def test_rows_of_the_plain_path_are_halved_too(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = allow_at_most(
        monkeypatch,
        "score_rows",
        3,
        torch.OutOfMemoryError("out of memory"),
    )
    scores = dict(asked.wrapper.score_plainly(asked.prompts, STEERINGS, asked.letters))
    asked.assert_right(scores)
    assert max(ran) <= 3 and sum(ran) == len(QUESTIONS) * len(STEERINGS)


def test_pairs_are_read_in_halves_where_memory_is_short(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    real = reading.read_packed
    rows: list[int] = []

    def limited(runtime: Runtime, pairs: Sequence[PairTokens], *args: Any) -> Tensor:
        if len(pairs) > 3:
            raise torch.OutOfMemoryError("out of memory")
        rows.append(len(pairs))
        return real(runtime, pairs, *args)

    monkeypatch.setattr(reading, "read_packed", limited)
    asked.assert_activations_right()
    assert 3 in rows


def test_answers_are_generated_in_halves_where_memory_is_short(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    import llama_wrapper

    rows = [GenerationRow(prompt, STEERINGS[1 + i % 4]) for i, prompt in enumerate(asked.prompts)]
    undisturbed = dict(asked.wrapper.generate(rows, 5))
    real = llama_wrapper.generate_rows
    ran: list[int] = []

    def limited(
        model: Any, layers: Any, rows: list[GenerationRow], decoding: Any, at_once: int
    ) -> Iterator[tuple[int, list[int]]]:
        ran.append(at_once)
        if min(len(rows), at_once) > 2:
            raise torch.OutOfMemoryError("out of memory")
        yield from real(model, layers, rows, decoding, at_once)

    monkeypatch.setattr(llama_wrapper, "generate_rows", limited)
    assert dict(asked.wrapper.generate(rows, 5)) == undisturbed
    assert len(ran) > 1 and ran[-1] <= 2


def test_a_pass_holds_no_more_tokens_than_the_budget(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows of a batch are padded to its widest, so that counts."""
    many = [asked.prompts[index % 6] for index in range(60)]
    widths = {id(prompt): len(prompt) + 2 * len(STEERINGS) for prompt in many}
    packed: list[int] = []
    real = scoring.score_packed

    def measured(runtime: Runtime, prompts: Sequence[PromptTokens], *args: Any) -> list[Tensor]:
        packed.append(len(prompts) * max(widths[id(prompt)] for prompt in prompts))
        return real(runtime, prompts, *args)

    monkeypatch.setattr(scoring, "score_packed", measured)
    list(asked.wrapper.score(many, STEERINGS, asked.letters * 10))
    assert max(packed) <= CPU_TOKENS_PER_PASS
    assert len(packed) < 20
