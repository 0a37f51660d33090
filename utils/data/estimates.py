"""A number over items with its confidence interval, and the share of items for which something holds."""

import math
from dataclasses import dataclass

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
