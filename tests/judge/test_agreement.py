"""Agreement of two sets of scores, against computations of its own and the published scores."""

import json
import math
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from tests.answers import put_answers
from tests.reference import reference_path
from tests.roots import put_json
from utils.behaviors import published_behaviors
from utils.judge.agreement import compare_folders, compute_agreement, counts, pair_scores, table
from utils.settings import SteeringSettings

SETTINGS = SteeringSettings(0, 1.0, "sycophancy", "open_ended", model_size="7b")


def by_hand(a: list[float], b: list[float]) -> dict[str, float]:
    """The same statistics in plain Python: sums, and ranks with ties at their mean."""

    def correlation(x: list[float], y: list[float]) -> float:
        mx, my = sum(x) / len(x), sum(y) / len(y)
        covariance = sum((p - mx) * (q - my) for p, q in zip(x, y, strict=True))
        return covariance / math.sqrt(sum((p - mx) ** 2 for p in x) * sum((q - my) ** 2 for q in y))

    def ranks(x: list[float]) -> list[float]:
        return [sum(other < value for other in x) + (x.count(value) + 1) / 2 for value in x]

    differences = [q - p for p, q in zip(a, b, strict=True)]
    return {
        "pearson": correlation(a, b),
        "spearman": correlation(ranks(a), ranks(b)),
        "mean": sum(differences) / len(differences),
        "within": sum(abs(difference) <= 1 for difference in differences) / len(differences),
    }


def test_the_statistics_are_those_of_a_computation_by_hand() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 11, 40).astype(float)
    b = np.clip(a + rng.normal(1.0, 2.0, 40).round(1), 0, 10)
    expected, found = by_hand(a.tolist(), b.tolist()), compute_agreement(a, b)
    assert found.n == 40
    assert found.pearson == pytest.approx(expected["pearson"], abs=1e-12)
    assert found.spearman == pytest.approx(expected["spearman"], abs=1e-12)
    assert found.mean_difference == pytest.approx(expected["mean"], abs=1e-12)
    assert found.within_1 == pytest.approx(expected["within"], abs=1e-12)
    center, half = math.atanh(expected["pearson"]), NormalDist().inv_cdf(0.975) / math.sqrt(40 - 3)  # Fisher 1921
    interval = math.tanh(center - half), math.tanh(center + half)
    assert (found.pearson_low, found.pearson_high) == pytest.approx(interval, abs=1e-12)


@pytest.mark.parametrize("b", [[], [3.0], [5.0, 5.0, 5.0]])
def test_what_is_not_defined_is_nan_and_shown_as_a_dash(b: list[float]) -> None:
    found = compute_agreement(np.arange(len(b), dtype=float), np.array(b))
    assert math.isnan(found.pearson) and math.isnan(found.spearman)
    assert math.isnan(found.mean_difference) == (not b)


def test_a_perfect_correlation_has_an_interval_without_width_and_three_pairs_have_none() -> None:
    perfect = compute_agreement(np.arange(10.0), 2 * np.arange(10.0))
    assert (perfect.pearson, perfect.pearson_low, perfect.pearson_high) == pytest.approx((1.0, 1.0, 1.0))
    three = compute_agreement(np.array([1.0, 2.0, 4.0]), np.array([1.0, 3.0, 2.0]))
    assert math.isfinite(three.pearson) and math.isnan(three.pearson_low) and math.isnan(three.pearson_high)


def test_records_pair_by_index_where_question_and_answer_are_equal() -> None:
    def record(answer: str, score: float | None, question: str = "q") -> dict:
        return {"question": question, "model_output": answer, "score": score}

    a = [record("1", 1.0), record("2", 2.0), record("3", None), record("4", 4.0), record("5", 5.0), record("6", 6.0)]
    b = [record("1", 3.0), record("other", 2.0), record("3", 3.0), record("4", None), record("5", 5.0, "other")]
    del b[3]["score"]  # as in the published files
    pairs = pair_scores(a, b)
    assert (pairs.a, pairs.b) == ([1.0], [3.0])
    assert (pairs.n_unscored_a, pairs.n_unscored_b, pairs.n_unmatched) == (1, 1, 3)


@pytest.fixture(scope="module")
def published() -> Path:
    return reference_path("caa", "results", "open_ended_scores")


def published_scores(folder: Path) -> dict[str, list[list[float | None]]]:
    """behavior -> file -> scores."""
    found: dict[str, list[list[float | None]]] = {}
    for path in sorted(folder.rglob("results_*.json")):
        found.setdefault(path.parent.name, []).append([r.get("score") for r in json.loads(path.read_text())])
    return found


def test_published_scores_agree_with_themselves(published: Path) -> None:
    comparison = compare_folders(published, published)
    scores = published_scores(published)
    assert set(comparison.by_behavior) == set(scores) == set(published_behaviors())
    for behavior, pairs in comparison.by_behavior.items():
        expected = [score for file in scores[behavior] for score in file if score is not None]
        assert pairs.a == pairs.b == expected
        agreement = compute_agreement(np.array(pairs.a), np.array(pairs.b))
        assert agreement.pearson == pytest.approx(1.0) and agreement.spearman == pytest.approx(1.0)
        assert (agreement.mean_difference, agreement.within_1) == (0.0, 1.0)
    rows = table(comparison).splitlines()
    assert rows[-1].split()[:2] == ["all", "4833"]
    assert len(rows) == 9
    assert "6 unscored in A, 6 unscored in B" in counts(comparison)


def test_a_perturbed_copy_agrees_as_a_computation_of_its_own_says(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    scored = tmp_path / "scored"
    for layer in range(4):
        name = replace(SETTINGS, layer=layer).result_name
        scores = [None if item == layer else float(rng.integers(0, 11)) for item in range(50)]
        put_json(scored / name, [{"question": f"{i}?", "model_output": "a", "score": s} for i, s in enumerate(scores)])
    a_all: list[float] = []
    b_all: list[float] = []
    for path in sorted(scored.glob("results_*.json")):
        records = json.loads(path.read_text())
        for record in records:
            if record.get("score") is not None:
                a_all.append(record["score"])
                record["score"] = float(np.clip(record["score"] + rng.integers(-2, 4), 0, 10))
                b_all.append(record["score"])
        put_json(tmp_path / "perturbed" / path.name, records)
    (pairs,) = compare_folders(scored, tmp_path / "perturbed").by_behavior.values()
    found, expected = compute_agreement(np.array(pairs.a), np.array(pairs.b)), by_hand(a_all, b_all)
    assert found.n == len(a_all)
    assert found.pearson == pytest.approx(expected["pearson"], abs=1e-12)
    assert found.spearman == pytest.approx(expected["spearman"], abs=1e-12)
    assert found.mean_difference == pytest.approx(expected["mean"], abs=1e-12)
    assert found.within_1 == pytest.approx(expected["within"], abs=1e-12)


def test_files_without_a_partner_are_counted(tmp_path: Path) -> None:
    for side, layers in (("a", (1, 2)), ("b", (2, 3, 4))):
        for layer in layers:
            put_answers(tmp_path / side, "refusal", ["x"], layer)
    comparison = compare_folders(tmp_path / "a", tmp_path / "b")
    assert (comparison.n_files, len(comparison.only_a), len(comparison.only_b)) == (1, 1, 2)
    assert "1 files in both; only in A 1, only in B 2" in counts(comparison)
    assert [row.split() for row in table(comparison).splitlines()[1:]] == [
        ["refusal", "0", "-", "-", "-", "-"],
        ["all", "0", "-", "-", "-", "-"],
    ]
