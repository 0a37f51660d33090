"""Every operator against its formula, in packed, batched and cached passes, and what leaves bits untouched."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from llama_wrapper import LlamaWrapper
from tests.models import D_MODEL, build_wrapper, random_vector
from utils.errors import UserError
from utils.model.answer_rows import AnswerPair
from utils.model.generation import GenerationRow
from utils.model.operators import NAMES, OPERATORS, Cap, Parts, Rotate, operator_named, second_axis
from utils.model.pairs import encode_answer
from utils.model.side_effects import measure_kl, neutral_answers
from utils.model.steering import Operator, Steering, Steerings, check_range
from utils.settings import ADDING_OPERATORS

VECTOR, SECOND = random_vector(1, 2.0), random_vector(2)
UNIT = VECTOR / VECTOR.norm()
HIDDEN = torch.randn(3, 5, D_MODEL, generator=torch.Generator().manual_seed(3)) * 4
QUANTILES = (-1.5, 1.0)
QUESTIONS = ("What is the sea?", "Do you think that the user is not the answer of the question?", "Why?")


def operator(name: str) -> Operator:
    return operator_named(name, Parts(lambda: QUANTILES, lambda: SECOND))


def component(hidden: Tensor) -> Tensor:
    return hidden @ UNIT


def across() -> Tensor:
    """The plane's second axis, by a QR decomposition."""
    axis = torch.linalg.qr(torch.stack([VECTOR, SECOND]).T.double())[0][:, 1].float()
    return axis if float(axis @ SECOND) > 0 else -axis


# --- the formulas ---


def test_clamp_sets_the_component_and_leaves_what_is_orthogonal() -> None:
    edited = operator("clamp")(HIDDEN, VECTOR, -0.5)
    torch.testing.assert_close(component(edited), torch.full((3, 5), float(-0.5 * VECTOR.norm())), rtol=0, atol=1e-4)
    rest = [hidden - component(hidden)[..., None] * UNIT for hidden in (HIDDEN, edited)]
    torch.testing.assert_close(*rest, rtol=0, atol=1e-5)
    torch.testing.assert_close(operator("clamp")(edited, VECTOR, -0.5), edited, rtol=0, atol=1e-5)


def test_ablate_takes_a_share_of_the_component_away() -> None:
    torch.testing.assert_close(component(operator("ablate")(HIDDEN, VECTOR, 1.0)), torch.zeros(3, 5), rtol=0, atol=1e-5)
    torch.testing.assert_close(component(operator("ablate")(HIDDEN, VECTOR, 0.25)), 0.75 * component(HIDDEN))


def test_cap_touches_only_tokens_beyond_the_quantile_of_its_side() -> None:
    before = component(HIDDEN)
    assert 0 < int((before > 1.0).sum()) < 15 and 0 < int((before < -1.5).sum()) < 15
    for multiplier, wanted in ((1.0, before.clamp(max=1.0)), (-1.0, before.clamp(min=-1.5))):
        edited = operator("cap")(HIDDEN, VECTOR, multiplier)
        torch.testing.assert_close(component(edited), wanted, rtol=0, atol=1e-5)
        kept = wanted == before
        assert torch.equal(edited[kept], HIDDEN[kept])
        torch.testing.assert_close(operator("cap")(edited, VECTOR, multiplier), edited, rtol=0, atol=1e-5)
    half = component(Cap(*QUANTILES)(HIDDEN, VECTOR, 0.5))
    torch.testing.assert_close(half, before - 0.5 * (before - 1.0).clamp(min=0), rtol=0, atol=1e-5)


def test_adding_may_keep_the_norm_of_every_token() -> None:
    edited = operator("add_keep_norm")(HIDDEN, VECTOR, 1.5)
    torch.testing.assert_close(edited.norm(dim=-1), HIDDEN.norm(dim=-1))
    moved = HIDDEN + 1.5 * VECTOR
    torch.testing.assert_close(torch.cosine_similarity(edited, moved, dim=-1), torch.ones(3, 5))


