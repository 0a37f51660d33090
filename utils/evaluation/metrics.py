"""Statistics over the items of a test set: means with intervals, paired tests, steerability, letters.

Arrays are [n_series, n_items] float64; one column is one item, so that series are paired. NaN marks
an item that a series does not have or cannot score: it is left out and counted, never read as 0.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from utils.data.estimates import CONFIDENCE, Estimate, share_estimate

FloatArray = NDArray[np.float64]

N_RESAMPLES = 2000
N_SIGN_FLIPS = 50_000
_MAX_RESAMPLED_VALUES = 8_000_000  # float64 values held at once while resampling, 64 MB


def mean_estimates(values: FloatArray, seed: int, n_resamples: int = N_RESAMPLES) -> list[Estimate]:
    """The mean of each series with its bootstrap interval (BCa, Efron 1987, over items).

    Series with the same items are resampled together, so their intervals are paired. An interval
    needs two items; where all items are equal it has no width.

    Args:
        values: [n_series, n_items]; NaN where an item is missing.
        seed: Of the resampling.
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
        lows, highs = _bootstrap_interval(sample, means, seed, n_resamples)
        for place, row in enumerate(rows):
            estimates[row] = Estimate(
                float(means[place]), float(lows[place]), float(highs[place]), int(mask.sum()), values.shape[1]
            )
    return estimates


def _bootstrap_interval(
    sample: FloatArray, means: FloatArray, seed: int, n_resamples: int
) -> tuple[FloatArray, FloatArray]:
    lows, highs = np.full(len(means), np.nan), np.full(len(means), np.nan)
    if sample.shape[1] < 2:
        return lows, highs
    constant = np.ptp(sample, axis=1) <= 1e-12 * np.abs(sample).max(axis=1)
    lows[constant] = highs[constant] = means[constant]
    if not constant.all():
        lows[~constant], highs[~constant] = _bca_interval(sample[~constant], seed, n_resamples)
    return lows, highs


def _bca_interval(sample: FloatArray, seed: int, n_resamples: int) -> tuple[FloatArray, FloatArray]:
    """BCa limits; the plain percentiles where the correction is not defined (very few different values)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        result = stats.bootstrap(
            (sample,),
            np.mean,
            axis=-1,
            vectorized=True,
            method="BCa",
            confidence_level=CONFIDENCE,
            n_resamples=n_resamples,
            batch=_batch(sample.size),
            rng=np.random.default_rng(seed),
        )
    lows, highs = np.array(result.confidence_interval.low), np.array(result.confidence_interval.high)
    undefined = ~(np.isfinite(lows) & np.isfinite(highs))
    tails = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
    lows[undefined], highs[undefined] = np.quantile(result.bootstrap_distribution[undefined], tails, axis=-1)
    return lows, highs


def _batch(size: int) -> int:
    return max(1, _MAX_RESAMPLED_VALUES // size)


def paired_p_values(differences: FloatArray, seed: int, n_flips: int = N_SIGN_FLIPS) -> FloatArray:
    """Two-sided p-values that paired differences have mean 0: sign-flip permutation test.

    Under the hypothesis each item's difference is as likely to have the other sign. The p-value is
    (1 + flips with a mean at least as far from 0) / (1 + flips), so it is never 0.

    Args:
        differences: [n_series, n_items]; NaN where an item is missing.
        seed: Of the flips, which are the same for all series.
        n_flips: Random sign patterns; bounds the smallest p-value.

    Returns:
        [n_series]; NaN for a series with fewer than two items.
    """
    counted = np.nan_to_num(differences)  # an absent item adds 0 under every flip
    observed = np.abs(counted.sum(axis=1))  # [n_series]
    at_least = np.zeros(len(differences))
    rng = np.random.default_rng(seed)
    step = min(n_flips, _batch(max(1, differences.shape[1])))
    for start in range(0, n_flips, step):
        signs = rng.choice(np.array([-1.0, 1.0]), size=(min(step, n_flips - start), differences.shape[1]))
        at_least += (np.abs(signs @ counted.T) >= observed * (1 - 1e-12)).sum(axis=0)
    p_values: FloatArray = (1 + at_least) / (1 + n_flips)
    p_values[np.isfinite(differences).sum(axis=1) < 2] = np.nan
    return p_values


def holm(p_values: Sequence[float] | FloatArray) -> FloatArray:
    """p-values adjusted for the number of tests (Holm 1979, step-down); NaN is no test and stays NaN."""
    raw = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(raw.shape, np.nan)
    tested = np.flatnonzero(np.isfinite(raw))
    ascending = tested[np.argsort(raw[tested], kind="stable")]
    factors = np.arange(len(ascending), 0, -1)
    adjusted[ascending] = np.minimum(1.0, np.maximum.accumulate(raw[ascending] * factors))
    return adjusted


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
    weigh the same, however many items they have, and are resampled apart.

    Args:
        share_of_a: q, [n_series, n_items]; NaN for items with other letters or no value.
        a_matches: [n_items]; whether the matching answer is (A).
        seed: Of the resampling.

    Returns:
        One estimate a series, NaN where one of the two groups is empty.
    """
    n_total = share_of_a.shape[1]
    estimates = [Estimate(np.nan, np.nan, np.nan, 0, n_total)] * len(share_of_a)
    present = np.isfinite(share_of_a)
    for mask in np.unique(present, axis=0) if len(share_of_a) else []:
        with_a, with_b = mask & a_matches, mask & ~a_matches
        if not with_a.any() or not with_b.any():
            continue
        rows = np.flatnonzero((present == mask).all(axis=1))
        groups = share_of_a[np.ix_(rows, with_a)], share_of_a[np.ix_(rows, with_b)]
        values = _bias(*groups)
        lows, highs = _bias_interval(groups, values, seed)
        for place, row in enumerate(rows):
            estimates[row] = Estimate(
                float(values[place]), float(lows[place]), float(highs[place]), int(mask.sum()), n_total
            )
    return estimates


def _bias(with_a: FloatArray, with_b: FloatArray, axis: int = -1) -> FloatArray:
    return np.asarray(with_a.mean(axis=axis) + with_b.mean(axis=axis) - 1)


def _bias_interval(
    groups: tuple[FloatArray, FloatArray], values: FloatArray, seed: int
) -> tuple[FloatArray, FloatArray]:
    if min(group.shape[1] for group in groups) < 2:
        return np.full(len(values), np.nan), np.full(len(values), np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # equal items: no width, set below
        interval = stats.bootstrap(
            groups,
            _bias,
            axis=-1,
            vectorized=True,
            method="percentile",
            confidence_level=CONFIDENCE,
            n_resamples=N_RESAMPLES,
            batch=_batch(max(group.size for group in groups)),
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return np.asarray(interval.low), np.asarray(interval.high)
