"""What steering does to free answers: the behavior's metric against multiplier 0, and whether text holds together."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.data.estimates import Estimate, share_estimate
from utils.evaluation.answer_metrics import DISTINCT_2, N_WORDS, Measure
from utils.evaluation.effects import ALPHA
from utils.evaluation.metrics import FloatArray, mean_estimates
from utils.evaluation.paired_tests import paired_tests
from utils.settings import SteeringSettings

# Steering that is too strong ends in one of two ways: words that do not belong together, which the unsteered model
# finds unlikely, or loops, which it finds likely but which repeat themselves. So there is a bound for each.
PERPLEXITY_RATIO = 3.0
"""Of the unsteered answers' median perplexity: what a text may reach before it counts as fallen apart. A text about
something else is less likely to the unsteered model even where it reads well."""
PERPLEXITY_FLOOR = 8.0
"""Below this no text counts as fallen apart. On the embedded model, whose own answers have 2.3, sentences still read at
7.5 (four times a vector of the sea) and no longer at 15.9 (six times)."""
DISTINCT_2_RATIO = 0.7
"""Of the unsteered answers' mean distinct-2. Loops fall below it at once: one sentence said twice has 0.5."""
EMPTY_SHARE = 0.5
"""Share of empty answers above which there is no text left, where the unsteered ones have fewer."""


@dataclass(frozen=True)
class AnswerValues:
    """What one file of measured answers says about each answer."""

    settings: SteeringSettings
    keys: tuple[str, ...]
    """Name the answers in every file of the same questions."""
    values: Mapping[str, FloatArray]
    """By measure, [n_answers]: NaN where it is not defined. `n_words` and `distinct_2` are always there."""
    perplexity: FloatArray
    """[n_answers]; all NaN where no model was asked."""
    n_empty: int
    """Answers without any text."""


@dataclass(frozen=True)
class Fluency:
    """How well the answers under one steering hold together."""

    perplexity: float
    """Median over answers, under the model without steering; NaN where no model was asked."""
    distinct_2: float
    """Mean over answers."""
    n_words: float
    """Mean over answers."""
    n_answers: int
    n_empty: int


@dataclass(frozen=True)
class FluencyRange:
    """Where text holds together, by the unsteered answers to the same questions."""

    highest_perplexity: float
    """NaN where that of the unsteered answers is not known."""
    lowest_distinct_2: float
    most_empty: int

    @classmethod
    def beside(cls, unsteered: Fluency) -> "FluencyRange":
        return cls(
            max(PERPLEXITY_RATIO * unsteered.perplexity, PERPLEXITY_FLOOR)
            if math.isfinite(unsteered.perplexity)
            else math.nan,
            DISTINCT_2_RATIO * unsteered.distinct_2,
            max(unsteered.n_empty, math.floor(EMPTY_SHARE * unsteered.n_answers)),
        )

    def faults(self, fluency: Fluency) -> tuple[str, ...]:
        """What is out of range."""
        found = {
            "perplexity": fluency.perplexity > self.highest_perplexity,
            "distinct-2": fluency.distinct_2 < self.lowest_distinct_2,
            "empty": fluency.n_empty > self.most_empty,
        }
        return tuple(name for name, is_out in found.items() if is_out)


@dataclass(frozen=True)
class MeasuredEffect:
    """One measure under one steering."""

    measure: Measure
    mean: Estimate
    change: Estimate
    """Mean difference to multiplier 0 on the same questions; NaN at 0 or where that is missing."""
    p_value: float
    """That the change is 0, paired by question (see `utils.evaluation.paired_tests`)."""
    p_family: float
    """The same, corrected for all layers and multipliers of the condition."""

    @property
    def holds(self) -> bool:
        return self.p_family < ALPHA


@dataclass(frozen=True)
class AnswerPoint:
    """The free answers at one layer and multiplier under one condition."""

    settings: SteeringSettings
    effects: tuple[MeasuredEffect, ...]
    """Of the behavior's own metric; none where its file defines none."""
    lengths: MeasuredEffect
    """Of the number of words."""
    repetition: MeasuredEffect
    """Of distinct-2."""
    fluency: Fluency
    range: FluencyRange | None
    """None where there are no unsteered answers."""

    @property
    def faults(self) -> tuple[str, ...]:
        """What is outside the range in which text holds together; empty where nothing is, or the range is not known."""
        return self.range.faults(self.fluency) if self.range else ()


