#!/usr/bin/env python3
"""Plot the saved activations of contrast pairs on their principal components, layer by layer.

Colour says which side of the pair a point is, the marker which letter was read. Each figure also
says how well the steering vector tells the sides apart, as the area under the ROC curve (AUC): 0.5
is chance, 1 perfect; on pairs that the vector was not made from, among answers with the same letter.

Reads:   activations/<behavior>/activations_{pos,neg}_<layer>_<model>.pt
         datasets/generate/<behavior>/generate_dataset.json
Writes:  analysis/<behavior>/pca_layer=<layer>_<model>: .png, .pdf, and the points as .txt
         analysis/<behavior>/pca_all_layers_<model>: all layers on one sheet, and a table of layers
Example: ./plot_activations.py --behaviors sycophancy --layers $(seq 0 31) --model_size 7b

A figure that is older than its data is made again.
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from utils.behaviors import load_behavior
from utils.cli.flags import add_behaviors, add_layers, add_model, data_paths, make_parser, model_choice
from utils.cli.progress import progress
from utils.cli.run import EXIT_DONE, exit_with, run_main
from utils.data.records import ContrastPair, load_contrast_pairs
from utils.errors import UserError
from utils.model.checkpoints import ModelChoice
from utils.paths import DataPaths
from utils.vectors.files import find_activations, generate_command, layer_ranges

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

    from utils.vectors.analysis import LayerActivations

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, overwrite=True, seed=True)
    add_behaviors(parser)
    add_layers(parser, default="those with saved activations")
    add_model(parser)
    return parser


@dataclass(frozen=True)
class Plan:
    """The figures of one behavior that are to be made."""

    behavior: str
    layers: list[int] = field(default_factory=list)
    """Layers whose own figure is to be made."""
    sheet: list[int] = field(default_factory=list)
    """Layers on the sheet; empty where it stays as it is."""
    n_skipped: int = 0


def run(args: argparse.Namespace) -> int:
    paths, choice = data_paths(args), model_choice(args)
    available = find_available(args, paths, choice)
    plans = [make_plan(args, paths, choice, behavior, layers) for behavior, layers in available.items()]
    n_written = sum(plot_behavior(args, paths, choice, plan) for plan in plans if plan.layers or plan.sheet)
    n_skipped = sum(plan.n_skipped for plan in plans)
    log.info("wrote %d figures, skipped %d that are there already (--overwrite makes them again)", n_written, n_skipped)
    return EXIT_DONE


def find_available(args: argparse.Namespace, paths: DataPaths, choice: ModelChoice) -> dict[str, list[int]]:
    """The layers to plot, by behavior. What is missing is named.

    Raises:
        UserError: If nothing that was asked for is there.
    """
    available, without = {}, []
    for behavior in args.behaviors:
        found = find_activations(paths, behavior, choice.label)
        wanted = set(args.layers) if args.layers else found
        if not wanted & found:
            without.append(behavior)
            continue
        available[behavior] = sorted(wanted & found)
        if missing := sorted(wanted - found):
            command = generate_command(paths, [behavior], missing, choice, activations=True)
            log.warning(
                "%s: no activations of %s at layers %s; run: %s",
                behavior,
                choice.label,
                layer_ranges(missing),
                command,
            )
    if without:
        command = generate_command(paths, without, sorted(set(args.layers or ())), choice, activations=True)
        at = f" at layers {layer_ranges(args.layers)}" if args.layers else ""
        message = f"no activations of {choice.label}{at} for {', '.join(without)} in {paths.root / 'activations'}"
        if not available:
            raise UserError(f"{message}; run: {command}")
        log.warning("%s; run: %s", message, command)
    return available


# --- what is to be made ----------------------------------------------------------------------------


def layer_stem(paths: DataPaths, behavior: str, layer: int, label: str) -> Path:
    return paths.analysis(behavior, f"pca_layer={layer}_{label}")


def sheet_stem(paths: DataPaths, behavior: str, label: str) -> Path:
    return paths.analysis(behavior, f"pca_all_layers_{label}")


def make_plan(
    args: argparse.Namespace, paths: DataPaths, choice: ModelChoice, behavior: str, layers: list[int]
) -> Plan:
    """What is missing, older than its data, or to be overwritten. The sheet keeps the layers that it shows."""

    def inputs(of: Sequence[int]) -> list[Path]:
        halves = [paths.activations(behavior, side, layer, choice.label) for layer in of for side in ("pos", "neg")]
        return [paths.generate_dataset(behavior), *halves]

    sheet = sheet_stem(paths, behavior, choice.label)
    shown = layers_on_sheet(sheet)
    on_sheet = sorted(set(layers) | (shown & find_activations(paths, behavior, choice.label)))
    outdated = [
        layer
        for layer in layers
        if args.overwrite or not is_current(layer_stem(paths, behavior, layer, choice.label), inputs([layer]))
    ]
    sheet_stays = not args.overwrite and set(on_sheet) == shown and is_current(sheet, inputs(on_sheet))
    n_skipped = len(layers) - len(outdated) + sheet_stays
    if sheet_stays or len(on_sheet) < 2:
        return Plan(behavior, outdated, [], n_skipped)
    return Plan(behavior, outdated, on_sheet, n_skipped)


def layers_on_sheet(sheet: Path) -> set[int]:
    """The layers that the sheet shows; none where there is no sheet, or its table is not readable."""
    from utils.figures.style import read_table, with_suffix

    try:
        return {int(row["layer"]) for row in read_table(with_suffix(sheet, ".txt"))}
    except (FileNotFoundError, ValueError, KeyError, IndexError):
        return set()


def is_current(stem: Path, inputs: Sequence[Path]) -> bool:
    """Whether all of a figure's files are there and none is older than what it was made from."""
    from utils.figures.style import with_suffix

    outputs = [with_suffix(stem, suffix) for suffix in (".png", ".pdf", ".txt")]
    if not all(path.exists() for path in (*outputs, *inputs)):
        return False
    return min(path.stat().st_mtime_ns for path in outputs) >= max(path.stat().st_mtime_ns for path in inputs)


