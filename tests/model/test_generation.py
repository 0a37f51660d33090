"""Answers under steering: every generated token is steered, in a batch as alone, with a KV cache as without."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from llama_wrapper import Generation, LlamaWrapper
from tests.models import (
    ARCHITECTURES,
    WINDOWED,
    build_wrapper,
    count_hooks,
    decoder_blocks,
    random_vector,
    steered_logits,
)
from utils.errors import UserError
from utils.model.chat_format import PromptTokens
from utils.model.generation import GenerationRow
from utils.model.steering import Steering

N_NEW = 7
QUESTIONS = ("What is the sea?", "Do you think that cats are wiser than owls and that they agree?", "Why?")
EVERY_KIND = (*ARCHITECTURES, WINDOWED)


def rows_of(wrapper: LlamaWrapper) -> list[GenerationRow]:
    """Prompts of three lengths, each under no steering and under three, at different layers."""
    prompts = [wrapper.chat_format.encode(question) for question in QUESTIONS]
    assert len({len(prompt) for prompt in prompts}) == 3
    steerings = [
        None,
        *(Steering(layer, sign * 2.0, random_vector(layer)) for layer, sign in ((0, 1), (2, -1), (3, 1))),
    ]
    return [GenerationRow(prompt, steering) for steering in steerings for prompt in prompts]


def continued_by_hand(
    wrapper: LlamaWrapper, prompt: PromptTokens, steering: Steering | None, n_new: int = N_NEW
) -> tuple[int, ...]:
    """Greedy tokens, from whole sequences under a hook of the test's own."""
    ids = list(prompt.ids)
    while len(ids) - len(prompt) < n_new:
        ids.append(int(steered_logits(wrapper.model, ids, prompt.steer_start, steering)[-1].argmax()))
        if ids[-1] == wrapper.tokenizer.eos_token_id:
            break
    return tuple(ids[len(prompt) :])


@pytest.mark.parametrize("architecture", EVERY_KIND)
def test_a_batch_of_prompts_layers_and_multipliers_generates_what_each_row_generates_by_hand(architecture: str) -> None:
    wrapper = build_wrapper(architecture)
    rows = rows_of(wrapper)
    by_hand = [continued_by_hand(wrapper, row.prompt, row.steering) for row in rows]
    together = dict(wrapper.generate(rows, N_NEW))
    assert [together[index].token_ids for index in range(len(rows))] == by_hand
    assert len(set(by_hand)) > len(rows) / 2  # the steerings change what is said
    assert count_hooks(wrapper.model) == 0


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", WINDOWED])
def test_without_a_kv_cache_the_same_tokens_are_generated(architecture: str) -> None:
    wrapper = build_wrapper(architecture)
    rows = rows_of(wrapper)
    cached, uncached = (dict(wrapper.generate(rows, N_NEW, use_cache=use)) for use in (True, False))
    assert cached == uncached


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_rows_of_different_tail_lengths_are_padded_together(architecture: str) -> None:
    wrapper = build_wrapper(architecture)
    steering = Steering(1, 2.0, random_vector(1))
    prompts = [wrapper.chat_format.encode(question) for question in QUESTIONS]
    starts = [0, prompts[1].steer_start, 3]
    rows = [
        GenerationRow(PromptTokens(prompt.ids, start), steering) for prompt, start in zip(prompts, starts, strict=True)
    ]
    together = dict(wrapper.generate(rows, N_NEW))
    for index, row in enumerate(rows):
        assert together[index].token_ids == continued_by_hand(wrapper, row.prompt, steering)


def test_no_row_changes_another_one_s_answer() -> None:
    wrapper = build_wrapper()
    rows = rows_of(wrapper)
    together = dict(wrapper.generate(rows, N_NEW))
    for batch_size in (1, 5):
        assert dict(wrapper.generate(rows, N_NEW, batch_size=batch_size)) == together
    assert dict(wrapper.generate(rows[::-1], N_NEW)) == {len(rows) - 1 - i: answer for i, answer in together.items()}


