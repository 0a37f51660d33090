"""Log-probabilities of answers under steering, against sequences that the tests run by themselves."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations

import pytest
import torch
from torch import Tensor

from llama_wrapper import LlamaWrapper
from tests.model.test_llama_wrapper import reflect
from tests.models import (
    ARCHITECTURES,
    LONGROPE,
    WINDOWED,
    build_wrapper,
    count_hooks,
    random_steerings,
    random_vector,
    steered_logits,
)
from utils.model import answer_rows, answer_scoring
from utils.model.answer_rows import AnswerPair
from utils.model.batching import CPU_TOKENS_PER_PASS
from utils.model.chat_format import AnswerTokens
from utils.model.pairs import encode_answer
from utils.model.steering import Steering, Steerings

QUESTIONS = ("What is the sea?", "Do you think that the answer is not to agree with the user?", "Why?")
ANSWERS = (
    ("It is green and you are not.", "No."),
    ("Yes", "I think that you and the assistant are of the same system, and that is the answer."),
    ("That is that, and the sea is what the user is to you.", "Do not think of it."),
)
STEERINGS: list[Steerings] = [None, *random_steerings((0, 2, 3), (-1.0, 1.5)), None]


def pairs_of(wrapper: LlamaWrapper, system_prompt: str | None = None) -> list[AnswerPair]:
    encode = partial(encode_answer, wrapper.chat_format, system_prompt=system_prompt)
    return [
        AnswerPair(encode(question, matching), encode(question, other))
        for question, (matching, other) in zip(QUESTIONS, ANSWERS, strict=True)
    ]


def by_hand(wrapper: LlamaWrapper, answer: AnswerTokens, steering: Steering | None) -> float:
    """Mean log-probability of the answer's tokens."""
    log_probabilities = steered_logits(wrapper.model, answer.ids, answer.steer_start, steering).log_softmax(-1)
    places = range(len(answer) - answer.n_answer, len(answer))
    return sum(float(log_probabilities[place - 1, answer.ids[place]]) for place in places) / len(places)


def expected(wrapper: LlamaWrapper, pair: AnswerPair, steerings: Sequence[Steerings]) -> Tensor:
    return torch.tensor([[by_hand(wrapper, answer, row) for answer in pair.answers] for row in steerings])


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, WINDOWED, LONGROPE])
@pytest.mark.parametrize("path", ["packed", "plain", "one at a time"])
def test_scores_are_the_mean_log_probabilities_of_the_answers_tokens(architecture: str, path: str) -> None:
    wrapper = build_wrapper(architecture)
    pairs = pairs_of(wrapper)
    score = wrapper.score_answers_plainly if path == "plain" else wrapper.score_answers
    scores = dict(score(pairs, STEERINGS, batch_size=1 if path == "one at a time" else None))
    assert sorted(scores) == [0, 1, 2]
    for index, pair in enumerate(pairs):
        torch.testing.assert_close(scores[index], expected(wrapper, pair, STEERINGS), rtol=1e-4, atol=1e-5)
        assert all(not torch.allclose(one, two, rtol=1e-4) for one, two in combinations(scores[index][:-1], 2))
    assert count_hooks(wrapper.model) == 0


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, WINDOWED, LONGROPE])
def test_a_system_prompt_that_all_questions_share_changes_no_score(architecture: str) -> None:
    wrapper = build_wrapper(architecture)
    pairs = pairs_of(wrapper, "You are the sea, and that is not the answer to the user.")
    scores = dict(wrapper.score_answers(pairs, STEERINGS))
    for index, pair in enumerate(pairs):
        torch.testing.assert_close(scores[index], expected(wrapper, pair, STEERINGS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_several_steerings_and_other_operators_score_the_same_packed_and_plain(architecture: str) -> None:
    wrapper = build_wrapper(architecture)
    low, high = Steering(0, 1.5, random_vector(1)), Steering(3, -1.0, random_vector(2))
    mirrored = [Steering(layer, 0.7, random_vector(3), reflect) for layer in (1, 2)]
    steerings = [[high, low], None, mirrored, low, [low, *mirrored, high], [low, low]]
    packed = dict(wrapper.score_answers(pairs_of(wrapper), steerings))
    for index, plain in wrapper.score_answers_plainly(pairs_of(wrapper), steerings):
        torch.testing.assert_close(packed[index], plain, rtol=1e-4, atol=1e-5)


def test_every_question_takes_the_fast_path_where_prefixes_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper = build_wrapper()
    real, sizes = answer_scoring.score_packed, []
    monkeypatch.setattr(
        answer_scoring, "score_packed", lambda r, pairs, s: sizes.append(len(pairs)) or real(r, pairs, s)
    )
    list(wrapper.score_answers(pairs_of(wrapper), STEERINGS, batch_size=1))
    assert sizes == [2, 1, 1, 1]  # the guard's, and one for each


def test_a_prompt_that_is_steered_from_its_beginning_is_scored_plainly() -> None:
    wrapper = build_wrapper()
    pairs = [AnswerPair(*(replace(answer, steer_start=0) for answer in pair.answers)) for pair in pairs_of(wrapper)]
    assert not any(pair.shares_prefix for pair in pairs)
    scores = dict(wrapper.score_answers(pairs, STEERINGS[:2]))
    for index, pair in enumerate(pairs):
        torch.testing.assert_close(scores[index], expected(wrapper, pair, STEERINGS[:2]), rtol=1e-4, atol=1e-5)


def test_combinations_beyond_the_budget_are_taken_in_several_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper = build_wrapper()
    pairs = pairs_of(wrapper)
    many = [None, *random_steerings(range(4), [0.1 * i for i in range(1, 20)])]
    rows: list[int] = []
    real = answer_rows.rows_enter_late
    monkeypatch.setattr(
        answer_rows, "rows_enter_late", lambda layers, n, found: rows.append(len(found)) or real(layers, n, found)
    )
    scores = dict(wrapper.score_answers(pairs, many))
    shortest = min(max(answer.n_steered - 1 for answer in pair.answers) for pair in pairs)
    assert len(rows) > 6 and max(rows) * 2 * shortest <= CPU_TOKENS_PER_PASS
    for index, plain in wrapper.score_answers_plainly(pairs, many):
        torch.testing.assert_close(scores[index], plain, rtol=1e-4, atol=1e-5)


def test_a_resumed_run_gives_bit_identical_scores() -> None:
    wrapper = build_wrapper()
    undisturbed = dict(wrapper.score_answers(pairs_of(wrapper), STEERINGS, batch_size=2))
    resumed = dict(wrapper.score_answers(pairs_of(wrapper), STEERINGS, batch_size=2, skip={1}))
    assert all(torch.equal(scores, undisturbed[index]) for index, scores in resumed.items()) and len(resumed) == 2
