"""The numbers to cite: every behavior at its best layer, at every multiplier; for terminal and report page."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from utils.evaluation.effects import Point, layer_steerabilities
from utils.evaluation.metrics import Steerability
from utils.evaluation.words import INTERVAL, VALUE_LABELS, behavior_label, interval_text
from utils.settings import ResultType

CHOICE_NOTE = (
    "A behavior's layer is the one with the largest difference between two multipliers on these very items, so its "
    "effect is an optimistic estimate. The two are 1 and -1 where there are results at both, else the pair closest to "
    "0 on either side, else the lowest and the highest."
)
ELSEWHERE_NOTE = (
    "A multiplier without results at that layer is shown at the layer where it moves the mean furthest its way."
)


@dataclass(frozen=True)
class BehaviorHeadline:
    """One behavior at its best layer, and the other multipliers that there are."""

    behavior: str
    ends: tuple[float, float]
    """The lower and the higher multiplier whose difference chose the layer."""
    layer: int
    n_layers: int
    """Layers that there were to choose from: those with results at both ends."""
    points: tuple[Point, ...]
    """At every multiplier with results at that layer, in order; then those that have results elsewhere only."""
    steerability: Steerability | None
    """Between the ends; None where there are no answer letters or only one multiplier."""

    @property
    def chosen(self) -> list[Point]:
        """At the ends and 0: the numbers to cite."""
        return [point for point in self.points if point.layer == self.layer and point.multiplier in {*self.ends, 0.0}]

    @property
    def others(self) -> list[Point]:
        chosen = set(map(id, self.chosen))
        return [point for point in self.points if id(point) not in chosen]

    @property
    def choice(self) -> str:
        """How the layer was chosen, in words; empty where there was no choice."""
        low, high = self.ends
        return f"of {self.n_layers} layers, where {high:g} and {low:g} differ most" if self.n_layers > 1 else ""


@dataclass(frozen=True)
class Headline:
    """Every behavior's numbers for one kind of results."""

    model_label: str
    result_type: ResultType
    how: str
    """How answers were sampled, in words; empty for greedy decoding and for questions with choices."""
    behaviors: tuple[BehaviorHeadline, ...]

    @property
    def points(self) -> list[Point]:
        return [point for one in self.behaviors for point in one.points]

    @property
    def notes(self) -> list[str]:
        """On how the layers were chosen, where there was a choice."""
        notes = [CHOICE_NOTE] if any(one.choice for one in self.behaviors) else []
        elsewhere = any(point.layer != one.layer for one in self.behaviors for point in one.points)
        return [*notes, ELSEWHERE_NOTE] if elsewhere else notes


def build_headline(
    model_label: str, result_type: ResultType, how: str, points_of: Mapping[str, Sequence[Point]], seed: int
) -> Headline:
    """The summary of plain steering.

    Args:
        model_label: For its first line.
        result_type: Kind of results.
        how: See `Headline`.
        points_of: By behavior: the points of every layer and multiplier with results; none empty.
        seed: Of the intervals' resampling.
    """
    behaviors = tuple(_behavior_headline(behavior, points, result_type, seed) for behavior, points in points_of.items())
    return Headline(model_label, result_type, how, behaviors)


def _behavior_headline(behavior: str, points: Sequence[Point], result_type: ResultType, seed: int) -> BehaviorHeadline:
    ends = headline_ends(points)
    candidates = _layers_with(points, ends)
    layer = best_layer(points, ends)
    here = sorted((point for point in points if point.layer == layer), key=lambda point: point.multiplier)
    cited = [point for point in here if point.multiplier in {*ends, 0.0}]
    found = layer_steerabilities(cited, seed) if result_type == "ab" else []
    return BehaviorHeadline(
        behavior,
        ends,
        layer,
        len(candidates),
        (*here, *_elsewhere(points, {point.multiplier for point in here})),
        found[0].steerability if found else None,
    )


