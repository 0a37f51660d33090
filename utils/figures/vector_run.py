"""A run of analyze_vectors.py: the vectors that there are, what is missing or does not fit, and the figures of them."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from utils.errors import UserError
from utils.evaluation.words import are_all, of_its_root
from utils.figures.requests import FigureCounts, VectorsRequest, product_suffix
from utils.figures.style import figure_style, log_written, save_figure
from utils.figures.vector_sets import (
    PlannedFigure,
    aligned,
    chat_and_base,
    plan_behavior_similarities,
    plan_layer_similarities,
    plan_model_similarity,
    plan_norms,
)
from utils.files.tables import with_suffix
from utils.paths import DataPaths
from utils.vectors.files import (
    VectorTable,
    choice_of_label,
    find_vectors,
    generate_command,
    layer_ranges,
    load_vector_table,
    normalize_command,
)
from utils.vectors.similarity import FloatArray, normalisation_faults, random_cosine

log = logging.getLogger(__name__)

RootOf = Callable[[str], FloatArray]
"""A model's label to the symmetric root [d_model, d_model] of its inner product's matrix."""
_FOUND_LAYERS = Mapping[str, set[int]]
"""By behavior."""


@dataclass(frozen=True, eq=False)
class ModelVectors:
    """One model's vectors, before and after normalisation."""

    before: VectorTable
    after: VectorTable | None
    """None where there are none."""


@of_its_root
def plot_vectors(request: VectorsRequest, root_of: RootOf | None = None) -> tuple[int, FigureCounts]:
    """Make every figure whose numbers are not those of the text beside it; how many models, and how many figures.

    Args:
        request: What to compare.
        root_of: Of each model, for another inner product than the usual one. What is no cosine is then left out, and
            so are two models beside each other, each of which has its own.

    Raises:
        UserError: If there are no such vectors at all, or they are broken.
    """
    models = load_models(request)
    for vectors in models.values():
        check_normalisation(request.paths, vectors)
    if root_of is None:
        planned = [figure for vectors in models.values() for figure in plan_model(request, vectors)]
        planned += plan_model_pairs(request, models)
    else:
        tables = [under_inner_product(one.before, root_of(label), request) for label, one in models.items()]
        planned = [figure for table in tables for figure in plan_similarities(request, table)]
    n_written = sum(make_figure(figure, request.overwrite) for figure in planned)
    return len(models), FigureCounts(n_written, len(planned) - n_written)


# --- what there is ---------------------------------------------------------------------------------


def load_models(request: VectorsRequest) -> dict[str, ModelVectors]:
    """The vectors of each model, by label. What is missing is named.

    Raises:
        UserError: If there are no such vectors at all.
    """
    before, after = (
        {
            behavior: find_vectors(request.paths, behavior, normalized=normalized, kind=request.kind)
            for behavior in request.behaviors
        }
        for normalized in (False, True)
    )
    models = {}
    for label in [request.choice.label] if request.choice else sorted(set().union(*before.values())):
        layers_of = _layers_asked_for(request, before, label)
        if not any(layers_of.values()):
            continue
        name_missing(request, label, layers_of)
        normalized_of = _layers_asked_for(request, after, label)
        name_not_normalized(request, label, layers_of, normalized_of)
        models[label] = ModelVectors(
            load_vector_table(request.paths, label, layers_of, normalized=False, kind=request.kind),
            load_vector_table(request.paths, label, normalized_of, normalized=True, kind=request.kind)
            if any(normalized_of.values())
            else None,
        )
    if not models:
        raise UserError(no_vectors_message(request))
    return models


def no_vectors_message(request: VectorsRequest) -> str:
    layers = sorted(set(request.layers))
    of_model = f" of {request.choice.label}" if request.choice else ""
    at_layers = f" at layers {layer_ranges(layers)}" if layers else ""
    command = generate_command(
        request.paths,
        [] if are_all(request.behaviors) else request.behaviors,
        layers,
        request.choice,
        kind=request.kind,
    )
    where = request.paths.root / "vectors"
    return f"no vectors{of_model}{at_layers} for {', '.join(request.behaviors)} in {where}; run: {command}"


def _layers_asked_for(
    request: VectorsRequest, found: Mapping[str, Mapping[str, set[int]]], label: str
) -> dict[str, set[int]]:
    of_label = {behavior: layers.get(label, set()) for behavior, layers in found.items()}
    return {b: layers & set(request.layers) if request.layers else layers for b, layers in of_label.items()}


def name_missing(request: VectorsRequest, label: str, layers_of: _FOUND_LAYERS) -> None:
    """Warn of behaviors and layers without vectors, with the commands that make them."""
    everywhere = set(request.layers) if request.layers else set().union(*layers_of.values())
    lacking: dict[tuple[int, ...], list[str]] = {}
    for behavior, layers in layers_of.items():
        if absent := sorted(everywhere - layers):
            lacking.setdefault(tuple(absent), []).append(behavior)
    for gap, behaviors in lacking.items():
        command = generate_command(request.paths, behaviors, gap, choice_of_label(label), kind=request.kind)
        log.warning(
            "%s: no vectors at layers %s for %s; run: %s", label, layer_ranges(gap), ", ".join(behaviors), command
        )


