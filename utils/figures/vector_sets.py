"""Which figures there are of a model's steering vectors, and what goes into each."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from utils.evaluation.words import against_the_name, behavior_label, meaning_note
from utils.figures import vectors as figures
from utils.files.tables import Table
from utils.paths import DataPaths
from utils.vectors.files import VectorTable
from utils.vectors.similarity import FloatArray, cosine_matrices, norms, paired_cosines

_CHAT = re.compile(r"-(chat|instruct|it)(?=-|$)", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class PlannedFigure:
    """A figure that can be drawn once its numbers turn out to be new."""

    stem: Path
    """Its path without suffix."""
    table: Table
    draw: Callable[[], Figure]
    """To be called inside `figure_style()`."""


def plan_layer_similarities(
    paths: DataPaths, behavior_scope: str, sheet_scope: str, vectors: VectorTable
) -> Iterator[PlannedFigure]:
    """How alike the vectors of different layers are, for each behavior and for all of them together."""
    matrices = cosine_matrices(vectors.values)  # [n_behaviors, n_layers, n_layers]
    what = f"cosine similarity between layers{vectors.note}"
    for behavior, matrix in zip(vectors.behaviors, matrices, strict=True):
        there = np.flatnonzero(np.isfinite(matrix).any(axis=1))
        if len(there) < 2:
            continue
        layers = [vectors.layers[index] for index in there]
        of_behavior = matrix[np.ix_(there, there)]
        title = f"{behavior_label(behavior)}, {vectors.label}: {what}"
        yield PlannedFigure(
            paths.analysis(behavior, f"cosine_between_layers_{behavior_scope}{vectors.label}"),
            figures.layers_table(of_behavior[None], [behavior], layers, title),
            _later(figures.layers_figure, title, meaning_note(behavior, "ab"), of_behavior, layers),
        )
    if len(vectors.behaviors) > 1 and len(vectors.layers) > 1:
        title = f"{vectors.label}: {what}"
        yield PlannedFigure(
            paths.analysis(f"cosine_between_layers_{sheet_scope}{vectors.label}"),
            figures.layers_table(matrices, vectors.behaviors, vectors.layers, title),
            _later(figures.layers_sheet, title, "", matrices, vectors.behaviors, vectors.layers),
        )


def plan_behavior_similarities(paths: DataPaths, scope: str, vectors: VectorTable) -> Iterator[PlannedFigure]:
    """How alike the vectors of different behaviors are, layer by layer, as a sheet and over layers."""
    if len(vectors.behaviors) < 2:
        return
    matrices = cosine_matrices(vectors.values.swapaxes(0, 1))  # [n_layers, n_behaviors, n_behaviors]
    title = f"{vectors.label}: cosine similarity between behaviors{vectors.note}"
    shown = (matrices, vectors.behaviors, vectors.layers)
    note = against_the_name(vectors.behaviors, "ab")
    yield PlannedFigure(
        paths.analysis(f"cosine_between_behaviors_{scope}{vectors.label}"),
        figures.behaviors_table(*shown, title),
        _later(figures.behaviors_sheet, title, note, *shown),
    )
    yield PlannedFigure(
        paths.analysis(f"cosine_between_behaviors_by_layer_{scope}{vectors.label}"),
        figures.pairs_table(*shown, title),
        _later(figures.pairs_figure, title, note, *shown),
    )


def plan_norms(paths: DataPaths, scope: str, before: VectorTable, after: VectorTable | None) -> PlannedFigure:
    """Norms over layers, before and (where there are such vectors) after normalisation."""
    found = [("before normalisation", norms(before.values))]
    if after is not None:
        found.append(("after normalisation", norms(aligned(after, before.behaviors, before.layers))))
    title = f"{before.label}: norms of the steering vectors"
    return PlannedFigure(
        paths.analysis(f"vector_norms_{scope}{before.label}"),
        figures.norms_table(found, before.behaviors, before.layers, title),
        _later(figures.norms_figure, title, "", found, before.behaviors, before.layers),
    )


def plan_model_similarity(paths: DataPaths, scope: str, chat: VectorTable, base: VectorTable) -> PlannedFigure | None:
    """How alike the vectors of a chat model and its base model are; None where they share no layer of a behavior."""
    behaviors = [behavior for behavior in chat.behaviors if behavior in base.behaviors]
    layers = [layer for layer in chat.layers if layer in base.layers]
    cosines = paired_cosines(aligned(chat, behaviors, layers), aligned(base, behaviors, layers))
    if not np.isfinite(cosines).any():
        return None
    title = f"{chat.label} and {base.label}: cosine similarity of the steering vectors"
    return PlannedFigure(
        paths.analysis(f"cosine_chat_and_base_{scope}{chat.label}_{base.label}"),
        figures.per_layer_table(cosines, behaviors, layers, title),
        _later(figures.models_figure, title, "", cosines, behaviors, layers),
    )


def aligned(vectors: VectorTable, behaviors: Sequence[str], layers: Sequence[int]) -> FloatArray:
    """The vectors of these behaviors and layers, [n_behaviors, n_layers, d_model]; NaN where there is none."""
    values = np.full((len(behaviors), len(layers), vectors.d_model), np.nan)
    for row, behavior in enumerate(behaviors):
        for column, layer in enumerate(layers):
            if behavior in vectors.behaviors and layer in vectors.layers:
                values[row, column] = vectors.values[vectors.behaviors.index(behavior), vectors.layers.index(layer)]
    return values


def chat_and_base(labels: Sequence[str]) -> list[tuple[str, str]]:
    """The labels of chat models whose base model is there, too: names that differ by -chat, -Instruct or -it."""
    found = []
    for label in labels:
        base = _CHAT.sub("", label, count=1)
        if base != label and base in labels:
            found.append((label, base))
    return found


def _later(draw: Callable[..., Figure], *arguments: object) -> Callable[[], Figure]:
    return lambda: draw(*arguments)
