"""Bootstrap resamples of a test set as counts, and how far its items differ at all.

A resample of n items is a row of counts, how often each item was drawn: sums over the drawn items of every
series are then one matrix product, and all series are resampled together.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

N_RESAMPLES = 10_000
FEWEST_OTHER_ITEMS = 5
"""Other items than the most common value that resampling needs; see `is_near_constant`."""
_MOST_VALUES_AT_ONCE = 4_000_000  # float64 values, 32 MB
_EQUAL = 1e-12  # relative to the largest value


def drawn_counts(n_items: int, n_drawn: int, n_resamples: int, seed: int) -> Iterator[FloatArray]:
    """How often each item is in each resample, in blocks [n, n_items] that have n_resamples rows together.

    Args:
        n_items: Items of the test set, each as likely to be drawn.
        n_drawn: Draws a resample, with replacement; the sum of a row.
        n_resamples: Rows.
        seed: Of the draws.
    """
    rng = np.random.default_rng(seed)
    rows = max(1, min(n_resamples, _MOST_VALUES_AT_ONCE // max(n_items, n_drawn)))
    for start in range(0, n_resamples, rows):
        n = min(rows, n_resamples - start)
        drawn = rng.integers(0, n_items, (n, n_drawn)) + n_items * np.arange(n)[:, None]
        yield np.bincount(drawn.ravel(), minlength=n * n_items).reshape(n, n_items).astype(np.float64)


def most_common(items: FloatArray) -> tuple[float, int]:
    """The most common of the values [n_items], none of them NaN, and how many items have another one.

    Values that differ by rounding alone count as equal.
    """
    ordered = np.sort(items)
    steps = np.diff(ordered) > _EQUAL * np.abs(items).max()
    starts = np.concatenate([[0], np.flatnonzero(steps) + 1, [len(items)]])
    lengths = np.diff(starts)
    return float(ordered[starts[lengths.argmax()]]), int(len(items) - lengths.max())


def is_near_constant(items: FloatArray) -> bool:
    """Whether most of the items have one value, and fewer than FEWEST_OTHER_ITEMS have another.

    Where k of n items differ, a share of about exp(-k) of the resamples has none of them and so no spread at
    all: resampling then says nothing of the values that were not seen. 5 is the least with which intervals cover
    the truth in 95% of test sets where 2 to 10% of the items are not 0 (`python -m benchmarks.interval_coverage`).
    """
    n_others = most_common(items)[1]
    return n_others < FEWEST_OTHER_ITEMS and 2 * n_others < len(items)
