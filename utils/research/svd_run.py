"""Vectors taken apart by singular vectors: what each component is, and what few of them do."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from utils.data.records import load_text_pairs
from utils.figures.entries import ENTRY, report_entry
from utils.inside.readings import decode_vectors
from utils.model import processes
from utils.research.decompose_request import DEFAULT_RANKS, DecomposeRequest
from utils.research.pair_activations import PairActivations, load_pair_activations
from utils.research.svd_components import (
    Decomposition,
    FloatArray,
    centred_component,
    count_real,
    decompose,
    flipped_spectra,
    flipped_vectors,
    weights_null,
)
from utils.research.svd_figures import plot_decomposition, plot_effects
from utils.research.svd_results import N_LISTED, N_TOKENS, Apart, Done, PartEffect
from utils.research.vector_effects import WHOLE, Scoring, at_strength, compare, measure_effects
from utils.research.vector_parts import write_parts
from utils.saes.requests import write_result
from utils.vectors.norms import layer_norms

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

log = logging.getLogger(__name__)

HEADING = "What vectors are made of: singular vectors"


def take_apart(model: "LlamaWrapper", differences: FloatArray, n_flips: int, seed: int) -> Apart:
    """Everything of a vector that needs no steering.

    Raises:
        UserError: If there are too few pairs, or they do not differ.
    """
    parts = decompose(differences)
    spectra = flipped_spectra(differences, n_flips, seed)
    centred = centred_component(differences)
    listed = torch.from_numpy(parts.components[:N_LISTED]).float()
    return Apart(
        parts,
        spectra,
        count_real(parts.singular_values, spectra),
        weights_null(parts, n_flips, seed),
        float(centred @ parts.components[0]),
        float(centred @ parts.vector / np.linalg.norm(parts.vector)),
        decode_vectors(model, dict(enumerate(listed, 1)), N_TOKENS),
    )


def choose_ranks(request: DecomposeRequest, parts: Decomposition) -> list[int]:
    """Those asked for, as far as there are so many components."""
    if request.ranks is None:
        return [rank for rank in DEFAULT_RANKS if rank < parts.rank]
    return sorted({rank for rank in request.ranks if rank <= parts.rank})


def named_parts(request: DecomposeRequest, parts: Decomposition) -> dict[str, FloatArray]:
    """The vectors that are written and measured, by name."""
    first = {f"rank{rank}": parts.first(rank) for rank in choose_ranks(request, parts)}
    left = {f"without{k}": parts.without(k) for k in range(1, min(request.leave_out, parts.rank) + 1)}
    return first | left


def control_vectors(request: DecomposeRequest, differences: FloatArray) -> dict[str, FloatArray]:
    """Draws [n_random, d_model] of vectors that nothing should come of."""
    rng = np.random.default_rng(request.seed)
    drawn = flipped_vectors(differences, request.n_random, request.seed)
    return {"random": rng.normal(size=(request.n_random, differences.shape[1])), "drawn signs": drawn}


def run_decomposition(request: DecomposeRequest, model: "LlamaWrapper", behavior: str, layer: int) -> Done:
    """One job: take a vector apart, write its parts, measure them, and write and draw the results.

    Raises:
        UserError: If its inputs do not belong together.
    """
    loaded = load_pair_activations(request, behavior, layer, model.d_model)
    apart = take_apart(model, loaded.differences, request.n_flips, request.seed)
    parts = named_parts(request, apart.parts)
    made: dict[str, Any] = {**model.provenance(), "command": request.command}
    if processes.is_main():
        write_parts(request, behavior, layer, parts, {**made, "part_of": request.vector(behavior, layer).name})
    effects = measure_parts(request, model, behavior, layer, apart.parts, parts, loaded)
    done = Done(request, behavior, layer, apart, tuple(effects))
    if processes.is_main():
        stems = [plot_decomposition(done), plot_effects(done)]
        on_page = report_entry(request.choice.label, behavior, request.kind, HEADING, stems)
        content = {**done.as_json(), ENTRY: on_page}
        write_result(request.result(behavior, layer), request.settings(behavior, layer), made, content)
    return done


def measure_parts(
    request: DecomposeRequest,
    model: "LlamaWrapper",
    behavior: str,
    layer: int,
    whole: Decomposition,
    parts: Mapping[str, FloatArray],
    loaded: PairActivations,
) -> list[PartEffect]:
    """The effect of the whole vector, its parts and the controls, in that order."""
    norm = layer_norms(model, request.paths)[layer]
    controls = control_vectors(request, loaded.differences)
    rows = [whole.vector, *parts.values(), *(row for rows in controls.values() for row in rows)]
    steerings = [at_strength(layer, request.strength, norm, torch.from_numpy(row).float()) for row in rows]
    items = load_text_pairs(request.test_items(behavior))[: request.limit]
    scoring = Scoring(
        items,
        request.result(behavior, layer).parent,
        request.settings(behavior, layer),
        request.batch_size,
        request.plainly,
        f"{behavior}, layer {layer}",
    )
    each = measure_effects(model, steerings, scoring).both
    n_own = 1 + len(parts)
    drawn = [each[n_own + i * request.n_random :][: request.n_random].mean(axis=0) for i in range(len(controls))]
    compared = compare(np.stack([*each[:n_own], *drawn]), 0, request.seed)
    cosines = [_cosine(row, whole.vector) for row in rows[:n_own]]
    cosines += [float(np.mean([_cosine(row, whole.vector) for row in rows])) for rows in controls.values()]
    names = [WHOLE, *parts, *controls]
    ranks = [int(name.removeprefix("rank")) if name.startswith("rank") else None for name in names]
    return [PartEffect(*one) for one in zip(names, ranks, cosines, compared, strict=True)]


def _cosine(one: FloatArray, other: FloatArray) -> float:
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))
