"""The figures of saved activations that are missing or older than their data: which they are, and making them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.cli.progress import progress
from utils.data.records import ContrastPair, load_contrast_pairs
from utils.errors import UserError
from utils.evaluation.separation import LayerActivations, look_at_layer
from utils.evaluation.words import of_its_root
from utils.figures.activations import Drawn, plot_layer, plot_sheet
from utils.figures.requests import ActivationsRequest, FigureCounts
from utils.figures.style import log_written, read_table, with_suffix
from utils.files.provenance import read_provenance
from utils.files.reading import load_activations, sha256_of
from utils.vectors.files import activation_labels, choice_of_label, find_activations, generate_command, layer_ranges
from utils.vectors.similarity import FloatArray

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """The figures of one behavior that are to be made."""

    behavior: str
    layers: Sequence[int]
    """Layers whose own figure is to be made."""
    sheet: Sequence[int]
    """Layers on the sheet; empty where it stays as it is."""
    n_skipped: int


@of_its_root
def plot_activations(request: ActivationsRequest) -> FigureCounts:
    """Make every figure that is asked for and not there yet.

    Raises:
        UserError: If nothing that was asked for is there, or activations do not fit their dataset.
    """
    plans = [make_plan(request, behavior, layers) for behavior, layers in find_available(request).items()]
    n_written = sum(plot_behavior(request, plan) for plan in plans if plan.layers or plan.sheet)
    return FigureCounts(n_written, sum(plan.n_skipped for plan in plans))


def find_available(request: ActivationsRequest) -> dict[str, list[int]]:
    """The layers to plot, by behavior. What is missing is named.

    Raises:
        UserError: If nothing that was asked for is there.
    """
    label = request.choice.label
    available, without = {}, []
    for behavior in request.behaviors:
        found = find_activations(request.paths, behavior, label)
        wanted = set(request.layers) if request.layers else found
        if not wanted & found:
            without.append(behavior)
            continue
        available[behavior] = sorted(wanted & found)
        if missing := sorted(wanted - found):
            command = generate_command(request.paths, [behavior], missing, request.choice, activations=True)
            where = layer_ranges(missing)
            log.warning("%s: no activations of %s at layers %s; run: %s", behavior, label, where, command)
    if without:
        command = generate_command(
            request.paths, without, sorted(set(request.layers)), request.choice, activations=True
        )
        where = f" at layers {layer_ranges(request.layers)}" if request.layers else ""
        folder = request.paths.root / "activations"
        message = f"no activations of {label}{where} for {', '.join(without)} in {folder}"
        if not available:
            raise UserError(f"{message}{_other_models(request)}; run: {command}")
        log.warning("%s; run: %s", message, command)
    return available


def _other_models(request: ActivationsRequest) -> str:
    """The other models that have activations, by the flags that plot them; empty where there are none."""
    labels = set().union(*(activation_labels(request.paths, behavior) for behavior in request.behaviors))
    flags = [" ".join(choice_of_label(label).command_words) for label in sorted(labels - {request.choice.label})]
    return f"; there are activations of other models, to plot them add {' or '.join(flags)}" if flags else ""


# --- what is to be made ----------------------------------------------------------------------------


def layer_stem(request: ActivationsRequest, behavior: str, layer: int) -> Path:
    return request.paths.analysis(behavior, f"pca_layer={layer}_{request.choice.label}")


def sheet_stem(request: ActivationsRequest, behavior: str) -> Path:
    return request.paths.analysis(behavior, f"pca_all_layers_{request.choice.label}")


def make_plan(request: ActivationsRequest, behavior: str, layers: Sequence[int]) -> Plan:
    """What is missing, older than its data, or to be overwritten. The sheet keeps the layers that it shows."""
    paths, label = request.paths, request.choice.label

    def inputs(of: Sequence[int]) -> list[Path]:
        halves = [paths.activations(behavior, side, layer, label) for layer in of for side in ("pos", "neg")]
        return [paths.generate_dataset(behavior), *halves]

    sheet = sheet_stem(request, behavior)
    shown = layers_on_sheet(sheet)
    on_sheet = sorted(set(layers) | (shown & find_activations(paths, behavior, label)))
    outdated = [
        layer
        for layer in layers
        if request.overwrite or not is_current(layer_stem(request, behavior, layer), inputs([layer]))
    ]
    sheet_stays = not request.overwrite and set(on_sheet) == shown and is_current(sheet, inputs(on_sheet))
    n_skipped = len(layers) - len(outdated) + sheet_stays
    return Plan(behavior, outdated, [] if sheet_stays or len(on_sheet) < 2 else on_sheet, n_skipped)


def layers_on_sheet(sheet: Path) -> set[int]:
    """The layers that the sheet shows; none where there is no sheet, or its table is not readable."""
    try:
        return {int(row["layer"]) for row in read_table(with_suffix(sheet, ".txt"))}
    except (FileNotFoundError, ValueError, KeyError, IndexError):
        return set()


def is_current(stem: Path, inputs: Sequence[Path]) -> bool:
    """Whether all of a figure's files are there and none is older than what it was made from."""
    outputs = [with_suffix(stem, suffix) for suffix in (".png", ".pdf", ".txt")]
    if not all(path.exists() for path in (*outputs, *inputs)):
        return False
    return min(path.stat().st_mtime_ns for path in outputs) >= max(path.stat().st_mtime_ns for path in inputs)


