"""Which figures of saved activations are missing or older than their data. Light: nothing is drawn here."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError
from utils.figures.requests import ActivationsRequest
from utils.files.tables import read_table, with_suffix
from utils.vectors.files import activation_labels, choice_of_label, find_activations, generate_command, layer_ranges

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


def plan_figures(request: ActivationsRequest) -> list[Plan]:
    """What is to be made of each behavior that has activations.

    Raises:
        UserError: If nothing that was asked for is there.
    """
    return [make_plan(request, behavior, layers) for behavior, layers in find_available(request).items()]


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
