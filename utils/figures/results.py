"""Which figures there are for the results of one model and kind, and how each is put together."""

import argparse
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from utils.behaviors import Behavior, list_behaviors, load_behavior
from utils.evaluation.effects import (
    Condition,
    LayerSteerability,
    Missing,
    Point,
    layer_steerabilities,
    letter_uses,
    measure,
)
from utils.evaluation.results import ResultFiles, settings_of
from utils.figures.effects import (
    Series,
    against_the_name,
    count_note,
    latex_rows,
    letters_table,
    meaning_note,
    plot_by_layer,
    plot_by_multiplier,
    plot_categories,
    plot_steerability,
    plot_sweep,
    steerability_table,
)
from utils.figures.kept import KeptFigure
from utils.figures.style import LineStyle, multiplier_styles, nth_style, save_latex_rows, save_table
from utils.model.checkpoints import ModelChoice
from utils.paths import DataPaths
from utils.settings import ResultType, Side, SteeringSettings

log = logging.getLogger(__name__)

PLAIN = "no system prompt"
_FEW_LAYERS = 3


@dataclass
class Task:
    """One kind of results of one model: where they are, what was missing, what was written."""

    args: argparse.Namespace
    paths: DataPaths
    choice: ModelChoice
    result_type: ResultType
    files: dict[str, ResultFiles]
    """By behavior; only behaviors with results."""
    missing: Missing
    n_written: int = 0
    headline: dict[str, list[Point]] = field(default_factory=dict)
    """By behavior: plain steering's points for the summary."""
    figures: list[KeptFigure] = field(default_factory=list)
    """What was drawn, where --report wants it."""

    def about(self, behavior: str) -> Behavior:
        """What the behavior's file says."""
        return load_behavior(self.paths, behavior)

    def plain(self, behavior: str) -> SteeringSettings:
        """Steering with the model's own vector and weights and no system prompt."""
        return settings_of(self.choice, behavior, self.result_type, self.args.steer_positions)

    def layers(self, *settings: SteeringSettings) -> list[int]:
        """The layers asked for, or else those found under any of these settings."""
        if self.args.layers:
            return sorted(set(self.args.layers))
        return sorted({layer for like in settings for layer in self.files[like.behavior].layers(like)})

    def multipliers(self, layers: Sequence[int], *settings: SteeringSettings) -> list[float]:
        """The multipliers asked for, or else those found; over several layers, at more than one of them."""
        if self.args.multipliers:
            return sorted(set(self.args.multipliers))
        at_layers: dict[float, set[int]] = {}
        for like in settings:
            for layer in layers:
                for multiplier in self.files[like.behavior].multipliers(like, layer):
                    at_layers.setdefault(multiplier, set()).add(layer)
        return sorted(m for m, found in at_layers.items() if len(found) >= min(2, len(layers)))

    def measure(self, condition: Condition, layers: Sequence[int], multipliers: Sequence[float]) -> list[Point]:
        files = self.files[condition.settings.behavior]
        return measure(files, condition, layers, multipliers, self.args.seed, self.missing)

    def stem(self, settings: SteeringSettings, *leave_out: str, prefix: str = "") -> Path:
        """The figure's path without suffix; in the behavior's folder unless it is about several."""
        folder = self.paths.analysis_dir
        if "behavior" not in leave_out:
            folder = folder / settings.behavior
        return folder / f"{prefix}{settings.describe(*leave_out)}"

    def title(self, *parts: str) -> str:
        return self.args.title or ", ".join((*parts, self.choice.label))

    def wrote(self, paths: Sequence[Path]) -> None:
        self.n_written += 1
        first = paths[0]
        log.info("wrote %s (%s)", first.with_name(first.name[:-4]), ", ".join(path.suffix[1:] for path in paths))


def drawn(points: Sequence[Point], multipliers: Iterable[float]) -> list[Point]:
    """The points at these multipliers: `measure` adds multiplier 0, which may not have been asked for."""
    wanted = set(multipliers)
    return [point for point in points if point.multiplier in wanted]


def behavior_style(paths: DataPaths, behavior: str) -> LineStyle:
    """A behavior looks the same in every figure; the published ones also beside whatever others there are."""
    return nth_style(list_behaviors(paths).index(behavior))


# --- one layer -------------------------------------------------------------------------------------