@pytest.mark.parametrize("use_cache", [True, False])
def test_steering_reaches_the_first_generated_token_and_every_later_one(use_cache: bool) -> None:
    """Read at the block behind the steered one's hook: each position from the start on is off by the addition."""
    wrapper = build_wrapper()
    prompt = wrapper.chat_format.encode(QUESTIONS[0])
    addition = 2.0 * random_vector(1)
    before: list[torch.Tensor] = []
    after: list[torch.Tensor] = []
    block, next_block = decoder_blocks(wrapper.model)[1:3]
    # this hook is there before the wrapper's, so it sees the block's own output
    handles = [
        block.register_forward_hook(lambda _, __, output: before.append(output[0].clone())),
        next_block.register_forward_pre_hook(lambda _, args: after.append(args[0][0].clone())),
    ]
    row = GenerationRow(prompt, Steering(1, 2.0, random_vector(1)))
    [(_, generation)] = wrapper.generate([row], 5, use_cache=use_cache)
    for handle in handles:
        handle.remove()
    assert len(generation.token_ids) == 5
    added = [late - early for early, late in zip(before, after, strict=True)]
    if use_cache:  # every token runs once: the prompt without its last token, that one, then one at a time
        per_token = torch.cat(added)
        assert len(per_token) == len(prompt) + 4
    else:  # the last pass runs all of them
        per_token = added[-1]
        assert len(per_token) == len(prompt) + 4
    start = prompt.steer_start
    assert start == len(prompt) - 1
    assert (per_token[:start] == 0).all()
    torch.testing.assert_close(per_token[start:], addition.expand(5, -1), rtol=0, atol=1e-5)


def test_equal_prompts_run_once_up_to_the_first_steered_token() -> None:
    wrapper = build_wrapper()
    rows = rows_of(wrapper)
    shapes: list[tuple[int, int]] = []
    handle = decoder_blocks(wrapper.model)[0].register_forward_hook(
        lambda _, __, output: shapes.append(tuple(output.shape[:2]))
    )
    list(wrapper.generate(rows, 3))
    handle.remove()
    longest_prefix = max(row.prompt.steer_start for row in rows)
    assert shapes[0] == (len(QUESTIONS), longest_prefix)
    assert all(shape == (len(rows), 1) for shape in shapes[1:])


@pytest.mark.parametrize("architecture", EVERY_KIND)
def test_what_all_prompts_begin_with_runs_once(architecture: str) -> None:
    wrapper = build_wrapper(architecture)
    encode = wrapper.chat_format.encode
    prompts = [encode(question, None, "Be the sea, the cat and the owl of the day.") for question in QUESTIONS]
    rows = [GenerationRow(prompt, Steering(1, 2.0, random_vector(1))) for prompt in prompts]
    shapes: list[tuple[int, int]] = []
    handle = decoder_blocks(wrapper.model)[0].register_forward_hook(
        lambda _, __, output: shapes.append(tuple(output.shape[:2]))
    )
    together = dict(wrapper.generate(rows, N_NEW))
    handle.remove()
    columns = zip(*(prompt.ids for prompt in prompts), strict=False)
    n_common = next(place for place, column in enumerate(columns) if len(set(column)) > 1)
    longest = max(prompt.steer_start for prompt in prompts)
    if architecture in (WINDOWED, "gemma2", "gemma3"):  # padding would count in their windows
        assert shapes[0] == (3, longest)
    else:
        assert n_common > 8 and shapes[:2] == [(1, n_common), (3, longest - n_common)]
    assert [together[i].token_ids for i in range(3)] == [
        continued_by_hand(wrapper, row.prompt, row.steering)
        for row in rows  # type: ignore[arg-type]
    ]


# --- where an answer ends ---


