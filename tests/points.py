"""Points of figures and headlines, made by hand."""

from collections.abc import Iterable

import numpy as np

from utils.evaluation.effects import Condition, Point
from utils.evaluation.metrics import Estimate
from utils.evaluation.results import ItemValues
from utils.settings import SteeringSettings

N_ITEMS = 4
CHANCES = np.array([0.2, 0.4, 0.6, 0.8])
NOTHING = Estimate(np.nan, np.nan, np.nan, 0, N_ITEMS)


def make_point(
    layer: int, multiplier: float, mean: float = 0.5, behavior: str = "refusal", *, with_change: bool = True
) -> Point:
    """A mean with an interval of 0.1 to either side, and a change from 0.5 with one of 0.05 (none at 0)."""
    items = ItemValues(tuple("abcd"), CHANCES, CHANCES, 1 - CHANCES, tuple("ABAB"), tuple("BABA"))
    change = mean - 0.5
    has_change = with_change and multiplier != 0
    return Point(
        Condition("no system prompt", SteeringSettings(0, 0.0, behavior, "ab", model_size="7b")),
        layer,
        multiplier,
        items,
        Estimate(mean, mean - 0.1, mean + 0.1, N_ITEMS, N_ITEMS),
        Estimate(change, change - 0.05, change + 0.05, N_ITEMS, N_ITEMS) if has_change else NOTHING,
        0.5 if has_change else np.nan,
        1.0 if has_change else np.nan,
    )


def make_points(*places: tuple[int, Iterable[float]], behavior: str = "refusal") -> list[Point]:
    """For each (layer, multipliers): the mean grows with both from 0.5."""
    return [
        make_point(layer, m, 0.5 + layer * m * 0.01, behavior) for layer, multipliers in places for m in multipliers
    ]
