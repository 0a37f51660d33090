"""Figures of variations of plain steering against it: other vectors, fine-tuned weights."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from utils.evaluation.effects import Condition, Point
from utils.figures.effects import Series, latex_rows, meaning_note, plot_by_layer, plot_by_multiplier
from utils.figures.results import Task, drawn
from utils.figures.style import dashed, multiplier_styles, nth_style, save_latex_rows
from utils.model.checkpoints import checkpoint_label
from utils.settings import SteeringSettings

_WEIGHTS_NAME = re.compile(r"(?:.*-)?[A-Za-z0-9-]+_(pos|neg)_finetune_(all|\d+)\.pt")
_WEIGHTS_LABELS = {"pos": "fine-tuned towards it", "neg": "fine-tuned against it"}

# --- other vectors ---------------------------------------------------------------------------------


def plot_transfers(task: Task) -> None:
    """Steering with another layer's or model's vector, beside steering with the own one."""
    for behavior in task.files:
        for settings in transfer_settings(task, behavior):
            plot_transfer(task, behavior, settings)


def transfer_settings(task: Task, behavior: str) -> list[SteeringSettings]:
    """The transfers asked for, or else those with results (at layer 0, multiplier 0)."""
    plain, args = task.plain(behavior), task.args
    if args.override_vector is not None or args.override_vector_model:
        model = checkpoint_label(args.override_vector_model) if args.override_vector_model else None
        return [replace(plain, override_vector=args.override_vector, override_vector_model=model)]
    if args.override_weights:
        return []
    found = {
        at.at(0, 0.0)
        for at in task.files[behavior].paths
        if at.multiplier != 0 and (at.override_vector is not None or at.override_vector_model is not None)
    }
    own = {"override_vector": None, "override_vector_model": None}
    return sorted((at for at in found if replace(at, **own) == plain), key=str)  # type: ignore[arg-type]


def plot_transfer(task: Task, behavior: str, settings: SteeringSettings) -> None:
    layers = task.layers(settings)
    multipliers = task.multipliers(layers, settings)
    transferred = Condition(transfer_label(settings), settings)
    points = drawn(task.measure(transferred, layers, multipliers), multipliers)
    if not points:
        return
    own = drawn(task.measure(Condition("own vector", task.plain(behavior)), layers, multipliers), multipliers)
    title = task.title(f"{task.about(behavior).label}: {transferred.label}")
    note = meaning_note(task.about(behavior), task.result_type)
    if len(layers) > 1:
        stem = task.stem(settings, "layer", "multiplier")
        task.wrote(plot_by_layer(stem, title, transfer_series(points, own), task.result_type, note))
        return
    series = [Series(transferred.label, nth_style(0), points), Series("own vector", dashed(nth_style(1)), own)]
    stem = task.stem(settings.at(layers[0], 0.0), "multiplier")
    task.wrote(plot_by_multiplier(stem, title, [one for one in series if one.points], task.result_type, note))


def transfer_label(settings: SteeringSettings) -> str:
    parts = ["vector"]
    if settings.override_vector is not None:
        parts.append(f"of layer {settings.override_vector}")
    if settings.override_vector_model is not None:
        parts.append(f"of {settings.override_vector_model}")
    return " ".join(parts)


def transfer_series(transferred: Sequence[Point], own: Sequence[Point]) -> list[Series]:
    """A line for each multiplier and vector: solid for the other vector, dashed for the own one."""
    styles = multiplier_styles(point.multiplier for point in (*transferred, *own))
    series = []
    for multiplier in sorted(styles, reverse=True):
        if chosen := drawn(transferred, [multiplier]):
            label = f"{multiplier:g}" if multiplier == 0 else f"{multiplier:g}, {chosen[0].condition.label}"
            series.append(Series(label, styles[multiplier], chosen))
        if multiplier != 0 and (chosen := drawn(own, [multiplier])):
            series.append(Series(f"{multiplier:g}, own vector", dashed(styles[multiplier]), chosen))
    return series


# --- fine-tuned weights ----------------------------------------------------------------------------


def plot_finetuned(task: Task) -> None:
    """Fine-tuned weights against the original ones, over multipliers, at each layer with results."""
    of_layers: dict[int, list[Point]] = {}
    for behavior in task.files:
        conditions = weights_conditions(task, behavior)
        if not conditions:
            continue
        for layer in task.layers(*(condition.settings for condition in conditions)):
            plain = Condition("not fine-tuned", task.plain(behavior))
            points = plot_finetuned_layer(task, behavior, layer, [plain, *conditions])
            of_layers.setdefault(layer, []).extend(points)
    for layer, points in of_layers.items():
        if len({point.behavior for point in points}) > 1:
            settings = task.plain(points[0].behavior).at(layer, 0.0)
            stem = task.stem(settings, "multiplier", "behavior", prefix="finetuned_")
            task.wrote([save_latex_rows(stem, *latex_rows(task.paths, points, "weights"))])


def weights_conditions(task: Task, behavior: str) -> list[Condition]:
    """The fine-tuned weights asked for, or else all, that have results for this behavior."""
    plain = task.plain(behavior)
    found = {
        at.override_model_weights_path
        for at in task.files[behavior].paths
        if at.override_model_weights_path is not None
        and replace(at.at(0, 0.0), override_model_weights_path=None) == plain
    }
    named = {name: weights_label(name) for name in sorted(found, key=_positive_first) if name is not None}
    if task.args.override_weights:
        asked = zip(task.args.override_weights, _WEIGHTS_LABELS.values(), strict=True)
        named = {name: label for given, label in asked for name in named if name in written_as(given, task.paths.root)}
    return [Condition(label, replace(plain, override_model_weights_path=name)) for name, label in named.items()]


def weights_label(name: str) -> str:
    match = _WEIGHTS_NAME.fullmatch(name)
    if match is None:
        return name
    at_layer = "" if match.group(2) == "all" else f" (layer {match.group(2)})"
    return _WEIGHTS_LABELS[match.group(1)] + at_layer


def _positive_first(name: str | None) -> tuple[bool, str]:
    match = _WEIGHTS_NAME.fullmatch(name or "")
    return match is None or match.group(1) != "pos", name or ""


def written_as(given: str, root: Path) -> set[str]:
    """How weights given as a file or by name may stand in a result's name ('-' between the path's parts)."""
    path = Path(given)
    names = {given, "-".join(part for part in path.parts if part not in (path.anchor, "."))}
    absolute = path.resolve()
    if absolute.is_relative_to(root.resolve()):
        names.add("-".join(absolute.relative_to(root.resolve()).parts))
    return names | {"-".join(absolute.parts[1:])}


def plot_finetuned_layer(task: Task, behavior: str, layer: int, conditions: Sequence[Condition]) -> list[Point]:
    multipliers = task.multipliers([layer], *(condition.settings for condition in conditions[1:]))
    series = []
    for place, condition in enumerate(conditions):
        if points := drawn(task.measure(condition, [layer], multipliers), multipliers):
            series.append(Series(condition.label, nth_style(place), points))
    points = [point for one in series for point in one.points]
    if len(series) < 2:
        return points
    stem = task.stem(task.plain(behavior).at(layer, 0.0), "multiplier", prefix="finetuned_")
    title = task.title(task.about(behavior).label, f"layer {layer}")
    note = meaning_note(task.about(behavior), task.result_type)
    paths = plot_by_multiplier(stem, title, series, task.result_type, note)
    task.wrote([*paths, save_latex_rows(stem, *latex_rows(task.paths, points, "weights"))])
    return points
