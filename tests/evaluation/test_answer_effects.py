"""What steering does to free answers: numbers by hand, questions paired, and where text falls apart."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from utils.behaviors import Metric
from utils.data.estimates import Estimate
from utils.evaluation.answer_effects import (
    AnswerPoint,
    AnswerValues,
    Fluency,
    FluencyRange,
    by_condition,
    measure_answers,
)
from utils.evaluation.answer_metrics import measures_of
from utils.evaluation.answer_table import interval, state
from utils.evaluation.paired_tests import paired_tests
from utils.figures.answers import answers_table, plot_answers
from utils.files.tables import read_table
from utils.settings import SteeringSettings

SENTIMENT = measures_of(Metric("sentiment"))
WORDS = measures_of(Metric("words", words=("sea",)))


def answers(multiplier: float, values: dict[str, float], layer: int = 14, **more: Any) -> AnswerValues:
    """Measured answers; `values` is the sentiment by question."""
    given = {key: more.pop(key) for key in ("perplexity", "distinct_2") if key in more}
    settings = SteeringSettings(layer, multiplier, "joy", "open_ended", model_size="135m", **more)
    n = len(values)
    columns = {
        "sentiment": np.array(list(values.values())),
        "n_words": np.full(n, 30.0),
        "distinct_2": np.full(n, given.get("distinct_2", 0.9)),
    }
    return AnswerValues(settings, tuple(values), columns, np.full(n, given.get("perplexity", 2.0)), 0)


def test_changes_are_taken_on_the_same_questions() -> None:
    base = answers(0.0, {"a": 0.1, "b": 0.2, "c": 0.3, "d": math.nan})
    steered = answers(1.0, {"d": 0.9, "c": 0.7, "b": 0.5, "a": 0.3})
    unsteered, point = measure_answers([steered, base], SENTIMENT, seed=0)
    (effect,) = point.effects
    assert point.settings.multiplier == 1
    assert (effect.mean.value, effect.mean.n) == (pytest.approx(0.6), 4)
    assert (effect.change.value, effect.change.n) == (pytest.approx(0.3), 3)  # 0.2, 0.3, 0.4; d has no other half
    assert 0.05 < effect.p_value < 1 and not effect.holds  # all three the right way, but three
    assert (unsteered.effects[0].mean.value, unsteered.effects[0].mean.n) == (pytest.approx(0.2), 3)
    assert not unsteered.effects[0].change.exists and math.isnan(unsteered.effects[0].p_value)


def test_the_test_of_a_change_is_paired_and_corrected_for_all_strengths() -> None:
    rng = np.random.default_rng(0)
    base = {f"q{i}": value for i, value in enumerate(rng.uniform(-0.8, 0.4, 24))}
    files = [answers(0.0, base)]
    for multiplier, mean in ((1.0, 0.2), (2.0, 0.02)):
        files.append(answers(multiplier, {key: value + rng.normal(mean, 0.2) for key, value in base.items()}))
    _, moved, unmoved = (point.effects[0] for point in measure_answers(files, SENTIMENT, 0))
    differences = np.stack([file.values["sentiment"] - files[0].values["sentiment"] for file in files[1:]])
    tests = paired_tests(differences, 0)
    assert [moved.p_value, unmoved.p_value] == tests.p_value.tolist()
    assert [moved.p_family, unmoved.p_family] == tests.p_family.tolist()
    assert moved.holds and not unmoved.holds
    assert 0 < moved.change.low < moved.change.value < moved.change.high
    assert moved.change.value == pytest.approx(differences[0].mean())


def test_multiplier_0_serves_for_all_layers_and_kinds_of_vectors_but_not_for_other_prompts() -> None:
    base = answers(0.0, {"a": 0.0, "b": 0.0}, layer=3)
    answer_vector = answers(1.0, {"a": 0.5, "b": 0.5}, read="answer")
    prompted = answers(1.0, {"a": 0.5, "b": 0.5}, system_prompt="pos")
    everything = [base, answer_vector, prompted]
    groups = by_condition(everything)
    assert sorted(len(group) for group in groups) == [1, 1, 1]
    changes = {
        point.settings: point.effects[0].change.value
        for group in groups
        for point in measure_answers(group, SENTIMENT, 0, everything)
    }
    assert changes[answer_vector.settings] == 0.5
    assert math.isnan(changes[prompted.settings])


def test_a_share_has_wilsons_interval() -> None:
    file = answers(0.0, {"a": 0, "b": 0, "c": 0})
    file.values.update({"has_match": np.array([1.0, 0.0, math.nan]), "matches_per_100_words": np.zeros(3)})  # type: ignore[attr-defined]
    [point] = measure_answers([file], WORDS, 0)
    share = point.effects[0].mean
    assert (share.value, share.n, share.n_total) == (0.5, 2, 3)
    assert (share.low, share.high) == (pytest.approx(0.0945, abs=1e-4), pytest.approx(0.9055, abs=1e-4))


@pytest.mark.parametrize(
    ("perplexity", "distinct_2", "n_empty", "expected"),
    [
        (7.9, 0.64, 0, ()),
        (8.1, 0.9, 0, ("perplexity",)),
        (2.0, 0.62, 0, ("distinct-2",)),
        (20.0, 0.1, 0, ("perplexity", "distinct-2")),
        (math.nan, 0.9, 0, ()),
        (2.0, 0.9, 10, ()),
        (2.0, math.nan, 11, ("empty",)),
    ],
)
def test_text_falls_apart_outside_the_range_of_the_unsteered_answers(
    perplexity: float, distinct_2: float, n_empty: int, expected: tuple[str, ...]
) -> None:
    limits = FluencyRange.beside(Fluency(2.3, 0.9, 30, 20, 0))  # 3 x 2.3 is below the floor of 8; 0.7 x 0.9 is 0.63
    assert limits.faults(Fluency(perplexity, distinct_2, 30, 20, n_empty)) == expected


def test_sampled_answers_may_be_less_likely_before_they_count_as_fallen_apart() -> None:
    limits = FluencyRange.beside(Fluency(10.0, 0.95, 30, 20, 0))
    assert limits.faults(Fluency(29.0, 0.95, 30, 20, 0)) == ()
    assert limits.faults(Fluency(31.0, 0.95, 30, 20, 0)) == ("perplexity",)


def test_without_unsteered_answers_no_range_is_known() -> None:
    [point] = measure_answers([answers(1.0, {"a": 0.1, "b": 0.2}, perplexity=500.0)], SENTIMENT, 0)
    assert point.range is None and point.faults == ()
    assert state(point) == "no multiplier 0 beside it"
    assert answers_table([point]).rows[0][-1] == "unknown"


def test_intervals_in_words() -> None:
    nan = math.nan
    assert interval(Estimate(0.5, 0.4, 0.6, 3, 3), "+") == "+0.50 [+0.40, +0.60]"
    assert interval(Estimate(0.5, nan, nan, 1, 1)) == "0.50"
    assert interval(Estimate(nan, nan, nan, 0, 1)) == "-"


def points_of(layers: range, multipliers: tuple[float, ...]) -> list[AnswerPoint]:
    files = [
        answers(m, {f"q{i}": 0.1 * m + 0.01 * i for i in range(8)}, layer, perplexity=2 + m * m)
        for layer in layers
        for m in multipliers
    ]
    return measure_answers(files, SENTIMENT, 0)


@pytest.mark.parametrize(("layers", "by_layer"), [(range(14, 15), False), (range(3), False), (range(9), True)])
def test_the_figure_marks_what_falls_apart_and_has_its_data_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: range, by_layer: bool
) -> None:
    drawn: list[Any] = []
    from utils.figures import answers as figures

    real = figures.save_figure
    monkeypatch.setattr(figures, "save_figure", lambda figure, *rest: drawn.append(figure) or real(figure, *rest))
    paths = plot_answers(tmp_path / "answers_x", "Joy", points_of(layers, (-1.0, 0.0, 1.0, 3.0)))
    assert [path.suffix for path in paths] == [".png", ".pdf", ".txt"]
    crosses = {
        (float(x), round(float(y), 6))
        for ax in drawn[0].axes
        for line in ax.lines
        if line.get_marker() == "x"
        for x, y in zip(*line.get_data(), strict=True)
    }
    assert {x for x, _ in crosses} == (set(map(float, layers)) if by_layer else {3.0})
    assert {y for _, y in crosses} == {0.335, 11.0, 0.9}  # the metric, perplexity 2 + 9, distinct-2
    rows = read_table(paths[-1])
    assert len(rows) == len(layers) * 4 * 3  # a measure of its own, length, distinct-2
    assert {row["falls_apart"] for row in rows if row["multiplier"] == "3.0"} == {"perplexity"}
    assert {row["falls_apart"] for row in rows if row["multiplier"] != "3.0"} == {""}
    assert {row["highest_perplexity"] for row in rows} == {"8.0"}