def end_at(wrapper: LlamaWrapper, token_id: int) -> None:
    wrapper.model.generation_config.eos_token_id = [token_id]


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_row_ends_at_its_end_token_and_the_others_go_on(use_cache: bool) -> None:
    wrapper = build_wrapper()
    rows = rows_of(wrapper)
    free = dict(wrapper.generate(rows, N_NEW))
    # a token that some answers contain and others do not becomes the end token
    holders = Counter(token for answer in free.values() for token in set(answer.token_ids))
    end = next(token for token, count in holders.most_common() if count < len(rows))
    end_at(wrapper, end)

    def cut(tokens: Sequence[int]) -> tuple[int, ...]:
        return tuple(tokens[: tokens.index(end) + 1] if end in tokens else tokens)

    ended = dict(wrapper.generate(rows, N_NEW, use_cache=use_cache))
    assert {i: answer.token_ids for i, answer in ended.items()} == {i: cut(a.token_ids) for i, a in free.items()}
    assert len({len(answer.token_ids) for answer in ended.values()}) > 1


def ending_at_many_lengths(wrapper: LlamaWrapper) -> None:
    """Make every fifth token of the vocabulary an end: answers of random models are then of all lengths."""
    wrapper.model.generation_config.eos_token_id = list(range(0, len(wrapper.tokenizer), 5))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_rows_that_enter_in_the_place_of_others_answer_what_they_answer_alone(architecture: str) -> None:
    wrapper = build_wrapper(architecture)
    rows = [replace(row, seed=seed, temperature=seed % 2) for seed, row in enumerate(rows_of(wrapper))]  # half sampled
    ending_at_many_lengths(wrapper)
    alone = dict(wrapper.generate(rows, 9, batch_size=1))
    sizes: list[int] = []
    handle = decoder_blocks(wrapper.model)[0].register_forward_hook(
        lambda _, __, output: sizes.append(len(output)) if output.shape[1] == 1 else None
    )
    together = dict(wrapper.generate(rows, 9, batch_size=4))
    handle.remove()
    assert together == alone
    assert len({len(answer.token_ids) for answer in alone.values()}) > 2
    assert max(sizes) == 4
    n_rises = sum(later > earlier for earlier, later in pairwise(sizes))
    assert n_rises >= (1 if architecture == "gemma2" else 2)  # its windows take new rows when the batch is empty


def test_rows_enter_soon_enough_that_few_places_stand_empty() -> None:
    wrapper = build_wrapper()
    rows = [replace(row, seed=seed, temperature=2.0) for seed, row in enumerate(rows_of(wrapper) * 4)]
    ending_at_many_lengths(wrapper)
    n_steps = [0]
    handle = decoder_blocks(wrapper.model)[0].register_forward_hook(
        lambda _, __, output: n_steps.__setitem__(0, n_steps[0] + (output.shape[1] == 1))
    )
    lengths = {index: len(answer.token_ids) for index, answer in wrapper.generate(rows, 12, batch_size=8)}
    handle.remove()
    apart = sum(max(lengths[row] for row in range(start, start + 8)) for start in range(0, len(rows), 8))
    assert sum(lengths.values()) / 8 - 8 <= n_steps[0] < 0.85 * apart


def test_what_all_rows_share_runs_once_however_many_batches_they_make() -> None:
    wrapper = build_wrapper()
    rows = rows_of(wrapper)
    shapes: list[tuple[int, int]] = []
    handle = decoder_blocks(wrapper.model)[0].register_forward_hook(
        lambda _, __, output: shapes.append(tuple(output.shape[:2]))
    )
    list(wrapper.generate(rows, 3, batch_size=4))
    handle.remove()
    assert [shape[0] for shape in shapes if shape[1] > 1] == [len(QUESTIONS)]


def test_running_out_of_memory_goes_on_with_half_as_many_rows_and_loses_no_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wrapper = build_wrapper()
    rows = rows_of(wrapper)
    ending_at_many_lengths(wrapper)
    expected = dict(wrapper.generate(rows, 8))
    block = decoder_blocks(wrapper.model)[1]
    forward, n_passes = block.forward, [0]

    def small(hidden: torch.Tensor, *args: object, **kwargs: object) -> object:
        n_passes[0] += 1
        if len(hidden) > 3 and n_passes[0] > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(hidden, *args, **kwargs)

    monkeypatch.setattr(block, "forward", small)
    found = list(wrapper.generate(rows, 8, batch_size=6))
    assert dict(found) == expected and len(found) == len(rows)
    assert "out of memory with 6 at once; continuing with 3" in caplog.text


