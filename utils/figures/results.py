"""Which figures there are of plain steering, and how each is put together. Functions return how many were written."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from utils.evaluation.effects import Condition, LayerSteerability, Point, layer_steerabilities, letter_uses
from utils.evaluation.words import (
    PROMPT_LABELS,
    against_the_name,
    behavior_label,
    behavior_place,
    count_note,
    meaning_note,
)
from utils.figures.by_layer import Panel, plot_by_layer, plot_sweep
from utils.figures.by_multiplier import Series, plot_behaviors, plot_by_multiplier
from utils.figures.categories import plot_categories
from utils.figures.lines import LineStyle, multiplier_styles, nth_style
from utils.figures.result_sets import ResultSet, at
from utils.figures.steerability import plot_steerability
from utils.figures.style import log_written, save_latex_rows
from utils.figures.tables import latex_rows, letters_table, steerability_table
from utils.files.tables import save_table
from utils.settings import Side

_FEW_LAYERS = 3


def behavior_style(behavior: str) -> LineStyle:
    """A behavior looks the same in every figure."""
    return nth_style(behavior_place(behavior))


# --- one layer -------------------------------------------------------------------------------------


def plot_single_layers(results: ResultSet) -> int:
    """The effect of the multiplier at one layer, for each behavior and for all of them together."""
    n_written = 0
    of_layers: dict[int, dict[str, list[Point]]] = {}
    for behavior in results.files:
        for layer in single_layers(results, behavior):
            if points := single_layer_points(results, behavior, layer):
                n_written += plot_single_layer(results, behavior, layer, points)
                of_layers.setdefault(layer, {})[behavior] = [point for of in points.values() for point in of]
    for layer, of_behaviors in of_layers.items():
        n_written += plot_all_behaviors(results, layer, of_behaviors)
    return n_written


def single_layers(results: ResultSet, behavior: str) -> list[int]:
    """The layers to show by themselves: the one asked for, or those with more results than the others."""
    request = results.request
    conditions = [condition.settings for condition in prompt_conditions(results, behavior)]
    layers = results.layers(*conditions)
    if len(layers) <= (1 if request.layers else _FEW_LAYERS):
        return layers
    if request.layers:
        return []
    plain, files = conditions[0], results.files[behavior]
    swept = set(results.multipliers(layers, plain))

    def has_more(layer: int) -> bool:
        beyond_the_sweep = not request.multipliers and set(files.multipliers(plain, layer)) - swept
        return bool(beyond_the_sweep) or any(files.multipliers(condition, layer) for condition in conditions[1:])

    return [layer for layer in layers if has_more(layer)]


def prompt_conditions(results: ResultSet, behavior: str) -> list[Condition]:
    """No, positive and negative system prompt (base models take none; knowledge tests and answers: if found)."""
    plain = results.plain_condition(behavior)
    conditions = [plain]
    sides: tuple[Side, ...] = ("pos", "neg")
    for side in sides:
        settings = replace(plain.settings, system_prompt=side)
        expected = results.result_type == "ab" and results.request.layers and not results.request.choice.use_base_model
        if expected or results.files[behavior].layers(settings):
            conditions.append(results.condition(PROMPT_LABELS[side], settings))
    return conditions


def single_layer_points(results: ResultSet, behavior: str, layer: int) -> dict[Condition, list[Point]]:
    """One behavior at one layer under every system prompt; without those that have no results."""
    conditions = prompt_conditions(results, behavior)
    multipliers = results.multipliers([layer], *(condition.settings for condition in conditions))
    found = {condition: at(results.measure(condition, [layer], multipliers), multipliers) for condition in conditions}
    return {condition: points for condition, points in found.items() if points}


def plot_single_layer(results: ResultSet, behavior: str, layer: int, found: dict[Condition, list[Point]]) -> int:
    plain = results.plain_condition(behavior)
    styles = {condition: nth_style(place) for place, condition in enumerate(prompt_conditions(results, behavior))}
    series = [Series(condition.label, styles[condition], points) for condition, points in found.items()]
    points = [point for one in series for point in one.points]
    stem = results.stem(plain.settings.at(layer, 0.0), "multiplier")
    title = results.title(behavior_label(behavior), f"layer {layer}")
    note = meaning_note(behavior, results.result_type)
    paths = plot_by_multiplier(stem, title, series, results.result_type, note)
    n_written = log_written([*paths, save_latex_rows(stem, *latex_rows(points, "condition"))])
    if results.result_type in ("truthful_qa", "mmlu") and plain in found:
        by_category = results.stem(plain.settings.at(layer, 0.0), "multiplier", prefix="categories_")
        n_written += log_written(plot_categories(by_category, title, found[plain], results.request.seed))
    return n_written


def plot_all_behaviors(results: ResultSet, layer: int, of_behaviors: dict[str, list[Point]]) -> int:
    series = []
    for behavior, points in of_behaviors.items():
        plain = [point for point in points if point.condition == results.plain_condition(behavior)]
        if plain:
            label = f"{behavior_label(behavior)}, {count_note([point.mean for point in plain])}"
            series.append(Series(label, behavior_style(behavior), plain))
    if len(series) < 2:
        return 0
    stem = results.stem(results.plain(next(iter(of_behaviors))).at(layer, 0.0), "multiplier", "behavior")
    note = against_the_name(list(of_behaviors), results.result_type)
    title = results.title("all behaviors", f"layer {layer}")
    paths = plot_behaviors(stem, title, series, results.result_type, note)
    every_point = [point for points in of_behaviors.values() for point in points]
    return log_written([*paths, save_latex_rows(stem, *latex_rows(every_point, "condition"))])


# --- several layers --------------------------------------------------------------------------------


def plot_over_layers(results: ResultSet) -> int:
    """The effect by layer for each behavior, and the sweep over behaviors."""
    n_written = 0
    of_behaviors: dict[str, list[Point]] = {}
    for behavior in results.files:
        condition = results.plain_condition(behavior)
        layers = results.layers(condition.settings)
        if len(layers) < 2:
            continue
        multipliers = results.multipliers(layers, condition.settings)
        points = results.measure(condition, layers, multipliers)
        if shown := at(points, multipliers):
            of_behaviors[behavior] = points
            n_written += plot_behavior_by_layer(results, behavior, shown)
    if len(of_behaviors) > 1:
        n_written += plot_behavior_sweeps(results, of_behaviors)
    return n_written


def plot_behavior_by_layer(results: ResultSet, behavior: str, points: list[Point]) -> int:
    stem = results.stem(results.plain(behavior), "layer", "multiplier")
    title = results.title(behavior_label(behavior))
    series = multiplier_series(points)
    note = meaning_note(behavior, results.result_type)
    return log_written(plot_by_layer(stem, title, series, size_panels(series), results.result_type, note))


def multiplier_series(points: Iterable[Point]) -> list[Series]:
    """A line for each multiplier, the highest first, as they lie in the figure."""
    by_multiplier: dict[float, list[Point]] = {}
    for point in points:
        by_multiplier.setdefault(point.multiplier, []).append(point)
    styles = multiplier_styles(by_multiplier)
    return [Series(f"{m:g}", styles[m], by_multiplier[m]) for m in sorted(by_multiplier, reverse=True)]


def size_panels(series: Iterable[Series]) -> list[Panel]:
    """The lines that have changes, a panel for each size of the multiplier: up and down lie apart, sizes do not."""
    by_size: dict[float, list[Series]] = {}
    for one in series:
        if any(point.change.exists for point in one.points):
            by_size.setdefault(abs(one.points[0].multiplier), []).append(one)
    labels = {size: " and ".join(one.label for one in by_size[size]) for size in sorted(by_size)}
    return [Panel(f"multiplier {label}" if len(labels) > 1 else "", by_size[size]) for size, label in labels.items()]


def plot_behavior_sweeps(results: ResultSet, of_behaviors: dict[str, list[Point]]) -> int:
    """For each multiplier but 0: every behavior over the layers."""
    n_written = 0
    every_point = [point for points in of_behaviors.values() for point in points]
    wanted = results.request.multipliers or {point.multiplier for point in every_point}
    for multiplier in sorted(set(wanted) - {0.0}):
        panels = []
        for behavior, points in of_behaviors.items():
            if chosen := at(points, [multiplier]):
                label = (
                    f"{behavior_label(behavior)}\n{count_note([point.mean for point in chosen])}{level_note(points)}"
                )
                panels.append(Panel(label, [Series(f"{multiplier:g}", behavior_style(behavior), chosen)]))
        if len(panels) > 1:
            settings = results.plain(next(iter(of_behaviors))).at(0, multiplier)
            stem = results.stem(settings, "layer", "behavior", prefix="layer_sweep_")
            title = results.title(f"Multiplier {multiplier:g} by layer")
            note = against_the_name(list(of_behaviors), results.result_type)
            n_written += log_written(plot_sweep(stem, title, panels, results.result_type, note))
    return n_written


def level_note(points: Iterable[Point]) -> str:
    """The level from which the changes start, where it is the same at every layer."""
    levels = {f"{point.mean.value:.2f}" for point in points if point.multiplier == 0}
    return f", level at 0: {levels.pop()}" if len(levels) == 1 else ""


# --- steerability and letters ----------------------------------------------------------------------


def plot_steerabilities(results: ResultSet) -> int:
    """Steerability by layer for each behavior and for all; letter mass and bias as text."""
    n_written, seed = 0, results.request.seed
    of_behaviors: dict[str, list[LayerSteerability]] = {}
    for behavior in results.files:
        points = results.plain_points(behavior)
        if not points:
            continue
        left_out = ("multiplier",) if len({point.layer for point in points}) == 1 else ("layer", "multiplier")
        settings = results.plain(behavior).at(points[0].layer, 0.0)
        letters = letters_table(letter_uses(points, seed))
        n_written += log_written([save_table(results.stem(settings, *left_out, prefix="letters_"), letters)])
        found = layer_steerabilities(points, seed)
        stem = results.stem(settings, *left_out, prefix="steerability_")
        if len(found) > 1:
            of_behaviors[behavior] = found
            title = f"{behavior_label(behavior)}: steerability"
            n_written += _plot_steerability(results, stem, title, {behavior: found})
        elif found:
            n_written += log_written([save_table(stem, steerability_table({behavior: found}))])
    if len(of_behaviors) > 1:
        like = results.plain(next(iter(of_behaviors)))
        stem = results.stem(like, "layer", "multiplier", "behavior", prefix="steerability_")
        n_written += _plot_steerability(results, stem, "Steerability", of_behaviors)
    return n_written


def _plot_steerability(
    results: ResultSet, stem: Path, title: str, of_behaviors: Mapping[str, Sequence[LayerSteerability]]
) -> int:
    styles = {behavior: behavior_style(behavior) for behavior in of_behaviors}
    return log_written(plot_steerability(stem, results.title(title), of_behaviors, styles, results.result_type))
