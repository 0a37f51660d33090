"""Vectors compared by what they do to held-out answers against what they do to neutral ones.

A vector of the same norm may do more of both. So each is measured at two strengths, and its effect is taken where it
costs what the whole vector costs: for small strengths the effect grows with the strength and KL with its square, so the
effect of each item lies on a line over the root of KL.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utils.research.svd_components import FloatArray
from utils.research.vector_effects import Compared, compare

LEVELS = (0.5, 1.0)
"""Of the strength, at which vectors are measured."""


@dataclass(frozen=True, eq=False)
class Tradeoff:
    """What one vector does at both levels, and at the whole vector's cost."""

    levels: tuple[Compared, ...]
    """At each level, against the whole vector at the same norm."""
    kl: tuple[float, ...]
    """At each level: 95th percentile of the per-token KL to the unsteered model, the larger one of both signs."""
    equal: Compared
    """Where the KL is that of the whole vector between its levels."""
    beyond: bool
    """Whether that KL lies outside what was measured of this vector, on the line's continuation."""


def trade_off(effects: FloatArray, kl: FloatArray, seed: int) -> list[Tradeoff]:
    """Compare vectors, the first of them the whole one.

    Args:
        effects: [n_vectors, n_levels, n_items], levels ascending.
        kl: [n_vectors, n_levels]
        seed: Of the resampling.
    """
    target = float(np.sqrt(np.sqrt(kl[0, 0] * kl[0, -1])))
    at_target = np.stack([at_cost(of, cost, target) for of, cost in zip(effects, kl, strict=True)])
    by_level = [compare(effects[:, level], 0, seed) for level in range(effects.shape[1])]
    equal = compare(at_target, 0, seed)
    return [
        Tradeoff(
            tuple(level[row] for level in by_level),
            tuple(kl[row].tolist()),
            equal[row],
            not float(np.sqrt(kl[row, 0])) <= target <= float(np.sqrt(kl[row, -1])),
        )
        for row in range(len(effects))
    ]


def at_cost(effects: FloatArray, kl: FloatArray, target: float) -> FloatArray:
    """Each item's effect where the root of KL is `target`, [n_items]; NaN where the KL does not grow.

    Args:
        effects: At two levels, [2, n_items].
        kl: At these, [2].
        target: Root of the KL.
    """
    low, high = np.sqrt(kl)
    if not high > low:
        return np.full(effects.shape[1], np.nan)
    share = (target - low) / (high - low)
    return np.asarray((1 - share) * effects[0] + share * effects[1])


def mean_of_draws(values: FloatArray, counts: Sequence[int]) -> FloatArray:
    """Rows [sum of counts, ...] averaged over each vector's draws, [len(counts), ...]."""
    ends = np.cumsum(counts)
    return np.stack([values[end - n : end].mean(axis=0) for n, end in zip(counts, ends, strict=True)])