def name_not_normalized(
    request: VectorsRequest, label: str, layers_of: _FOUND_LAYERS, normalized_of: _FOUND_LAYERS
) -> None:
    absent = {behavior: layers - normalized_of[behavior] for behavior, layers in layers_of.items()}
    lacking = [behavior for behavior, layers in absent.items() if layers]
    if lacking:
        named = ", ".join(f"{behavior} (layers {layer_ranges(absent[behavior])})" for behavior in lacking)
        command = normalize_command(request.paths, lacking, choice_of_label(label), kind=request.kind)
        log.warning("%s: not normalised: %s; run: %s", label, named, command)


def check_normalisation(paths: DataPaths, vectors: ModelVectors) -> None:
    """Warn where the normalised vectors are not what today's vectors would give."""
    before, after = vectors.before, vectors.after
    if after is None:
        return
    if after.d_model != before.d_model:
        raise UserError(
            f"{before.label}: width {before.d_model} in vectors/, but {after.d_model} in normalized_vectors/; "
            f"run: {paths.command('normalize_vectors', '--overwrite')}"
        )
    faults = normalisation_faults(before.values, aligned(after, before.behaviors, before.layers))
    if faults.other_direction:
        where = [f"{before.behaviors[row]} layer {before.layers[column]}" for row, column in faults.other_direction]
        log.warning(
            "%s: normalised vectors were made from other vectors than today's: %s; "
            f"run: {paths.command('normalize_vectors', '--overwrite')}",
            before.label,
            ", ".join(where),
        )
    if faults.unequal_norms:
        log.warning(
            "%s: behaviors differ in norm after normalisation at layers %s (normalised apart from each other); "
            f"run: {paths.command('normalize_vectors', '--overwrite')}",
            before.label,
            layer_ranges(before.layers[index] for index in faults.unequal_norms),
        )


# --- figures ---------------------------------------------------------------------------------------


def scope(request: VectorsRequest, *, with_behaviors: bool) -> str:
    """What a file name says about the request where it narrows the figure down; empty where it does not."""
    parts = [f"layers={layer_ranges(request.layers)}_"] if request.layers else []
    if with_behaviors and not are_all(request.behaviors):
        parts.insert(0, f"behaviors={','.join(sorted(set(request.behaviors)))}_")
    return "".join(parts)


def plan_model(request: VectorsRequest, vectors: ModelVectors) -> Iterator[PlannedFigure]:
    """All figures of one model."""
    yield from plan_similarities(request, vectors.before)
    yield plan_norms(request.paths, scope(request, with_behaviors=True), vectors.before, vectors.after)


def plan_similarities(request: VectorsRequest, vectors: VectorTable) -> Iterator[PlannedFigure]:
    """All figures of cosines within one model."""
    wide, narrow = scope(request, with_behaviors=True), scope(request, with_behaviors=False)
    if len(vectors.layers) == 1:
        log.info("%s: only layer %d, so nothing to compare between layers", vectors.label, vectors.layers[0])
    if len(vectors.behaviors) == 1:
        log.info("%s: only %s, so nothing to compare between behaviors", vectors.label, vectors.behaviors[0])
    yield from plan_layer_similarities(request.paths, narrow, wide, vectors)
    yield from plan_behavior_similarities(request.paths, wide, vectors)


def under_inner_product(vectors: VectorTable, root: FloatArray, request: VectorsRequest) -> VectorTable:
    """The vectors in coordinates in which another inner product is the usual one.

    Args:
        vectors: As they are.
        root: Symmetric, [d_model, d_model].
        request: Names the inner product.

    Raises:
        UserError: If the widths differ.
    """
    if root.shape[0] != vectors.d_model:
        raise UserError(
            f"{vectors.label}: width {vectors.d_model}, but the model's residual stream has {root.shape[0]}"
        )
    by_chance = random_cosine(root)
    note = f" ({request.inner_product} inner product; of two random vectors 95% are within +-{by_chance:.2f})"
    label = f"{vectors.label}{product_suffix(request.inner_product)}"
    return replace(vectors, label=label, values=vectors.values @ root, note=note)


def plan_model_pairs(request: VectorsRequest, models: Mapping[str, ModelVectors]) -> Iterator[PlannedFigure]:
    """The comparisons of chat and base models."""
    for chat, base in chat_and_base(list(models)):
        tables = models[chat].before, models[base].before
        if tables[0].d_model != tables[1].d_model:
            log.warning("%s and %s differ in width (%d, %d): not compared", chat, base, *(t.d_model for t in tables))
        elif figure := plan_model_similarity(request.paths, scope(request, with_behaviors=True), *tables):
            yield figure
        else:
            log.warning("%s and %s share no layer of any behavior: not compared", chat, base)


def make_figure(figure: PlannedFigure, overwrite: bool) -> bool:
    """Draw and save a figure unless it is there with the same numbers; returns whether it was made."""
    if not overwrite and shows_these_numbers(figure):
        return False
    with figure_style():
        log_written(save_figure(figure.draw(), figure.stem, figure.table))
    return True


def shows_these_numbers(figure: PlannedFigure) -> bool:
    """Whether all files are there and the text beside the figure says the same, up to rounding."""
    files = [with_suffix(figure.stem, suffix) for suffix in (".png", ".pdf", ".txt")]
    if not all(path.exists() for path in files):
        return False
    there, wanted = files[-1].read_text(encoding="utf-8").split(), figure.table.to_text().split()
    return _same_words(there, wanted)


def _same_words(first: Sequence[str], second: Sequence[str]) -> bool:
    return len(first) == len(second) and all(map(_same_word, first, second))


def _same_word(first: str, second: str) -> bool:
    if first == second:
        return True
    try:
        return math.isclose(float(first), float(second), rel_tol=1e-9, abs_tol=1e-9)
    except ValueError:
        return False