def test_the_text_has_no_special_tokens_and_the_raw_text_has_prompt_and_special_tokens() -> None:
    wrapper = build_wrapper()
    prompt = wrapper.chat_format.encode(QUESTIONS[0])
    text_ids = wrapper.tokenizer(" the answer is ", add_special_tokens=False)["input_ids"]
    generation = wrapper._generation(GenerationRow(prompt, None), [*text_ids, wrapper.tokenizer.eos_token_id])
    assert generation == Generation(
        token_ids=(*text_ids, 2),
        text="the answer is",
        raw_text=(f"<s><|im_start|>user\n{QUESTIONS[0]}<|im_end|>\n<|im_start|>assistant\n the answer is </s>"),
    )


# --- sampling ---


def test_sampled_answers_depend_on_the_row_s_own_seed_only() -> None:
    wrapper = build_wrapper()
    prompt = wrapper.chat_format.encode(QUESTIONS[0])
    other = wrapper.chat_format.encode(QUESTIONS[1])
    rows = [GenerationRow(prompt, None, seed) for seed in (1, 2, 1)] + [GenerationRow(other, None, 1)]
    together = dict(wrapper.generate(rows, N_NEW, temperature=1.5))
    assert together[0] == together[2]
    assert together[0] != together[1]
    for index, row in enumerate(rows):
        for use_cache in (True, False):
            [(_, alone)] = wrapper.generate([row], N_NEW, temperature=1.5, use_cache=use_cache)
            assert alone == together[index]


def test_samples_follow_the_softmax_at_the_temperature() -> None:
    wrapper = build_wrapper()
    prompt = wrapper.chat_format.encode(QUESTIONS[0])
    wanted = (steered_logits(wrapper.model, prompt.ids, 0, None)[-1].double() / 0.5).softmax(-1)
    rows = [GenerationRow(prompt, None, seed) for seed in range(200)]
    drawn = Counter(answer.token_ids[0] for _, answer in wrapper.generate(rows, 1, temperature=0.5))
    for token in wanted.topk(3).indices.tolist():
        p = float(wanted[token])
        assert abs(drawn[token] / 200 - p) < 4.5 * (p * (1 - p) / 200) ** 0.5 + 0.01


# --- resuming, limits ---


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_resumed_run_gives_the_rest_and_the_same_answers(use_cache: bool) -> None:
    wrapper = build_wrapper()
    rows = rows_of(wrapper)
    undisturbed = dict(wrapper.generate(rows, 6, batch_size=4, use_cache=use_cache))
    done = {0, 1, 2, 3, 6}
    resumed = dict(wrapper.generate(rows, 6, batch_size=4, skip=done, use_cache=use_cache))
    assert sorted(resumed) == sorted(set(range(len(rows))) - done)
    assert all(resumed[index] == undisturbed[index] for index in resumed)


def test_an_answer_that_would_outgrow_the_model_s_positions_is_refused() -> None:
    wrapper = build_wrapper()
    row = GenerationRow(wrapper.chat_format.encode(QUESTIONS[0]), None)
    with pytest.raises(UserError, match=r"item 0 has \d+ tokens \(and 500 to come\), but tiny-chat takes at most 512"):
        list(wrapper.generate([row], 500))


def test_hooks_are_gone_after_generation_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper = build_wrapper()

    def fail(*args: object, **kwargs: object) -> None:
        raise KeyError("in the middle of a pass")

    monkeypatch.setattr(decoder_blocks(wrapper.model)[2], "forward", fail)
    row = GenerationRow(wrapper.chat_format.encode("x"), Steering(0, 1.0, random_vector(0)))
    for use_cache in (True, False):
        with pytest.raises(KeyError):
            list(wrapper.generate([row], 3, use_cache=use_cache))
        assert count_hooks(wrapper.model) == 0