def plot_single_layers(task: Task) -> None:
    """The effect of the multiplier at one layer, for each behavior and for all of them together."""
    of_layers: dict[int, dict[str, list[Point]]] = {}
    for behavior in task.files:
        for layer in single_layers(task, behavior):
            if points := plot_single_layer(task, behavior, layer):
                of_layers.setdefault(layer, {})[behavior] = points
    for layer, of_behaviors in of_layers.items():
        if len(of_behaviors) > 1:
            plot_all_behaviors(task, layer, of_behaviors)


def single_layers(task: Task, behavior: str) -> list[int]:
    """The layers to show by themselves: the one asked for, or those with more results than the others."""
    conditions = [condition.settings for condition in prompt_conditions(task, behavior)]
    layers = task.layers(*conditions)
    if len(layers) <= (1 if task.args.layers else _FEW_LAYERS):
        return layers
    if task.args.layers:
        return []
    plain, files = conditions[0], task.files[behavior]
    swept = set(task.multipliers(layers, plain))

    def has_more(layer: int) -> bool:
        beyond_the_sweep = not task.args.multipliers and set(files.multipliers(plain, layer)) - swept
        return bool(beyond_the_sweep) or any(files.multipliers(condition, layer) for condition in conditions[1:])

    return [layer for layer in layers if has_more(layer)]


def prompt_conditions(task: Task, behavior: str) -> list[Condition]:
    """No, positive and negative system prompt (base models take none; knowledge tests and answers: if found)."""
    plain = task.plain(behavior)
    conditions = [Condition(PLAIN, plain)]
    sides: tuple[tuple[Side, str], ...] = (("pos", "positive system prompt"), ("neg", "negative system prompt"))
    for side, label in sides:
        settings = replace(plain, system_prompt=side)
        expected = task.result_type == "ab" and task.args.layers and not task.choice.use_base_model
        if expected or task.files[behavior].layers(settings):
            conditions.append(Condition(label, settings))
    return conditions


def plot_single_layer(task: Task, behavior: str, layer: int) -> list[Point]:
    """One behavior at one layer under every system prompt; returns the points drawn."""
    conditions = prompt_conditions(task, behavior)
    multipliers = task.multipliers([layer], *(condition.settings for condition in conditions))
    series = []
    for place, condition in enumerate(conditions):
        measured = task.measure(condition, [layer], multipliers)
        if points := drawn(measured, multipliers):
            series.append(Series(condition.label, nth_style(place), points))
            if condition.label == PLAIN:
                task.headline.setdefault(behavior, measured)
    points = [point for one in series for point in one.points]
    if not points:
        return []
    stem = task.stem(conditions[0].settings.at(layer, 0.0), "multiplier")
    title = task.title(task.about(behavior).label, f"layer {layer}")
    note = meaning_note(task.about(behavior), task.result_type)
    paths = plot_by_multiplier(stem, title, series, task.result_type, note)
    task.wrote([*paths, save_latex_rows(stem, *latex_rows(task.paths, points, "condition"))])
    plain_points = [point for point in points if point.condition.label == PLAIN]
    if task.result_type in ("truthful_qa", "mmlu") and plain_points:
        by_category = task.stem(conditions[0].settings.at(layer, 0.0), "multiplier", prefix="categories_")
        task.wrote(plot_categories(by_category, title, plain_points, task.args.seed))
    return points


def plot_all_behaviors(task: Task, layer: int, of_behaviors: dict[str, list[Point]]) -> None:
    series = []
    for behavior, points in of_behaviors.items():
        plain = [point for point in points if point.condition.label == PLAIN]
        if plain:
            label = f"{task.about(behavior).label} ({count_note([point.mean for point in plain])})"
            series.append(Series(label, behavior_style(task.paths, behavior), plain))
    if len(series) < 2:
        return
    any_behavior = next(iter(of_behaviors))
    stem = task.stem(task.plain(any_behavior).at(layer, 0.0), "multiplier", "behavior")
    legend_title = against_the_name(task.paths, list(of_behaviors), task.result_type)
    paths = plot_by_multiplier(
        stem, task.title("all behaviors", f"layer {layer}"), series, task.result_type, legend_title=legend_title
    )
    every_point = [point for points in of_behaviors.values() for point in points]
    task.wrote([*paths, save_latex_rows(stem, *latex_rows(task.paths, every_point, "condition"))])


