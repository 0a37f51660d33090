"""Draw the figures of saved activations that are planned."""

import logging
from collections.abc import Sequence

from utils.cli.progress import progress
from utils.data.records import ContrastPair, load_contrast_pairs
from utils.errors import UserError
from utils.evaluation.separation import LayerActivations, look_at_layer
from utils.evaluation.words import of_its_root
from utils.figures.activation_plans import Plan, layer_stem, sheet_stem
from utils.figures.activations import Drawn, plot_layer, plot_sheet
from utils.figures.requests import ActivationsRequest
from utils.figures.style import log_written
from utils.files.provenance import read_provenance
from utils.files.reading import load_activations, sha256_of
from utils.vectors.files import generate_command, layer_ranges
from utils.vectors.similarity import FloatArray

log = logging.getLogger(__name__)


@of_its_root
def draw(request: ActivationsRequest, plans: Sequence[Plan]) -> int:
    """Make the planned figures; returns how many.

    Raises:
        UserError: If activations do not fit their dataset.
    """
    return sum(plot_behavior(request, plan) for plan in plans)


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
            "%s: the dataset has changed since layers %s were made, so points may carry wrong letters; "
            "run: %s --overwrite",
            behavior,
            layer_ranges(other),
            generate_command(request.paths, [behavior], other, request.choice, activations=True),
        )
