"""Does the mean of paired differences hold against 0, for one series and for a family of them?

What is known of the tests that one would take first, measured by `python -m benchmarks.family_errors`: sign flips
are exact only for symmetric differences, and give many false positives where they are skewed; resampling with
the largest t of all series (max-T) lets one series with an outlier decide for all others.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from utils.evaluation.resampling import N_RESAMPLES, drawn_counts, is_near_constant

FloatArray = NDArray[np.float64]

SHARE_DRAWN = 0.25
"""Of the items in a resample; chosen so that no null of `benchmarks.family_errors` has more than 5%: with 0.35 the
log-normal one had 7%."""
FEWEST_DRAWN = 10
_NO_SPREAD = 1e-12  # variance of a resample, relative to that of the items


@dataclass(frozen=True, eq=False)
class PairedTests:
    """Two-sided p-values for each series, [n_series]; NaN where there is no test."""

    p_value: FloatArray
    """That the mean of this series is 0."""
    p_family: FloatArray
    """The same, corrected for all series: where all with p_family < 0.05 are taken to hold, the chance that a
    mean of 0 is among them is at most about 5%."""


def paired_tests(differences: FloatArray, seed: int, n_resamples: int = N_RESAMPLES) -> PairedTests:
    """Test that the mean differences are 0: a bootstrap-t, and step-down over the family.

    The statistic is the t of a series after Hall's transformation, which takes the skewness out of it (Hall
    1992); it is held against the same of resamples, around their own mean, with the items drawn jointly for all
    series. A resample draws 25% of the items (at least 10), because n items show less skewness than there is:
    fewer draws make the statistic of the resamples as skewed as that of the data may be. The heavier tails that
    fewer draws give to Student's t itself are taken out again. For the family every series is held against its
    own resamples first, and the smallest p of each resample is what the p-values are held against, down from the
    smallest (Westfall & Young 1993, min-P; Romano & Wolf 2005), so that series with outliers count no more
    than others and correlated series cost no power.

    Assumed: items are independent draws from one population with a variance. Nothing is assumed of the
    shape of the differences, or of how series depend on each other; it is not exact, though, but measured.

    Args:
        differences: [n_series, n_items]; NaN where an item is missing, which may be others in each series.
        seed: Of the draws.
        n_resamples: Bounds the smallest p-value, 1 / (1 + n_resamples).

    Returns:
        NaN for a series with fewer than two items, or of near-constant ones (`is_near_constant`): those are
        not tested, and not part of the family.
    """
    p_value, p_family = np.full((2, len(differences)), np.nan)
    tested = np.array([_is_testable(row[np.isfinite(row)]) for row in differences], dtype=bool)
    if tested.any():
        statistics = _statistics(differences[tested], seed, n_resamples)
        shares = stats.rankdata(-statistics, method="max", axis=0) / len(statistics)  # p-value of every row
        p_value[tested], p_family[tested] = shares[0], _step_down(shares)
    return PairedTests(p_value, p_family)


def _is_testable(items: FloatArray) -> bool:
    return len(items) > 1 and not is_near_constant(items)


def _step_down(shares: FloatArray) -> FloatArray:
    """Family p-values [n_series] of p-values [1 + n_resamples, n_series], the data's in the first row."""
    ascending = np.argsort(shares[0], kind="stable")
    smallest = np.minimum.accumulate(shares[:, ascending[::-1]], axis=1)[:, ::-1]  # over a series and all after it
    adjusted = (smallest <= shares[0, ascending]).mean(axis=0)
    p_family = np.empty(len(ascending))
    p_family[ascending] = np.maximum.accumulate(adjusted)
    return p_family


def _statistics(differences: FloatArray, seed: int, n_resamples: int) -> FloatArray:
    """The absolute statistics of the data, in the first row, and of the resamples; [1 + n_resamples, n_series]."""
    present = np.isfinite(differences)
    counts = present.sum(axis=1)  # [n_series]
    n_items = differences.shape[1]
    n_drawn = min(n_items, max(FEWEST_DRAWN, round(SHARE_DRAWN * n_items)))
    means = np.nansum(differences, axis=1) / counts
    centered = np.where(present, differences - means[:, None], 0.0)
    deviations = np.sqrt((centered**2).sum(axis=1) / counts)
    centered /= deviations[:, None]
    observed = _transformed(means / deviations, (centered**3).sum(axis=1) / counts, counts)
    freedom = np.maximum(counts * n_drawn / n_items, 2) - 1
    observed = stats.t.isf(stats.t.sf(np.abs(observed), counts - 1), freedom)
    powers = np.concatenate([present, centered, centered**2, centered**3]).T  # [n_items, 4 * n_series]
    blocks = [np.abs(_resampled(block @ powers)) for block in drawn_counts(n_items, n_drawn, n_resamples, seed)]
    return np.concatenate([observed[None], *blocks])


def _resampled(sums: FloatArray) -> FloatArray:
    """Statistics [n, n_series] from the resamples' counts and sums of powers, [n, 4 * n_series].

    One without spread is infinitely far from its mean: it counts against every test.
    """
    counts, first, second, third = np.split(sums, 4, axis=1)
    n = np.maximum(counts, 1)
    mean, square, cube = first / n, second / n, third / n
    variance = square - mean * mean
    flat = (variance < _NO_SPREAD) | (counts < 2)
    deviation = np.sqrt(np.where(flat, 1.0, variance))
    skewness = (cube - 3 * mean * square + 2 * mean * mean * mean) / deviation / deviation / deviation
    return np.where(flat, np.inf, _transformed(mean / deviation, skewness, n))


def _transformed(t: FloatArray, skewness: FloatArray, n: FloatArray) -> FloatArray:
    """Hall's monotone cubic of t = mean / standard deviation, times sqrt(n) (Hall 1992, J. R. Stat. Soc. B 54)."""
    scaled = skewness * t / 3
    result: FloatArray = np.sqrt(n) * (t * (1 + scaled + scaled * scaled / 3) + skewness / (6 * n))
    return result
