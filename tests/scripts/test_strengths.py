"""Strengths: the added norm as a share of the layer's median residual norm."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import prompting_with_steering
from tests.models import N_LAYERS, build_wrapper, random_vector
from tests.roots import error_lines, results, write_vector
from utils.data.records import load_open_ended_questions
from utils.paths import REPOSITORY, DataPaths
from utils.settings import parse_result_name

NEUTRAL = DataPaths(REPOSITORY).neutral_prompts()


def norms_by_hand() -> list[float]:
    wrapper = build_wrapper()
    norms: list[list[float]] = [[] for _ in range(N_LAYERS)]
    for question in load_open_ended_questions(NEUTRAL):
        for layer, stream in enumerate(wrapper.capture(wrapper.chat_format.encode(question))):
            norms[layer] += [float(token.double().norm()) for token in stream[1:]]
    return [float(torch.tensor(of_layer, dtype=torch.float64).median()) for of_layer in norms]


def test_a_strength_adds_its_share_of_the_residual_norm(evaluate: Callable[..., int], steered_root: Path) -> None:
    assert evaluate("--layers", 1, "--strengths", -0.5, 0, 0.5) == 0
    by_strength = results(steered_root)
    [name] = [name for name in by_strength if "strength=0.5" in name]
    assert name.startswith("results_layer=1_strength=0.5_behavior=sycophancy_type=ab")
    assert not any("multiplier" in name for name in by_strength if "=0.0_" not in name)
    vector = random_vector(1)
    multiplier = 0.5 * norms_by_hand()[1] / float(vector.double().norm())
    assert evaluate("--layers", 1, "--multipliers", multiplier) == 0
    [equal] = [name for name in results(steered_root) if name not in by_strength]
    for one, other in zip(results(steered_root)[equal], by_strength[name], strict=True):
        assert one["a_prob"] == pytest.approx(other["a_prob"], rel=1e-5)


def test_strength_0_and_multiplier_0_are_one_condition(evaluate: Callable[..., int], steered_root: Path) -> None:
    assert evaluate("--layers", 1, "--strengths", 0) == 0
    assert evaluate("--layers", 2, "--multipliers", 0) == 0
    one, other = results(steered_root)
    assert parse_result_name(one).unsteered() == parse_result_name(other).unsteered()
    assert results(steered_root)[one] == results(steered_root)[other]


def test_the_norms_are_kept_with_what_they_depend_on(evaluate: Callable[..., int], steered_root: Path) -> None:
    assert evaluate("--layers", 1, "--strengths", 0.1) == 0
    path = DataPaths(steered_root).residual_norms("tiny-chat")
    kept = json.loads(path.read_text())
    assert kept["median_norms"] == pytest.approx(norms_by_hand(), rel=1e-5)
    kept["median_norms"][1] *= 2  # taken as they are while what they depend on is the same
    path.write_text(json.dumps(kept))
    assert evaluate("--layers", 1, "--strengths", 0.2) == 0
    assert json.loads(path.read_text()) == kept
    path.write_text(json.dumps({**kept, "prompts_sha256": "other"}))
    assert evaluate("--layers", 1, "--strengths", 0.3) == 0
    assert json.loads(path.read_text())["median_norms"] == pytest.approx(norms_by_hand(), rel=1e-5)


def test_a_vector_of_zeros_has_no_strength(
    evaluate: Callable[..., int], steered_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_vector(steered_root, "sycophancy", 1, torch.zeros(32))
    assert evaluate("--layers", 1, "--strengths", 0.1) == 2
    [line] = error_lines(capsys.readouterr().err)
    assert "a vector of zeros has no strength" in line


def test_strengths_and_multipliers_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert prompting_with_steering.main(["--strengths", "0.1", "--multipliers", "1"]) == 2
    assert "not allowed with" in capsys.readouterr().err