def measure_answers(
    files: Sequence[AnswerValues], own: Sequence[Measure], seed: int, others: Iterable[AnswerValues] = ()
) -> list[AnswerPoint]:
    """The points of one condition, by layer and multiplier.

    Args:
        files: That differ in layer and multiplier only.
        own: Measures of the behavior's metric.
        seed: Of resampling.
        others: Among which multiplier 0 is looked for as well: it is the same for every kind of vector.
    """
    files = sorted(files, key=lambda file: (file.settings.layer, file.settings.multiplier))
    pool = [*files, *others]
    unsteered = [_unsteered_beside(file, pool) for file in files]
    effects = [_effects(files, unsteered, measure, seed) for measure in (*own, N_WORDS, DISTINCT_2)]
    points = []
    for place, (file, beside) in enumerate(zip(files, unsteered, strict=True)):
        *of_metric, of_lengths, of_repetition = (of_measure[place] for of_measure in effects)
        limits = FluencyRange.beside(fluency_of(beside)) if beside else None
        points.append(AnswerPoint(file.settings, tuple(of_metric), of_lengths, of_repetition, fluency_of(file), limits))
    return points


def by_condition(files: Iterable[AnswerValues]) -> list[list[AnswerValues]]:
    """The files in groups that differ in layer and multiplier only, in the order of the groups' names."""
    groups: dict[SteeringSettings, list[AnswerValues]] = {}
    for file in files:
        groups.setdefault(file.settings.at(0, 0.0), []).append(file)
    return [groups[like] for like in sorted(groups, key=lambda like: like.describe())]


def fluency_of(file: AnswerValues) -> Fluency:
    return Fluency(
        _over_known(np.median, file.perplexity),
        _over_known(np.mean, file.values["distinct_2"]),
        _over_known(np.mean, file.values["n_words"]),
        len(file.keys),
        file.n_empty,
    )


def _over_known(statistic: Callable[[FloatArray], Any], values: FloatArray) -> float:
    known = values[np.isfinite(values)]
    return float(statistic(known)) if len(known) else math.nan


def _unsteered_beside(file: AnswerValues, files: Sequence[AnswerValues]) -> AnswerValues | None:
    """The answers at multiplier 0: the layer's own, or another's, since nothing is added there."""
    like = file.settings.unsteered()
    unsteered = [other for other in files if other.settings.multiplier == 0 and other.settings.unsteered() == like]
    return next((one for one in unsteered if one.settings.layer == file.settings.layer), next(iter(unsteered), None))


def _effects(
    files: Sequence[AnswerValues], unsteered: Sequence[AnswerValues | None], measure: Measure, seed: int
) -> list[MeasuredEffect]:
    keys = tuple(dict.fromkeys(key for file in files for key in file.keys))
    values = np.stack([_in_order(file, measure.name, keys) for file in files])  # [n_files, n_answers]
    differences = np.full_like(values, np.nan)
    for row, (file, beside) in enumerate(zip(files, unsteered, strict=True)):
        if beside is not None and file.settings.multiplier != 0:
            differences[row] = values[row] - _in_order(beside, measure.name, keys)
    tests = paired_tests(differences, seed)
    means = [_share(row) for row in values] if measure.is_share else mean_estimates(values, seed, measure.bounds)
    span = measure.bounds and measure.bounds[1] - measure.bounds[0]
    changes = mean_estimates(differences, seed, (-span, span) if span else None)
    rows = zip(files, means, changes, tests.p_value, tests.p_family, strict=True)
    return [
        MeasuredEffect(measure, _of(mean, len(file.keys)), change, float(p), float(p_family))
        for file, mean, change, p, p_family in rows
    ]


def _in_order(file: AnswerValues, name: str, keys: Sequence[str]) -> FloatArray:
    """A file's values for `keys`, NaN for those that it does not have."""
    known = dict(zip(file.keys, file.values[name], strict=True))
    return np.array([known.get(key, math.nan) for key in keys])


def _share(values: FloatArray) -> Estimate:
    known = values[np.isfinite(values)]
    return share_estimate(int(known.sum()), len(known), len(values))


def _of(estimate: Estimate, n_total: int) -> Estimate:
    return Estimate(estimate.value, estimate.low, estimate.high, estimate.n, n_total)
