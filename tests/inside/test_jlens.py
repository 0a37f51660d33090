"""The J-lens of vectors, held to the backward form, and its linear range."""

import pytest
import torch
from torch import Tensor

from llama_wrapper import LlamaWrapper
from tests.models import D_MODEL, N_LAYERS, build_wrapper, decoder_blocks, random_vector
from utils.inside.jlens import FIRST_TOKEN, LINEAR_STRENGTHS, FirstOrder, JLens, LayerVector, random_vectors
from utils.model.chat_format import AnswerTokens
from utils.model.downstream import steered_text

QUESTIONS = ("What is the answer to that?", "Do you think that the sea is green and not blue?")


@pytest.fixture(scope="module")
def lens() -> JLens:
    model = build_wrapper()
    texts = [steered_text(model.chat_format.encode(question, "That is not."), FIRST_TOKEN) for question in QUESTIONS]
    return JLens(model, texts)


def backward_jacobian(model: LlamaWrapper, text: AnswerTokens, layer: int) -> Tensor:
    """(1/|V|) sum over t, t' in V of d h_last(t') / d h_layer(t), by a backward pass for each entry of h_last."""
    kept: dict[str, Tensor] = {}

    def cut(module: object, args: object, output: object) -> object:
        hidden = output[0] if isinstance(output, tuple) else output
        kept["in"] = hidden.detach().requires_grad_()
        return (kept["in"], *output[1:]) if isinstance(output, tuple) else kept["in"]

    def keep(module: object, args: object, output: object) -> None:
        kept["out"] = output[0] if isinstance(output, tuple) else output

    blocks = decoder_blocks(model.model)
    handles = [blocks[layer].register_forward_hook(cut), blocks[-1].register_forward_hook(keep)]
    model.model(input_ids=torch.tensor([text.ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    chosen = slice(text.steer_start, -1)
    rows = []
    for entry in range(D_MODEL):
        [gradient] = torch.autograd.grad(kept["out"][0, chosen, entry].sum(), kept["in"], retain_graph=True)
        rows.append(gradient[0, chosen].sum(dim=0) / (text.n_steered - 1))
    return torch.stack(rows).double()


@pytest.mark.parametrize("layer", [0, 2])
def test_one_steered_pass_for_each_sign_gives_what_the_backward_form_gives(lens: JLens, layer: int) -> None:
    vectors = [LayerVector(layer, random_vector(20 + i)) for i in range(3)]
    found = lens.first_order(vectors)
    jacobians = [backward_jacobian(lens.model, text, layer) for text in lens.texts]
    for row, one in enumerate(vectors):
        for place, jacobian in enumerate(jacobians):
            expected = jacobian @ one.vector.double()
            assert float((found.effects[row, place] - expected).norm()) < 3e-3 * float(expected.norm())
    mean = torch.stack(jacobians).mean(dim=0) @ vectors[0].vector.double()
    torch.testing.assert_close(found.mean[0], mean, rtol=2e-2, atol=5e-3 * float(mean.norm()))


def test_at_the_last_layer_the_lens_gives_the_vector_itself(lens: JLens) -> None:
    vector = random_vector(7)
    found = lens.first_order([LayerVector(N_LAYERS - 1, vector)])
    torch.testing.assert_close(found.mean[0], vector.double(), rtol=1e-3, atol=2e-3)
    assert found.linear_up_to == [LINEAR_STRENGTHS[-1]]


def test_the_lens_is_additive_and_does_not_depend_on_the_vector_s_length(lens: JLens) -> None:
    one, two = random_vector(1), 4 * random_vector(2)
    parts = lens.first_order([LayerVector(1, v) for v in (one, two, one + two, 100 * one)]).mean
    size = float(parts[2].norm())
    assert float((parts[0] + parts[1] - parts[2]).norm()) < 5e-3 * size
    assert float((100 * parts[0] - parts[3]).norm()) < 1e-4 * float(parts[3].norm())


def test_packed_and_plain_lenses_agree(lens: JLens) -> None:
    vectors = [LayerVector(layer, random_vector(layer)) for layer in (2, 0)]
    packed, plain = (lens.first_order(vectors, plainly=plainly) for plainly in (False, True))
    assert float((packed.mean - plain.mean).norm()) < 2e-3 * float(plain.mean.norm())
    torch.testing.assert_close(packed.linear_cosines, plain.linear_cosines, atol=1e-4, rtol=0)


def test_the_linear_range_ends_before_the_first_strength_that_is_not_linear() -> None:
    n = len(LINEAR_STRENGTHS)
    rows = [[0.999, 0.995, 0.98, *[0.999] * (n - 3)], [0.9] * n, [1.0] * n]
    cosines = torch.tensor([rows, [[0.9] * n] * 3], dtype=torch.float64)
    found = FirstOrder(torch.zeros(3, 1, 2), cosines)
    assert found.linear_up_to == [LINEAR_STRENGTHS[1], None, LINEAR_STRENGTHS[-1]]
    assert found.linear_up_to_by_token == [None, None, None]


def test_on_a_random_model_the_change_leaves_the_first_order_one_as_the_strength_grows(lens: JLens) -> None:
    of_mean, of_tokens = lens.first_order([LayerVector(0, random_vector(9))]).linear_cosines[:, 0]
    assert of_tokens[0] > 0.99 and of_tokens[0] > of_tokens[3] > of_tokens[-1] and of_mean[0] > of_mean[-1]


def test_random_vectors_are_the_same_for_a_seed_and_differ_between_layers() -> None:
    first, again = (random_vectors([1, 2], D_MODEL, 2, seed=3) for _ in range(2))
    assert [one.layer for one in first] == [1, 1, 2, 2]
    assert all(torch.equal(one.vector, other.vector) for one, other in zip(first, again, strict=True))
    assert not torch.equal(first[0].vector, first[2].vector)