# --- several layers --------------------------------------------------------------------------------


def plot_over_layers(task: Task) -> None:
    """The effect by layer for each behavior, the sweep over behaviors, and steerability."""
    of_behaviors: dict[str, list[Point]] = {}
    for behavior in task.files:
        plain = task.plain(behavior)
        layers = task.layers(plain)
        if len(layers) < 2:
            continue
        multipliers = task.multipliers(layers, plain)
        points = task.measure(Condition(PLAIN, plain), layers, multipliers)
        if drawn(points, multipliers):
            of_behaviors[behavior] = points
            task.headline[behavior] = points
            plot_behavior_by_layer(task, behavior, drawn(points, multipliers))
    if len(of_behaviors) > 1:
        plot_behavior_sweeps(task, of_behaviors)


def plot_behavior_by_layer(task: Task, behavior: str, points: list[Point]) -> None:
    stem = task.stem(task.plain(behavior), "layer", "multiplier")
    title = task.title(task.about(behavior).label)
    series = multiplier_series(points)
    task.wrote(
        plot_by_layer(stem, title, series, task.result_type, meaning_note(task.about(behavior), task.result_type))
    )


def multiplier_series(points: Iterable[Point]) -> list[Series]:
    """A line for each multiplier, the highest first, as they lie in the figure."""
    by_multiplier: dict[float, list[Point]] = {}
    for point in points:
        by_multiplier.setdefault(point.multiplier, []).append(point)
    styles = multiplier_styles(by_multiplier)
    return [Series(f"{m:g}", styles[m], by_multiplier[m]) for m in sorted(by_multiplier, reverse=True)]


def plot_behavior_sweeps(task: Task, of_behaviors: dict[str, list[Point]]) -> None:
    """For each multiplier but 0: every behavior over the layers."""
    any_behavior = next(iter(of_behaviors))
    every_point = [point for points in of_behaviors.values() for point in points]
    wanted = task.args.multipliers or {point.multiplier for point in every_point}
    for multiplier in sorted(set(wanted) - {0.0}):
        series = []
        for behavior, points in of_behaviors.items():
            if chosen := drawn(points, [multiplier]):
                label = f"{task.about(behavior).label} ({count_note([point.mean for point in chosen])})"
                series.append(Series(label, behavior_style(task.paths, behavior), chosen))
        if len(series) > 1:
            settings = task.plain(any_behavior).at(0, multiplier)
            stem = task.stem(settings, "layer", "behavior", prefix="layer_sweep_")
            title = task.title(f"Multiplier {multiplier:g} by layer")
            note = against_the_name(task.paths, list(of_behaviors), task.result_type)
            task.wrote(plot_sweep(stem, title, series, task.result_type, note))


# --- steerability and letters ----------------------------------------------------------------------


def plot_steerabilities(task: Task) -> None:
    """Steerability by layer for each behavior and for all; letter mass and bias as text."""
    of_behaviors: dict[str, list[LayerSteerability]] = {}
    for behavior, points in task.headline.items():
        left_out = ("multiplier",) if len({point.layer for point in points}) == 1 else ("layer", "multiplier")
        settings = task.plain(behavior).at(points[0].layer, 0.0)
        letters = letters_table(letter_uses(points, task.args.seed))
        task.wrote([save_table(task.stem(settings, *left_out, prefix="letters_"), letters)])
        found = layer_steerabilities(points, task.args.seed)
        stem = task.stem(settings, *left_out, prefix="steerability_")
        if len(found) > 1:
            of_behaviors[behavior] = found
            title = task.title(f"{task.about(behavior).label}: steerability")
            styles = {behavior: behavior_style(task.paths, behavior)}
            task.wrote(plot_steerability(task.paths, stem, title, {behavior: found}, styles, task.result_type))
        elif found:
            task.wrote([save_table(stem, steerability_table({behavior: found}))])
    if len(of_behaviors) > 1:
        stem = task.stem(
            task.plain(next(iter(of_behaviors))), "layer", "multiplier", "behavior", prefix="steerability_"
        )
        styles = {behavior: behavior_style(task.paths, behavior) for behavior in of_behaviors}
        task.wrote(
            plot_steerability(task.paths, stem, task.title("Steerability"), of_behaviors, styles, task.result_type)
        )