# --- making it -------------------------------------------------------------------------------------


def plot_behavior(request: ActivationsRequest, plan: Plan) -> int:
    """Make the planned figures; returns how many."""
    behavior, n_written = plan.behavior, 0
    dataset = request.paths.generate_dataset(behavior)
    pairs = load_contrast_pairs(dataset, f"run: ./process_raw_datasets.py --behaviors {behavior}")
    warn_of_other_dataset(request, plan)
    drawn, views = Drawn(behavior, request.choice.label, pairs, request.seed), []
    for layer in progress(sorted({*plan.layers, *plan.sheet}), desc=behavior, unit="layer"):
        view = view_layer(request, behavior, layer, pairs)
        if layer in plan.layers:
            n_written += log_written(plot_layer(layer_stem(request, behavior, layer), drawn, view))
        if layer in plan.sheet:
            views.append(view)
    if views:
        n_written += log_written(plot_sheet(sheet_stem(request, behavior), drawn, views))
    return n_written


def view_layer(
    request: ActivationsRequest, behavior: str, layer: int, pairs: Sequence[ContrastPair]
) -> LayerActivations:
    positive, negative = load_halves(request, behavior, layer, len(pairs))
    letters = [(pair.matching_letter, pair.other_letter) for pair in pairs]
    try:
        return look_at_layer(layer, positive, negative, letters, request.seed)
    except UserError as err:
        raise UserError(f"{behavior}, layer {layer}, {request.choice.label}: {err}") from err


def load_halves(request: ActivationsRequest, behavior: str, layer: int, n_pairs: int) -> tuple[FloatArray, FloatArray]:
    """The activations at the matching and at the other answers, each [n_pairs, d_model].

    Raises:
        UserError: If the rows are not the dataset's pairs, or the two halves do not fit each other.
    """
    again = f"run: {generate_command(request.paths, [behavior], [layer], request.choice, activations=True)} --overwrite"
    halves = []
    for side in ("pos", "neg"):
        path = request.paths.activations(behavior, side, layer, request.choice.label)
        half: FloatArray = load_activations(path).double().numpy()
        if len(half) != n_pairs:
            raise UserError(
                f"{path} has {len(half)} rows, but {request.paths.generate_dataset(behavior)} has {n_pairs} pairs, so "
                f"the letters are not known; {again}"
            )
        halves.append(half)
    positive, negative = halves
    if positive.shape != negative.shape:
        raise UserError(f"{path} has width {negative.shape[1]}, its other half {positive.shape[1]}; {again}")
    return positive, negative


def warn_of_other_dataset(request: ActivationsRequest, plan: Plan) -> None:
    """Say so where the vectors beside the activations were made from another version of the dataset."""
    paths, behavior, label = request.paths, plan.behavior, request.choice.label
    today = sha256_of(paths.generate_dataset(behavior))
    made_by = {
        layer: read_provenance(paths.vector(behavior, layer, label, normalized=False)) or {}
        for layer in sorted({*plan.layers, *plan.sheet})
    }
    if other := [layer for layer, run in made_by.items() if run.get("dataset_sha256", today) != today]:
        log.warning(
            "%s: the dataset has changed since layers %s were made, so points may bear wrong letters; "
            "run: %s --overwrite",
            behavior,
            layer_ranges(other),
            generate_command(request.paths, [behavior], other, request.choice, activations=True),
        )