# --- making it -------------------------------------------------------------------------------------


def plot_behavior(args: argparse.Namespace, paths: DataPaths, choice: ModelChoice, plan: Plan) -> int:
    """Make the planned figures; returns how many."""
    from utils.figures.activations import Drawn, plot_layer, plot_sheet

    behavior, n_written = plan.behavior, 0
    dataset = paths.generate_dataset(behavior)
    pairs = load_contrast_pairs(dataset, f"run: {paths.command('process_raw_datasets', '--behaviors', behavior)}")
    warn_of_other_dataset(paths, choice, behavior, plan)
    drawn, views = Drawn(load_behavior(paths, behavior), choice.label, pairs, args.seed), []
    for layer in progress(sorted({*plan.layers, *plan.sheet}), desc=behavior, unit="layer"):
        view = view_layer(args, paths, choice, behavior, layer, pairs)
        if layer in plan.layers:
            stem = layer_stem(paths, behavior, layer, choice.label)
            plot_layer(stem, drawn, view)
            log.info("wrote %s (png, pdf, txt)", stem)
            n_written += 1
        if layer in plan.sheet:
            views.append(view)
    if views:
        stem = sheet_stem(paths, behavior, choice.label)
        plot_sheet(stem, drawn, views)
        log.info("wrote %s (png, pdf, txt)", stem)
        n_written += 1
    return n_written


def view_layer(
    args: argparse.Namespace,
    paths: DataPaths,
    choice: ModelChoice,
    behavior: str,
    layer: int,
    pairs: Sequence[ContrastPair],
) -> "LayerActivations":
    from utils.vectors.analysis import look_at_layer

    positive, negative = load_halves(paths, choice, behavior, layer, len(pairs))
    letters = [(pair.matching_letter, pair.other_letter) for pair in pairs]
    try:
        return look_at_layer(layer, positive, negative, letters, args.seed)
    except UserError as err:
        raise UserError(f"{behavior}, layer {layer}, {choice.label}: {err}") from err


def load_halves(
    paths: DataPaths, choice: ModelChoice, behavior: str, layer: int, n_pairs: int
) -> "tuple[NDArray[float64], NDArray[float64]]":
    """The activations at the matching and at the other answers, each [n_pairs, d_model].

    Raises:
        UserError: If the rows are not the dataset's pairs, or the two halves do not fit each other.
    """
    from utils.files.reading import load_activations

    again = f"run: {generate_command(paths, [behavior], [layer], choice, activations=True)} --overwrite"
    halves = []
    for side in ("pos", "neg"):
        path = paths.activations(behavior, side, layer, choice.label)
        half = load_activations(path).double().numpy()
        if len(half) != n_pairs:
            raise UserError(
                f"{path} has {len(half)} rows, but {paths.generate_dataset(behavior)} has {n_pairs} pairs, so the "
                f"letters are not known; {again}"
            )
        halves.append(half)
    positive, negative = halves
    if positive.shape != negative.shape:
        raise UserError(f"{path} has width {negative.shape[1]}, its other half {positive.shape[1]}; {again}")
    return positive, negative


def warn_of_other_dataset(paths: DataPaths, choice: ModelChoice, behavior: str, plan: Plan) -> None:
    """Say so where the vectors beside the activations were made from another version of the dataset."""
    from utils.files.provenance import read_provenance
    from utils.files.reading import sha256_of

    today = sha256_of(paths.generate_dataset(behavior))
    layers = sorted({*plan.layers, *plan.sheet})
    made_by = {
        layer: read_provenance(paths.vector(behavior, layer, choice.label, normalized=False)) or {} for layer in layers
    }
    if other := [layer for layer in layers if made_by[layer].get("dataset_sha256", today) != today]:
        log.warning(
            "%s: the dataset has changed since layers %s were made, so points may bear wrong letters; "
            "run: %s --overwrite",
            behavior,
            layer_ranges(other),
            generate_command(paths, [behavior], other, choice, activations=True),
        )


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser(), __file__, argv)


if __name__ == "__main__":
    exit_with(main())
