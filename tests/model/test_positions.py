"""Models that encode all positions anew beyond their original context: such rows share no pass with others."""

import logging

import pytest
import torch

from llama_wrapper import LlamaWrapper
from tests.model.test_generation import continued_by_hand
from tests.models import LONGROPE, ORIGINAL_CONTEXT, build_wrapper, random_steerings, random_vector, steered_logits
from utils.data.records import ContrastPair
from utils.model.generation import GenerationRow
from utils.model.steering import Steering

SHORT = ("Is it?", "What is the sea, and what do you think of it?")
LONG = ("Is the sea green? " * 12, "I agree that the answer is " * 15)


@pytest.fixture(scope="module")
def wrapper() -> LlamaWrapper:
    wrapper = build_wrapper(LONGROPE)
    lengths = [[len(wrapper.chat_format.encode_choice(text)) for text in texts] for texts in (SHORT, LONG)]
    assert max(lengths[0]) < ORIGINAL_CONTEXT - 10 and min(lengths[1]) > ORIGINAL_CONTEXT
    return wrapper


def test_scores_of_short_prompts_do_not_change_with_long_ones_beside_them(wrapper: LlamaWrapper) -> None:
    prompts = [wrapper.chat_format.encode_choice(question) for question in (*SHORT, *LONG)]
    letters = [[wrapper.chat_format.letter_id(letter) for letter in "AB"]] * len(prompts)
    steerings = [None, *random_steerings((0, 3), (1.5,))]
    scores = dict(wrapper.score(prompts, steerings, letters))
    for index, prompt in enumerate(prompts):
        rows = [steered_logits(wrapper.model, prompt.ids, prompt.steer_start, row)[-1] for row in steerings]
        torch.testing.assert_close(scores[index], torch.stack(rows).softmax(-1)[:, letters[0]], rtol=1e-4, atol=0)


def test_activations_of_short_pairs_do_not_change_with_long_ones_beside_them(wrapper: LlamaWrapper) -> None:
    pairs = [ContrastPair(question, "A", "B") for question in (*SHORT, *LONG)]
    plain = {i: halves for [i], *halves in wrapper.answer_activations_plainly(pairs, [0, 3])}
    for indices, *halves in wrapper.answer_activations(pairs, [0, 3]):
        for place, index in enumerate(indices):
            for half, expected in zip(halves, plain[index], strict=True):
                torch.testing.assert_close(half[place], expected[0], rtol=0, atol=1e-5)


def test_answers_do_not_change_with_longer_prompts_in_their_batch(
    wrapper: LlamaWrapper, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where an answer begins within the original context and ends beyond it."""
    crossing = "x " * ((ORIGINAL_CONTEXT - len(wrapper.chat_format.encode("").ids)) // 2 - 1)
    steering = Steering(1, 2.0, random_vector(1))
    prompts = [wrapper.chat_format.encode(question) for question in (*SHORT, crossing, *LONG)]
    assert ORIGINAL_CONTEXT - 6 < len(prompts[2]) <= ORIGINAL_CONTEXT
    rows = [GenerationRow(prompt, one) for prompt in prompts for one in (None, steering)]
    with caplog.at_level(logging.WARNING):
        together = dict(wrapper.generate(rows, 8))
    by_hand = [continued_by_hand(wrapper, row.prompt, row.steering, 8) for row in rows]
    assert [together[index].token_ids for index in range(len(rows))] == by_hand
    assert caplog.messages == [
        "6 of 10 answers reach beyond the original context of tiny-chat, where it encodes all positions anew; "
        "they run one at a time"
    ]