@pytest.mark.parametrize("name", ["rotate", "rotate_by"])
@pytest.mark.parametrize("multiplier", [1.0, -1.0, 0.3, -0.6])
def test_a_rotation_keeps_the_norm_and_what_is_outside_its_plane(name: str, multiplier: float) -> None:
    edited, axes = operator(name)(HIDDEN, VECTOR, multiplier), torch.stack([UNIT, across()])
    torch.testing.assert_close(edited.norm(dim=-1), HIDDEN.norm(dim=-1))
    outside = [hidden - (hidden @ axes.T) @ axes for hidden in (HIDDEN, edited)]
    torch.testing.assert_close(*outside, rtol=0, atol=1e-5)


def test_the_rotations_are_those_of_the_formula() -> None:
    axes = torch.stack([UNIT, across()])
    before = HIDDEN @ axes.T  # [3, 5, 2]
    length = before.norm(dim=-1)
    for multiplier, side in ((1.0, 1.0), (-1.0, -1.0)):  # angular steering at 0 and 180 degrees
        inside = operator("rotate")(HIDDEN, VECTOR, multiplier) @ axes.T
        torch.testing.assert_close(inside, torch.stack([side * length, torch.zeros(3, 5)], dim=-1), rtol=0, atol=1e-4)
    half = operator("rotate")(HIDDEN, VECTOR, 0.5) @ axes.T
    angles = [torch.atan2(found[..., 1], found[..., 0]) for found in (before, half)]
    torch.testing.assert_close(angles[1], angles[0] / 2)
    turned = operator("rotate_by")(HIDDEN, VECTOR, 0.5) @ axes.T
    c = math.cos(math.pi / 4)
    torch.testing.assert_close(turned, before @ torch.tensor([[c, c], [-c, c]]), rtol=1e-4, atol=1e-4)


def test_the_plane_s_second_axis_is_where_the_layers_vectors_differ_most() -> None:
    base, axis = torch.eye(D_MODEL)[0], torch.eye(D_MODEL)[1]
    found = second_axis([base + x * axis for x in (-0.2, -0.1, 0.1, 0.2)])
    assert abs(float(found @ axis)) == pytest.approx(1.0, abs=1e-3)
    for alone in ([base], [base, 2 * base]):
        with pytest.raises(UserError, match="rotate needs vectors"):
            second_axis(alone)


# --- in the model's passes ---


def pairs_of(wrapper: LlamaWrapper) -> list[AnswerPair]:
    encode = wrapper.chat_format
    return [
        AnswerPair(encode_answer(encode, question, "the sea is not the user"), encode_answer(encode, question, "Yes"))
        for question in QUESTIONS
    ]


def steerings_of(name: str) -> list[Steerings]:
    """With another operator at another layer beside it, and alone at two layers."""
    edit = operator(name)
    alone = [Steering(layer, sign * 0.7, VECTOR, edit) for layer in (1, 3) for sign in (1, -1)]
    return [None, *alone, [Steering(2, 1.0, random_vector(5)), Steering(0, 0.5, VECTOR, edit)]]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_every_operator_gives_the_same_packed_batched_and_plain(name: str, architecture: str) -> None:
    wrapper, steerings = build_wrapper(architecture), steerings_of(name)
    prompts = [
        wrapper.chat_format.encode_choice(f"{question}\n\nChoices:\n (A) Yes\n (B) No") for question in QUESTIONS
    ]
    letters = [[wrapper.chat_format.letter_id(letter) for letter in "AB"]] * len(prompts)
    packed = dict(wrapper.score(prompts, steerings, letters))
    for index, plain in wrapper.score_plainly(prompts, steerings, letters):
        torch.testing.assert_close(packed[index], plain, rtol=1e-4, atol=1e-7)
    pairs = pairs_of(wrapper)
    packed = dict(wrapper.score_answers(pairs, steerings))
    for index, plain in wrapper.score_answers_plainly(pairs, steerings):
        torch.testing.assert_close(packed[index], plain, rtol=1e-4, atol=1e-5)
        assert any(not torch.allclose(plain[0], alone) for alone in plain[1:5])
    rows = [GenerationRow(pair.matching, row) for pair in pairs for row in steerings]
    cached = dict(wrapper.generate(rows, 4))
    for index, uncached in wrapper.generate(rows, 4, use_cache=False):
        assert cached[index].token_ids == uncached.token_ids


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_multiplier_0_leaves_every_bit(name: str, dtype: torch.dtype) -> None:
    hidden = HIDDEN.to(dtype)
    hidden[0, 0, :2] = torch.tensor([-0.0, 1e-7])
    bits = hidden.clone().view(torch.uint8)
    assert torch.equal(Steering(0, 0.0, VECTOR, operator(name)).edit(hidden).view(torch.uint8), bits)


