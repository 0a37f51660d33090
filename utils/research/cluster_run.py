"""Clusters of a model's steering vectors at a layer, alone and among the SAE latents that are nearest to them."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from utils.behaviors import load_behavior
from utils.errors import UserError
from utils.evaluation.words import against_the_name
from utils.figures.requests import FigureCounts, VectorsRequest
from utils.figures.vector_run import make_figure, no_vectors_message, scope
from utils.figures.vector_sets import PlannedFigure
from utils.files.reading import load_vector
from utils.research.clusters import FEWEST, FloatArray, cluster, clusters_figure, clusters_table
from utils.saes.dictionary import SAE
from utils.settings import VectorKind
from utils.vectors.files import find_vectors

log = logging.getLogger(__name__)

NEAREST = 3
"""Latents of largest |cosine| with each vector."""


def plot_clusters(request: VectorsRequest, saes: Sequence[Path]) -> FigureCounts:
    """Draw the clusters of every model's vectors that there are.

    Raises:
        UserError: If there is nothing to cluster, or an SAE does not fit.
    """
    planned = list(_plan_all(request, [SAE.load(folder) for folder in saes]))
    if not planned:
        raise UserError(no_vectors_message(request))
    n_written = sum(make_figure(figure, request.overwrite) for figure in planned)
    return FigureCounts(n_written, len(planned) - n_written)


def _plan_all(request: VectorsRequest, saes: Sequence[SAE]) -> Iterator[PlannedFigure]:
    kind = request.kind
    found = {behavior: find_vectors(request.paths, behavior, kind=kind) for behavior in request.behaviors}
    for label in [request.choice.label] if request.choice else sorted(set().union(*found.values())):
        layers_of = {behavior: layers.get(label, set()) for behavior, layers in found.items()}
        there = sorted(set().union(*layers_of.values()))
        if not there:
            continue
        asked = sorted({sae.layer for sae in saes}) if saes else list(request.layers) or [there[len(there) // 2]]
        for layer in asked:
            behaviors = [behavior for behavior, layers in layers_of.items() if layer in layers]
            if not saes and len(behaviors) < FEWEST:
                log.warning("%s, layer %d%s: %d vectors, too few to cluster", label, layer, kind.suffix, len(behaviors))
                continue
            note = against_the_name(behaviors, "ab")
            vectors = _load(request, label, kind, layer, behaviors)
            if not saes:
                yield _plan(request, label, kind, layer, vectors, note, "")
            for sae in saes:
                if sae.layer == layer and vectors:
                    yield _plan(request, label, kind, layer, vectors | nearest_latents(vectors, sae), note, sae.name)


def _load(
    request: VectorsRequest, label: str, kind: VectorKind, layer: int, behaviors: Sequence[str]
) -> dict[str, FloatArray]:
    """By the behavior's label."""
    return {
        load_behavior(request.paths, behavior).label: load_vector(
            request.paths.vector(behavior, layer, label, normalized=False, kind=kind)
        )
        .double()
        .numpy()
        for behavior in behaviors
    }


def nearest_latents(vectors: dict[str, FloatArray], sae: SAE) -> dict[str, FloatArray]:
    """The decoder directions that are nearest to each vector, by name.

    Raises:
        UserError: If the SAE is of another width.
    """
    rows = sae.W_dec.double().cpu().numpy()
    width = len(next(iter(vectors.values())))
    if rows.shape[1] != width:
        raise UserError(f"SAE {sae.name} has width {rows.shape[1]}, but the vectors have {width}; name one that fits")
    units = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    chosen: dict[int, None] = {}
    for vector in vectors.values():
        chosen |= dict.fromkeys(np.argsort(-np.abs(units @ vector), kind="stable")[:NEAREST].tolist())
    return {f"latent {index}": rows[index] for index in sorted(chosen) if rows[index].any()}


def _plan(
    request: VectorsRequest, label: str, kind: VectorKind, layer: int, named: dict[str, FloatArray], note: str, sae: str
) -> PlannedFigure:
    clusters = cluster(np.stack(list(named.values())))
    narrowed = scope(replace(request, layers=()), with_behaviors=True)  # the layer is in the name
    among = f"_sae={sae}" if sae else ""
    title = f"{label}, layer {layer}: vectors read at the {kind.reading}{f', and latents of {sae}' if sae else ''}"
    return PlannedFigure(
        request.paths.analysis(f"clusters_layer={layer}_{narrowed}{label}{kind.suffix}{among}"),
        clusters_table(clusters, list(named), title),
        partial(clusters_figure, clusters, list(named), title, note),
    )
