"""Statistics over the items of a test set: means with intervals, paired tests, steerability, letters.

Arrays are [n_series, n_items] float64; one column is one item, so that series are paired. NaN marks
an item that a series does not have or cannot score: it is left out and counted, never read as 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from utils.data.estimates import CONFIDENCE, Estimate, share_estimate
from utils.evaluation.resampling import N_RESAMPLES, drawn_counts, is_near_constant, most_common

FloatArray = NDArray[np.float64]
Bounds = tuple[float, float]
"""The smallest and the largest value that an item can have."""

_TAILS = (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2
_NO_DIFFERENCE = 1e-12  # between means, relative to the largest deviation of an item


def mean_estimates(
    values: FloatArray, seed: int, bounds: Bounds | None = None, n_resamples: int = N_RESAMPLES
) -> list[Estimate]:
    """The mean of each series with its bootstrap interval (BCa, Efron 1987, over items).

    Series with the same items are resampled together, so their intervals are paired. Where nearly all items
    have one value (`is_near_constant`), resampling says nothing of values that were not seen: there the
    interval allows the share of other items that is compatible with how many there are (Clopper & Pearson
    1934) the smallest and the largest value, which covers at least 95%; without bounds there is none. There is
    none for a single item either.

    Args:
        values: [n_series, n_items]; NaN where an item is missing.
        seed: Of the resampling.
        bounds: Of an item's value.
        n_resamples: Bootstrap samples.
    """
    estimates = [Estimate(np.nan, np.nan, np.nan, 0, values.shape[1])] * len(values)
    present = np.isfinite(values)
    for mask in np.unique(present, axis=0) if len(values) else []:
        rows = np.flatnonzero((present == mask).all(axis=1))
        sample = values[np.ix_(rows, mask)]  # [n_rows, n]
        if not mask.any():
            continue
        means = sample.mean(axis=1)
        intervals = _intervals(sample, seed, bounds, n_resamples)
        for row, mean, (low, high) in zip(rows, means, intervals, strict=True):
            estimates[row] = Estimate(float(mean), float(low), float(high), int(mask.sum()), values.shape[1])
    return estimates


def _intervals(sample: FloatArray, seed: int, bounds: Bounds | None, n_resamples: int) -> FloatArray:
    """[n_series, 2] for items [n_series, n]."""
    intervals = np.full((len(sample), 2), np.nan)
    if sample.shape[1] < 2:
        return intervals
    flat = np.array([is_near_constant(items) for items in sample], dtype=bool)
    if bounds is not None:
        for row in np.flatnonzero(flat):
            intervals[row] = _near_constant_interval(sample[row], bounds)
    if not flat.all():
        intervals[~flat] = _bca_intervals(sample[~flat], seed, n_resamples)
    return intervals


def _near_constant_interval(items: FloatArray, bounds: Bounds) -> Bounds:
    common, n_others = most_common(items)
    most = float(stats.beta.ppf(_TAILS[1], n_others + 1, len(items) - n_others))  # share of others (Clopper-Pearson)
    return common + most * (min(bounds[0], common) - common), common + most * (max(bounds[1], common) - common)


def _bca_intervals(sample: FloatArray, seed: int, n_resamples: int) -> FloatArray:
    """BCa limits [n_series, 2]; plain percentiles where the correction is not defined (all means on one side)."""
    means = sample.mean(axis=1, keepdims=True)
    deviations = sample - means  # [n_series, n]
    n = sample.shape[1]
    resampled = np.concatenate([counts @ deviations.T for counts in drawn_counts(n, n, n_resamples, seed)]) / n
    resampled[np.abs(resampled) < _NO_DIFFERENCE * np.abs(deviations).max(axis=1)] = 0.0
    below = ((resampled < 0).mean(axis=0) + (resampled <= 0).mean(axis=0)) / 2
    acceleration = (deviations**3).sum(axis=1) / 6 / (deviations**2).sum(axis=1) ** 1.5
    resampled.sort(axis=0)
    limits = [means[:, 0] + _quantiles(resampled, _corrected(tail, below, acceleration)) for tail in _TAILS]
    return np.stack(limits, axis=1)


def _corrected(tail: float, below: FloatArray, acceleration: FloatArray) -> FloatArray:
    """The share of resampled means below a BCa limit; `tail` itself where that is not defined."""
    bias = stats.norm.ppf(below)
    shifted = bias + stats.norm.ppf(tail)
    with np.errstate(invalid="ignore"):
        corrected = stats.norm.cdf(bias + shifted / (1 - acceleration * shifted))
    return np.where(np.isfinite(bias) & np.isfinite(corrected), corrected, tail)


def _quantiles(ascending: FloatArray, shares: FloatArray) -> FloatArray:
    """The quantile of each column, [n_series] from [n, n_series] and a share a column; linear between values."""
    places = shares * (len(ascending) - 1)
    before = np.floor(places).astype(int)
    columns = np.arange(ascending.shape[1])
    low, high = ascending[before, columns], ascending[np.minimum(before + 1, len(ascending) - 1), columns]
    return np.asarray(low + (places - before) * (high - low))


@dataclass(frozen=True)
class Steerability:
    """How the multiplier moves single items (Tan et al. 2024, arXiv 2407.12404)."""

    slope: Estimate
    """Mean slope of the log-odds of the matching answer, in log-odds for each unit of the multiplier."""
    anti_share: Estimate
    """Share of items with a slope below 0, which steering moves the wrong way."""


def item_slopes(log_odds: FloatArray, multipliers: Sequence[float]) -> FloatArray:
    """Least-squares slope of each item's log-odds against the multiplier.

    Args:
        log_odds: [n_multipliers, n_items].
        multipliers: At least two different ones.

    Returns:
        [n_items]; NaN for an item without finite log-odds at every multiplier.
    """
    centered = np.asarray(multipliers, dtype=np.float64) - np.mean(multipliers)
    spread = float(centered @ centered)
    if spread == 0:
        raise ValueError("a slope needs two different multipliers")
    slopes: FloatArray = np.full(log_odds.shape[1], np.nan)
    whole = np.isfinite(log_odds).all(axis=0)
    slopes[whole] = centered @ log_odds[:, whole] / spread
    return slopes


def steerabilities(slopes: FloatArray, seed: int) -> list[Steerability]:
    """Mean slope and anti-steerable share for each row of `slopes`, [n_series, n_items]."""
    result = []
    for row, slope in zip(slopes, mean_estimates(slopes, seed), strict=True):
        n_anti = int((row[np.isfinite(row)] < 0).sum())
        result.append(Steerability(slope, share_estimate(n_anti, slope.n, slope.n_total)))
    return result


def letter_bias(share_of_a: FloatArray, a_matches: NDArray[np.bool_], seed: int) -> list[Estimate]:
    """How much more (A) is chosen than (B) at equal truth.

    With q = p(A) / (p(A) + p(B)) of an item: mean of q over the items whose matching answer is (A),
    plus mean of q over those whose matching answer is (B), minus 1. It is 0 for a model that only
    follows the answers, 1 for one that always says (A), -1 for one that always says (B). Both groups
    weigh the same, however many items they have; the interval combines theirs (MOVER; Zou & Donner 2008).

    Args:
        share_of_a: q, [n_series, n_items]; NaN for items with other letters or no value.
        a_matches: [n_items]; whether the matching answer is (A).
        seed: Of the resampling.

    Returns:
        One estimate a series, NaN where one of the two groups is empty.
    """
    with_a = mean_estimates(share_of_a[:, a_matches], seed, bounds=(0.0, 1.0))
    with_b = mean_estimates(share_of_a[:, ~a_matches], seed, bounds=(0.0, 1.0))
    return [_sum_minus_1(a, b) for a, b in zip(with_a, with_b, strict=True)]


def _sum_minus_1(a: Estimate, b: Estimate) -> Estimate:
    n_total = a.n_total + b.n_total
    if not a.n or not b.n:
        return Estimate(np.nan, np.nan, np.nan, 0, n_total)
    value = a.value + b.value - 1
    below, above = np.hypot(a.value - a.low, b.value - b.low), np.hypot(a.high - a.value, b.high - b.value)
    return Estimate(value, float(value - below), float(value + above), a.n + b.n, n_total)
