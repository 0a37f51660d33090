"""A number over items with its confidence interval, and the share of items for which something holds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A statistic over items with its 95% confidence interval; NaN where it is not defined."""

    value: float
    low: float
    high: float
    n: int
    """Items that it covers."""
    n_total: int
    """Items that there are."""

    @property
    def exists(self) -> bool:
        return math.isfinite(self.value)


def share_estimate(n_true: int, n: int, n_total: int) -> Estimate:
    """A share of items with its Wilson score interval."""
    from scipy import stats

    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, n_total)
    interval = stats.binomtest(n_true, n).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(n_true / n, float(interval.low), float(interval.high), n, n_total)


def jackknife_error(without: Sequence[float]) -> float:
    """Standard error of a statistic, from its values without each of the items."""
    n = len(without)
    mean = math.fsum(without) / n
    return math.sqrt((n - 1) / n * math.fsum((one - mean) ** 2 for one in without))


def jackknife_estimate(value: float, without: Sequence[float]) -> Estimate:
    """A statistic of few items with its jackknife interval (Student's t); of one item there is none.

    Args:
        value: Of all items.
        without: Without each of them.
    """
    return _student(value, jackknife_error(without), len(without))


def student_estimate(values: Sequence[float]) -> Estimate:
    """The mean of one or more values with Student's interval; of one value there is none."""
    n = len(values)
    return _student(fmean(values), stdev(values) / math.sqrt(n) if n > 1 else math.nan, n)


def _student(value: float, error: float, n: int) -> Estimate:
    from scipy import stats

    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error if n > 1 else math.nan
    return Estimate(value, value - half, value + half, n, n)
