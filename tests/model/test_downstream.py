"""Steering followed up the layers: packed and plain, exact at its own layer, linear in small steps."""

import pytest
import torch

from llama_wrapper import LlamaWrapper
from tests.models import ARCHITECTURES, N_LAYERS, WINDOWED, build_wrapper, count_hooks, random_vector, steered_logits
from utils.inside.unembedding import Unembedding
from utils.model.chat_format import AnswerTokens
from utils.model.downstream import changes, follow, steered_text
from utils.model.steering import Steering


def text_of(
    model: LlamaWrapper, question: str = "What is the answer?", answer: str = "It is not that."
) -> AnswerTokens:
    return steered_text(model.chat_format.encode(question, answer))


STEERINGS = [Steering(layer, m, random_vector(10 + layer)) for layer in (2, 0, 3, 1) for m in (1.5, -0.5)]


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, WINDOWED])
def test_packed_changes_equal_those_of_one_pass_a_steering(architecture: str) -> None:
    model = build_wrapper(architecture)
    text = text_of(model)
    packed, plain = (changes(model, text, STEERINGS, plainly=plainly) for plainly in (False, True))
    assert packed.shape == (len(STEERINGS), N_LAYERS, text.n_steered - 1, model.d_model)
    assert (packed - plain).abs().max() <= 2e-4 * plain.abs().max()
    assert count_hooks(model.model) == 0


def test_nothing_changes_below_the_steered_layer_and_there_it_is_exactly_what_was_added() -> None:
    model = build_wrapper()
    found = changes(model, text_of(model), STEERINGS)
    for row, steering in enumerate(STEERINGS):
        assert not found[row, : steering.layer].any()
        added = steering.multiplier * steering.vector
        torch.testing.assert_close(found[row, steering.layer], added.expand_as(found[row, 0]), atol=2e-5, rtol=1e-4)


def test_changes_become_proportional_to_the_multiplier_as_it_goes_to_0() -> None:
    model = build_wrapper()
    vector = random_vector(3)
    sizes = (0.4, 0.2, 0.1, 0.05)
    steerings = [Steering(0, sign * size, vector) for size in sizes for sign in (1, -1)]
    last = changes(model, text_of(model), steerings, [N_LAYERS - 1])[:, 0].double()
    slopes = [(last[2 * i] - last[2 * i + 1]) / (2 * size) for i, size in enumerate(sizes)]
    gaps = [float((slope - slopes[-1]).norm() / slopes[-1].norm()) for slope in slopes[:-1]]
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 0.03


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_the_last_layer_s_change_through_the_head_is_the_change_of_the_logits(architecture: str) -> None:
    model = build_wrapper(architecture)
    text, steering = text_of(model), Steering(1, 2.0, random_vector(5))
    found: list[torch.Tensor] = []
    unembedding = Unembedding(model)
    follow(
        model,
        text,
        [steering],
        lambda _, base, steered, __: found.append(unembedding.logits(steered[0]) - unembedding.logits(base)),
        [N_LAYERS - 1],
    )
    places = slice(text.steer_start, -1)
    with_and_without = [steered_logits(model.model, text.ids, text.steer_start, one) for one in (steering, None)]
    expected = (with_and_without[0] - with_and_without[1])[places]
    assert float(expected.abs().max()) > 0.1
    torch.testing.assert_close(found[0], expected, atol=2e-4, rtol=1e-3)


def test_a_text_steered_from_a_given_token_on_is_read_from_there_to_its_last_token_but_one() -> None:
    model = build_wrapper()
    text = steered_text(model.chat_format.encode("What is that?", "You are."), 5)
    found = changes(model, text, [Steering(2, 1.0, random_vector(1))], [2])
    assert found.shape[2] == len(text) - 5 - 1 == text.n_answer