def headline_ends(points: Iterable[Point]) -> tuple[float, float]:
    """The two multipliers whose difference is cited: -1 and 1, else the closest pair round 0, else the outermost.

    Only pairs that some layer has results for are taken.
    """
    at_layers: dict[int, set[float]] = {}
    for point in points:
        at_layers.setdefault(point.layer, set()).add(point.multiplier)
    pairs = {m for found in at_layers.values() for m in found if m > 0 and -m in found}
    if pairs:
        high = 1.0 if 1.0 in pairs else min(pairs)
        return -high, high
    widest = max(at_layers.values(), key=lambda found: max(found) - min(found))
    return min(widest), max(widest)


def best_layer(points: Iterable[Point], ends: tuple[float, float]) -> int:
    """The layer where the means at the two multipliers differ most."""
    by_layer = _layers_with(points, ends)
    return max(by_layer, key=lambda layer: by_layer[layer][ends[1]].mean.value - by_layer[layer][ends[0]].mean.value)


def _layers_with(points: Iterable[Point], ends: tuple[float, float]) -> dict[int, dict[float, Point]]:
    by_layer: dict[int, dict[float, Point]] = {}
    for point in points:
        by_layer.setdefault(point.layer, {})[point.multiplier] = point
    return {layer: found for layer, found in by_layer.items() if set(ends) <= set(found)}


def _elsewhere(points: Iterable[Point], shown: set[float]) -> list[Point]:
    """For each multiplier that is not shown yet, the point that lies furthest its way; by layer and multiplier."""
    furthest: dict[float, Point] = {}
    for point in points:
        sign = math.copysign(1.0, point.multiplier)
        best = furthest.get(point.multiplier)
        if point.multiplier not in shown and (best is None or sign * point.mean.value > sign * best.mean.value):
            furthest[point.multiplier] = point
    return sorted(furthest.values(), key=lambda point: (point.layer, point.multiplier))


# --- on the terminal ---------------------------------------------------------------------------------


def headline_lines(headline: Headline) -> list[str]:
    """The summary as the terminal shows it."""
    kind = ", ".join(part for part in (headline.result_type, headline.how) if part)
    lines = [f"{headline.model_label}, {kind}: {VALUE_LABELS[headline.result_type]}, mean [{INTERVAL}]"]
    for one in headline.behaviors:
        counts = one.chosen[0].mean
        choice = f" ({one.choice})" if one.choice else ""
        where = f"layer {one.layer}{choice}, n={counts.n} of {counts.n_total}"
        lines += _point_lines(f"  {behavior_label(one.behavior)}, {where}", one.chosen)
        for layer in dict.fromkeys(point.layer for point in one.others):
            lines += _point_lines(f"    also, layer {layer}", [point for point in one.others if point.layer == layer])
        if one.steerability:
            lines.append(f"    {steerability_text(one)}")
    return [*lines, *(f"  {note}" for note in headline.notes)]


def _point_lines(what: str, points: Sequence[Point]) -> list[str]:
    """Means, and the changes from multiplier 0 where there are any."""
    means = "   ".join(f"{point.multiplier:g}: {interval_text(point.mean)}" for point in points)
    changes = "   ".join(f"{p.multiplier:g}: {interval_text(p.change, 4)}" for p in points if p.change.exists)
    lines = [f"{what}: {means}"]
    return [*lines, f"    change from multiplier 0: {changes}"] if changes else lines


def steerability_text(one: BehaviorHeadline) -> str:
    """The steerability between the ends; empty where it is not known."""
    if one.steerability is None:
        return ""
    slope, anti = interval_text(one.steerability.slope), interval_text(one.steerability.anti_share)
    low, high = one.ends
    between = "" if (low, high) == (-1.0, 1.0) else f" between {low:g} and {high:g}"
    return f"steerability{between} {slope} log-odds; moved against the steering: {anti} of items"
