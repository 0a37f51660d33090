"""Is a hierarchy of behaviors in the differences of their pairs? The statistics of concepts, three controls."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np

from utils.data.estimates import Estimate
from utils.research.concept_layout import Layout, lay_out
from utils.research.concept_space import FloatArray
from utils.research.concept_statistics import Geometry, measure
from utils.research.concept_words import CategoryTokens, WordTokens

STATISTICS = {
    "nested": "cos(child - parent, parent), child's pairs among the parent's (0)",
    "apart": "cos(child - parent, parent), parent of its other children",
    "share": "share of that parent's vector in the child's (1)",
    "norm": "norm of a child's vector",
    "members": "held-out pairs on their vector (1)",
    "outsiders": "pairs of other parents on it (0)",
    "nearest": "held-out pairs at their own corner",
}
CONTROLS = ("random parents", "sign flips", "shuffled labels")


@dataclass(frozen=True)
class Compared:
    """One statistic, mean over behaviors, beside its controls."""

    value: float
    controls: dict[str, Estimate]
    """By name of the control: the mean of the draws, and the range of 95% of them."""


def layout_of(parents: Sequence[str], behaviors: Sequence[str], counts: Sequence[int], seed: int) -> Layout:
    """The layout of pair differences, behavior by behavior.

    Args:
        parents: Of each behavior.
        behaviors: Their ids.
        counts: How many rows each has.
        seed: Of the split into training and held-out pairs.
    """
    starts = np.cumsum([0, *counts])
    categories = [
        CategoryTokens(name, parent, tuple(WordTokens(f"{name} {i}", (int(start) + i,)) for i in range(n)), 0)
        for name, parent, start, n in zip(behaviors, parents, starts, counts, strict=False)
    ]
    return lay_out(categories, seed)[0]


def compare(x: FloatArray, layout: Layout, n_draws: int, rng: np.random.Generator) -> dict[str, Compared]:
    """Every statistic of per-pair differences [n_rows, d], beside its controls."""
    real = _means(measure(x, layout))
    drawn = {name: [_means(one) for one in _control(name, x, layout, n_draws, rng)] for name in CONTROLS}
    return {
        name: Compared(value, {control: _range([one[name] for one in draws]) for control, draws in drawn.items()})
        for name, value in real.items()
    }


def _control(name: str, x: FloatArray, layout: Layout, n_draws: int, rng: np.random.Generator) -> Iterator[Geometry]:
    if name == "random parents":
        others = other_parents(layout.parent_of.tolist())
        for place in rng.permutation(len(others))[:n_draws]:
            yield measure(x, replace(layout, parent_of=np.array(others[place])))
    elif name == "sign flips":
        for _ in range(n_draws):
            yield measure(x * rng.choice([-1.0, 1.0], (len(x), 1)), layout)
    else:
        for _ in range(n_draws):
            yield measure(x[rng.permutation(len(x))], layout)


def other_parents(parent_of: Sequence[int]) -> list[tuple[int, ...]]:
    """All other ways to put behaviors under parents of the same sizes, up to the parents' names.

    Only groupings count: two parents of one size that exchange all of their children are the same.
    """
    found: dict[frozenset[frozenset[int]], tuple[int, ...]] = {}
    for assigned in sorted(set(permutations(parent_of))):
        groups = frozenset(
            frozenset(child for child, parent in enumerate(assigned) if parent == one) for one in set(assigned)
        )
        found.setdefault(groups, assigned)
    own = frozenset(frozenset(c for c, parent in enumerate(parent_of) if parent == one) for one in set(parent_of))
    return [assigned for groups, assigned in found.items() if groups != own]


def _means(geometry: Geometry) -> dict[str, float]:
    return {
        "nested": float(geometry.nested.mean()),
        "apart": float(geometry.apart.mean()),
        "share": float(geometry.share.mean()),
        "norm": float(geometry.norms.mean()),
        "members": float(geometry.members.mean()),
        "outsiders": float(geometry.outsiders.mean()),
        "nearest": float(np.concatenate(geometry.nearest).mean()),
    }


def _range(draws: Sequence[float]) -> Estimate:
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(float(np.mean(draws)), float(low), float(high), len(draws), len(draws))