@pytest.mark.parametrize("name", NAMES)
def test_a_small_multiplier_changes_little_and_the_dtype_stays(name: str) -> None:
    edited = operator(name)(HIDDEN.half(), VECTOR, 1e-3)
    assert edited.dtype == torch.float16
    if name != "clamp":  # which sets, however small the value
        assert float((edited.float() - HIDDEN).norm(dim=-1).max()) < 0.02 * float(HIDDEN.norm(dim=-1).min())


def test_kl_of_several_steerings_at_once_is_that_of_one_pass_with_both() -> None:
    wrapper = build_wrapper()
    [answer] = neutral_answers(wrapper, [wrapper.chat_format.encode(QUESTIONS[0])])
    high, low = Steering(3, 0.5, random_vector(4)), Steering(1, 0.5, VECTOR, operator("rotate"))
    found = measure_kl(wrapper, [answer], [high, (high, low), None, low]).kl
    assert torch.equal(found[2], torch.zeros(answer.n_answer))
    logits = []
    for row in (None, (low, high)):
        hidden = wrapper.capture(answer, row)[-1]
        normed = wrapper.model.get_decoder().norm(hidden)  # type: ignore[operator]
        logits.append(wrapper.model.get_output_embeddings()(normed).double().log_softmax(-1).detach())
    places = slice(len(answer) - answer.n_answer - 1, len(answer) - 1)
    expected = (logits[0].exp() * (logits[0] - logits[1])).sum(-1)[places]
    torch.testing.assert_close(found[1].double(), expected, rtol=1e-3, atol=1e-6)


# --- ranges and names ---


def at(name: str, multiplier: float, vector: Tensor) -> Steering:
    return Steering(1, multiplier, vector, operator(name))


@pytest.mark.parametrize("name", ["ablate", "cap", "rotate", "rotate_by"])
def test_what_does_not_depend_on_the_vector_s_length_is_not_refused_for_it(name: str) -> None:
    check_range([at(name, 1.0, VECTOR * 1e25)], torch.float16)


@pytest.mark.parametrize("name", ADDING_OPERATORS)
def test_what_adds_the_vector_is_refused_beyond_the_range(name: str) -> None:
    check_range([at(name, 1.0, VECTOR * 100)], torch.float16)
    with pytest.raises(UserError, match="what is put in then has norm"):
        check_range([at(name, 1.0, VECTOR * 1e5)], torch.float16)


@pytest.mark.parametrize("name", ["ablate", "cap"])
def test_a_share_that_no_arithmetic_holds_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="multiplier 1e"):
        check_range([at(name, 1e30, VECTOR)], torch.float32)


def test_an_unknown_operator_is_refused_with_the_nearest_name() -> None:
    assert tuple(OPERATORS) == NAMES
    with pytest.raises(UserError, match=r"unknown operator 'rotat'; did you mean rotate\? .*choose from: add, "):
        operator("rotat")


def test_parts_are_made_only_for_the_operators_that_need_them() -> None:
    def refuse() -> Tensor:
        raise AssertionError("not needed")

    nothing = Parts(refuse, refuse)  # type: ignore[arg-type]
    made: list[Callable[..., Tensor]] = [operator_named(name, nothing) for name in (*ADDING_OPERATORS, "ablate")]
    assert len(made) == 4 and isinstance(operator("rotate_by"), Rotate)
