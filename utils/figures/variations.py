"""Figures of variations of plain steering against it: other vectors, fine-tuned weights."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from utils.evaluation.effects import Condition, Point
from utils.evaluation.words import (
    WEIGHTS_LABELS,
    are_positive_weights,
    behavior_label,
    meaning_note,
    transfer_label,
    weights_label,
)
from utils.figures.by_layer import Panel, plot_by_layer
from utils.figures.by_multiplier import Series, plot_by_multiplier
from utils.figures.lines import dashed, multiplier_styles, nth_style
from utils.figures.result_sets import ResultSet, at
from utils.figures.style import log_written, save_latex_rows
from utils.figures.tables import latex_rows
from utils.model.checkpoints import checkpoint_label
from utils.settings import SteeringSettings

_OWN = "own vector"

# --- other vectors ---------------------------------------------------------------------------------


def plot_transfers(results: ResultSet) -> int:
    """Steering with another layer's or model's vector, beside steering with the own one."""
    return sum(
        plot_transfer(results, behavior, settings)
        for behavior in results.files
        for settings in transfer_settings(results, behavior)
    )


def transfer_settings(results: ResultSet, behavior: str) -> list[SteeringSettings]:
    """The transfers asked for, or else those with results (at layer 0, multiplier 0)."""
    plain, request = results.plain(behavior), results.request
    if request.is_transfer:
        model = checkpoint_label(request.override_vector_model) if request.override_vector_model else None
        return [replace(plain, override_vector=request.override_vector, override_vector_model=model)]
    if request.override_weights:
        return []
    found = {
        settings.at(0, 0.0)
        for settings in results.files[behavior].paths
        if settings.multiplier != 0
        and (settings.override_vector is not None or settings.override_vector_model is not None)
    }
    own = {"override_vector": None, "override_vector_model": None}
    return sorted((one for one in found if replace(one, **own) == plain), key=str)  # type: ignore[arg-type]


def plot_transfer(results: ResultSet, behavior: str, settings: SteeringSettings) -> int:
    layers = results.layers(settings)
    multipliers = results.multipliers(layers, settings)
    transferred = results.condition(transfer_label(settings), settings)
    points = at(results.measure(transferred, layers, multipliers), multipliers)
    if not points:
        return 0
    own_condition = results.condition(_OWN, results.plain(behavior))
    own = at(results.measure(own_condition, layers, multipliers), multipliers)
    title = results.title(f"{behavior_label(behavior)}: {transfer_label(settings)}")
    note = meaning_note(behavior, results.result_type)
    if len(layers) > 1:
        stem = results.stem(settings, "layer", "multiplier")
        series = transfer_series(points, own)
        return log_written(plot_by_layer(stem, title, series, transfer_panels(series), results.result_type, note))
    series = [Series(transferred.label, nth_style(0), points), Series(own_condition.label, dashed(nth_style(1)), own)]
    stem = results.stem(settings.at(layers[0], 0.0), "multiplier")
    shown = [one for one in series if one.points]
    return log_written(plot_by_multiplier(stem, title, shown, results.result_type, note))


def transfer_series(transferred: Sequence[Point], own: Sequence[Point]) -> list[Series]:
    """A line for each multiplier and vector: solid for the other vector, dashed for the own one."""
    styles = multiplier_styles(point.multiplier for point in (*transferred, *own))
    series = []
    for multiplier in sorted(styles, reverse=True):
        if chosen := at(transferred, [multiplier]):
            label = f"{multiplier:g}" if multiplier == 0 else f"{multiplier:g}, {chosen[0].condition.label}"
            series.append(Series(label, styles[multiplier], chosen))
        if multiplier != 0 and (chosen := at(own, [multiplier])):
            series.append(Series(f"{multiplier:g}, {_OWN}", dashed(styles[multiplier]), chosen))
    return series


def transfer_panels(series: Sequence[Series]) -> list[Panel]:
    """The lines that have changes, a panel for each multiplier: the other vector against the own one."""
    of_multiplier: dict[float, list[Series]] = {}
    for one in series:
        if any(point.change.exists for point in one.points):
            of_multiplier.setdefault(one.points[0].multiplier, []).append(one)
    return [Panel(f"multiplier {m:g}", of_multiplier[m]) for m in sorted(of_multiplier, reverse=True)]


# --- fine-tuned weights ----------------------------------------------------------------------------


def plot_finetuned(results: ResultSet) -> int:
    """Fine-tuned weights against the original ones, over multipliers, at each layer with results."""
    n_written = 0
    of_layers: dict[int, list[Point]] = {}
    for behavior in results.files:
        conditions = weights_conditions(results, behavior)
        if not conditions:
            continue
        plain = results.condition("not fine-tuned", results.plain(behavior))
        for layer in results.layers(*(condition.settings for condition in conditions)):
            series = weights_series(results, layer, [plain, *conditions])
            if len(series) > 1:
                n_written += plot_finetuned_layer(results, behavior, layer, series)
            of_layers.setdefault(layer, []).extend(point for one in series for point in one.points)
    for layer, points in of_layers.items():
        if len({point.behavior for point in points}) > 1:
            settings = results.plain(points[0].behavior).at(layer, 0.0)
            stem = results.stem(settings, "multiplier", "behavior", prefix="finetuned_")
            n_written += log_written([save_latex_rows(stem, *latex_rows(points, "weights"))])
    return n_written


def weights_conditions(results: ResultSet, behavior: str) -> list[Condition]:
    """The fine-tuned weights asked for, or else all, that have results for this behavior."""
    plain = results.plain(behavior)
    found = {
        settings.override_model_weights_path
        for settings in results.files[behavior].paths
        if settings.override_model_weights_path is not None
        and replace(settings.at(0, 0.0), override_model_weights_path=None) == plain
    }
    names = sorted(
        (name for name in found if name is not None), key=lambda name: (not are_positive_weights(name), name)
    )
    named = {name: weights_label(name) for name in names}
    if results.request.override_weights:
        root = results.request.paths.root
        asked = zip(results.request.override_weights, WEIGHTS_LABELS.values(), strict=True)
        named = {name: label for given, label in asked for name in named if name in written_as(given, root)}
    return [results.condition(label, replace(plain, override_model_weights_path=name)) for name, label in named.items()]


def written_as(given: str, root: Path) -> set[str]:
    """How weights given as a file or by name may stand in a result's name ('-' between the path's parts)."""
    path = Path(given)
    names = {given, "-".join(part for part in path.parts if part not in (path.anchor, "."))}
    absolute = path.resolve()
    if absolute.is_relative_to(root.resolve()):
        names.add("-".join(absolute.relative_to(root.resolve()).parts))
    return names | {"-".join(absolute.parts[1:])}


def weights_series(results: ResultSet, layer: int, conditions: Sequence[Condition]) -> list[Series]:
    """A line for the original and for each of the fine-tuned weights that have results at a layer."""
    multipliers = results.multipliers([layer], *(condition.settings for condition in conditions[1:]))
    found = [
        Series(condition.label, nth_style(place), at(results.measure(condition, [layer], multipliers), multipliers))
        for place, condition in enumerate(conditions)
    ]
    return [one for one in found if one.points]


def plot_finetuned_layer(results: ResultSet, behavior: str, layer: int, series: Sequence[Series]) -> int:
    points = [point for one in series for point in one.points]
    stem = results.stem(results.plain(behavior).at(layer, 0.0), "multiplier", prefix="finetuned_")
    title = results.title(behavior_label(behavior), f"layer {layer}")
    note = meaning_note(behavior, results.result_type)
    paths = plot_by_multiplier(stem, title, series, results.result_type, note)
    return log_written([*paths, save_latex_rows(stem, *latex_rows(points, "weights"))])
