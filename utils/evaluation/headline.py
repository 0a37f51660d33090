"""The numbers to cite: every behavior at its best layer, for the terminal and for the report page."""

from collections.abc import Sequence
from dataclasses import dataclass

from utils.behaviors import Behavior, load_behavior
from utils.data.estimates import Estimate
from utils.evaluation.effects import Point, layer_steerabilities
from utils.evaluation.metrics import Steerability
from utils.figures.effects import Y_LABELS
from utils.figures.results import Task
from utils.settings import ResultType

CHOICE_NOTE = (
    "The layer is the one with the largest difference between the outer multipliers on these very items, "
    "so its effect is an optimistic estimate."
)


@dataclass(frozen=True)
class BehaviorHeadline:
    """One behavior at its best layer."""

    behavior: Behavior
    points: tuple[Point, ...]
    """At the outer multipliers and 0, in order."""
    steerability: Steerability | None
    """None where there are no answer letters or only one multiplier."""

    @property
    def layer(self) -> int:
        return self.points[0].layer


@dataclass(frozen=True)
class Headline:
    """Every behavior's numbers for one kind of results."""

    model_label: str
    result_type: ResultType
    behaviors: tuple[BehaviorHeadline, ...]
    layer_was_chosen: bool
    """Whether some behavior has more than one layer to choose from."""

    @property
    def points(self) -> list[Point]:
        return [point for one in self.behaviors for point in one.points]


def headline_of(task: Task) -> Headline:
    """The summary of a task whose figures have been made (they fill `task.headline`)."""
    behaviors = []
    for behavior in task.files:
        if behavior in task.headline:
            points = best_layer(task.headline[behavior])
            found = layer_steerabilities(points, task.args.seed) if task.result_type == "ab" else []
            described = load_behavior(task.paths, behavior)
            behaviors.append(BehaviorHeadline(described, tuple(points), found[0].steerability if found else None))
    several = any(len({point.layer for point in points}) > 1 for points in task.headline.values())
    return Headline(task.choice.label, task.result_type, tuple(behaviors), several)


def best_layer(points: Sequence[Point]) -> list[Point]:
    """The points, at the outer multipliers and 0, of the layer where the outer ones differ most."""
    by_layer: dict[int, dict[float, Point]] = {}
    for point in points:
        by_layer.setdefault(point.layer, {})[point.multiplier] = point
    best = max(by_layer.values(), key=lambda at: at[max(at)].mean.value - at[min(at)].mean.value)
    return [best[multiplier] for multiplier in sorted({min(best), 0.0, max(best)} & set(best))]


def headline_lines(headline: Headline) -> list[str]:
    """The summary as the terminal shows it."""
    lines = [
        f"{headline.model_label}, {headline.result_type}: {Y_LABELS[headline.result_type]}, "
        "mean [95% interval over items]"
    ]
    for one in headline.behaviors:
        means = "   ".join(f"{point.multiplier:g}: {interval(point.mean)}" for point in one.points)
        counts = one.points[0].mean
        lines.append(f"  {one.behavior.label}, layer {one.layer}, n={counts.n} of {counts.n_total}: {means}")
        if changes := "   ".join(f"{p.multiplier:g}: {interval(p.change, 4)}" for p in one.points if p.change.exists):
            lines.append(f"    change from multiplier 0: {changes}")
        if one.steerability:
            lines.append(f"    {steerability_text(one.steerability)}")
    if headline.layer_was_chosen:
        lines.append(f"  {CHOICE_NOTE}")
    return lines


def steerability_text(steerability: Steerability) -> str:
    slope, anti = interval(steerability.slope), interval(steerability.anti_share)
    return f"steerability {slope} log-odds; moved against the steering: {anti} of items"


def interval(estimate: Estimate, digits: int = 3) -> str:
    return f"{estimate.value:.{digits}f} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"
