"""Choosing among candidate directions: the published choices, the rule's bounds, files of scores, and the scores."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from saes import refusal_direction
from tests.models import N_LAYERS, build_wrapper, decoder_blocks, random_vector
from tests.reference import carried_path
from utils.errors import UserError
from utils.model.ablation import ablation
from utils.saes.directions import encode_all
from utils.saes.selection import Evaluator, Scores, SelectionRule, random_direction, read_evaluations, select

MODELS = ("qwen-1_8b-chat", "llama-2-7b-chat-hf", "yi-6b-chat")


@pytest.mark.parametrize("model", MODELS)
def test_the_rule_gives_the_published_choice_and_keeps_as_many(model: str) -> None:
    path = carried_path("refusal_direction") / f"{model}.json"
    stored, published = read_evaluations(path), json.loads(path.read_text())
    selection = select(stored.candidates, SelectionRule(stored.n_layers))
    assert (selection.chosen.position, selection.chosen.layer) == (
        published["chosen"]["pos"],
        published["chosen"]["layer"],
    )
    assert len(selection.kept) == published["n_kept"]


def test_the_choice_is_printed_without_a_model(capsys: pytest.CaptureFixture[str], loading_is_forbidden: None) -> None:
    path = carried_path("refusal_direction") / "qwen-1_8b-chat.json"
    assert refusal_direction.main(["--evaluations", str(path)]) == 0
    assert "position -2, input of block 15 (--layer 14)" in capsys.readouterr().out


GOOD = Scores(-1, 3, -2.0, 1.0, 0.05)


@pytest.mark.parametrize(
    ("other", "is_kept"),
    [
        (Scores(-1, 3, -3.0, 0.0, 0.1), True),  # at both bounds
        (Scores(-1, 3, -3.0, -0.01, 0.05), False),
        (Scores(-1, 3, -3.0, 1.0, 0.11), False),
        (Scores(-1, 7, -3.0, 1.0, 0.05), True),  # int(0.8 x 10) = 8 is the first that is left out
        (Scores(-1, 8, -3.0, 1.0, 0.05), False),
        (Scores(-1, 3, None, 1.0, 0.05), False),
        (Scores(-1, 3, math.nan, 1.0, 0.05), False),
    ],
)
def test_each_bound_of_the_rule_excludes_what_is_beyond_it(other: Scores, is_kept: bool) -> None:
    selection = select([GOOD, other], SelectionRule(10))
    assert (other in selection.kept) is is_kept
    assert selection.chosen == (other if is_kept else GOOD)


def test_where_nothing_is_kept_the_message_says_what_would_be_allowed() -> None:
    with pytest.raises(
        UserError, match=r"the lowest is 0\.420 \(position -2, input of block 4\): allow it with --max_kl"
    ):
        select([Scores(-2, 4, 0.0, 1.0, 0.42), Scores(-1, 4, 0.0, 1.0, 0.9)], SelectionRule(10))
    with pytest.raises(UserError, match="none of 1 candidates brings refusal about"):
        select([Scores(-2, 4, 0.0, -1.0, 0.01)], SelectionRule(10))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "expected a list of candidates' scores"),
        ("[]", "expected a list of candidates' scores"),
        ('[{"position": -1}]', "item 0: expected the keys position, layer"),
        (
            '[{"position": -1, "layer": 2.5, "refusal_score": 1, "steering_score": 1, "kl_div_score": 1}]',
            "whole numbers",
        ),
        (
            '[{"position": -1, "layer": 2, "refusal_score": "x", "steering_score": 1, "kl_div_score": 1}]',
            "must be numbers",
        ),
        ("[", "not valid JSON"),
    ],
)
def test_a_broken_file_of_scores_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    path = tmp_path / "scores.json"
    path.write_text(content)
    assert refusal_direction.main(["--evaluations", str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error and "scores.json" in error and "Traceback" not in error


def test_scores_equal_those_of_plain_passes_in_float64() -> None:
    """Bypass, induce and KL of one candidate, one prompt at a time, with numpy's softmax."""
    model = build_wrapper("llama")
    harmful = encode_all(model, ["What is that?", "Do you agree?"])
    harmless = encode_all(model, ["Is the answer not that?", "What are you?"])
    tokens, direction, layer = [5, 9], random_vector(3), 1
    found = Evaluator(model, harmful, harmless, tokens, "zero").measure(direction, layer, None)

    def metric(logits: np.ndarray) -> float:
        p = np.exp(logits - logits.max())
        p /= p.sum()
        mass = p[tokens].sum()
        return float(np.log(mass + 1e-8) - np.log(1 - mass + 1e-8))

    @torch.no_grad()
    def behind(ids: tuple[int, ...]) -> np.ndarray:
        return model.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double().numpy()

    def ablated(ids: tuple[int, ...]) -> np.ndarray:
        from utils.model.steering import RowSteering

        with RowSteering([ablation(direction, N_LAYERS)], model.layers).applied():
            return behind(ids)

    def added(ids: tuple[int, ...]) -> np.ndarray:
        handle = decoder_blocks(model.model)[layer].register_forward_hook(lambda _, __, output: output + direction)
        try:
            return behind(ids)
        finally:
            handle.remove()

    def kl(ids: tuple[int, ...]) -> float:
        p, q = (np.exp(row - row.max()) / np.exp(row - row.max()).sum() for row in (behind(ids), ablated(ids)))
        return float((p * (np.log(p + 1e-6) - np.log(q + 1e-6))).sum())

    np.testing.assert_allclose(found.bypass, [metric(ablated(prompt.ids)) for prompt in harmful], rtol=1e-4)
    np.testing.assert_allclose(found.induce, [metric(added(prompt.ids)) for prompt in harmless], rtol=1e-4)
    np.testing.assert_allclose(found.kl, [kl(prompt.ids) for prompt in harmless], rtol=1e-3, atol=1e-6)


def test_a_random_direction_has_the_norm_of_its_model_and_comes_again_with_its_seed() -> None:
    like = random_vector(1, 5.0)
    drawn = random_direction(like, 3)
    assert float(drawn.norm()) == pytest.approx(float(like.norm()), rel=1e-6)
    assert torch.equal(drawn, random_direction(like, 3)) and not torch.equal(drawn, random_direction(like, 4))
