"""A run of trace_steering.py: texts, steerings with their controls, numbers, files."""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from utils.cli.progress import progress
from utils.data.records import load_open_ended_questions
from utils.errors import UserError
from utils.evaluation.words import in_order, of_its_root
from utils.figures.entries import ENTRY, report_entry
from utils.files.reading import load_vector
from utils.inside.unembedding import Unembedding
from utils.model import processes
from utils.model.chat_format import AnswerTokens
from utils.model.downstream import settle
from utils.model.side_effects import neutral_answers
from utils.model.steering import Steering
from utils.research.trace_figures import plot_trace, trace_lines
from utils.research.trace_latents import trace_latents
from utils.research.trace_request import Place, TraceRequest
from utils.research.trace_result import Trace, build_trace
from utils.research.trace_sums import Collected, LatentSums, LayerVectors, trace_text
from utils.saes.dictionary import SAE, check_fits
from utils.saes.requests import write_result
from utils.vectors.norms import neutral_prompts_path

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

log = logging.getLogger(__name__)

SMALL_SHARE = 1 / 20
"""Of the multiplier: where the change is taken to be proportional to it."""


@of_its_root
def run_traces(request: TraceRequest, model: "LlamaWrapper", waiting: Sequence[Place]) -> list[str]:
    """Trace every vector that waits, and write what is found behavior by behavior; the lines to print.

    Raises:
        UserError: If an SAE does not fit, or a vector is of another width.
    """
    saes = load_saes(model, request, waiting)
    questions = load_open_ended_questions(neutral_prompts_path(request.paths))[: request.n_texts]
    texts = neutral_answers(model, [model.chat_format.encode(question) for question in questions])
    unembedding = Unembedding(model)
    lines: list[str] = []
    for behavior in dict.fromkeys(place.behavior for place in waiting):
        of_behavior = [place for place in waiting if place.behavior == behavior]
        for trace in trace_behavior(request, model, of_behavior, texts, unembedding, saes):
            if processes.is_main():
                write_trace(request, model, trace)
                lines += trace_lines(trace)
    return lines


def load_saes(model: "LlamaWrapper", request: TraceRequest, waiting: Sequence[Place]) -> list[SAE]:
    """
    Raises:
        UserError: If an SAE does not fit the model, or reads a layer that no steering reaches.
    """
    saes = [SAE.load(folder) for folder in request.saes]
    lowest = min(place.layer for place in waiting)
    for sae in saes:
        check_fits(sae, model.label, model.d_model, model.n_layers)
        if sae.layer < lowest:
            raise UserError(
                f"SAE {sae.name} reads layer {sae.layer}, below the steered layer {lowest}, where nothing changes; "
                "use an SAE of that layer or a later one"
            )
        if sae.own.get("weights_fingerprint", model.fingerprint) != model.fingerprint:
            log.warning("SAE %s was trained on other weights of %s", sae.name, model.label)
    return [sae.to(model.device) for sae in saes]


def steerings_of(place: Place, vector: Tensor, multiplier: float, n_random: int, seed: int) -> list[Steering]:
    """What is run of one vector: +m, -m, a small part of both, and random vectors of equal norm, +m and -m each."""
    vectors = [(vector, 1.0), (vector, -1.0), (vector, SMALL_SHARE), (vector, -SMALL_SHARE)]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n_random):
        random = torch.randn(vector.shape, generator=generator)
        random *= vector.norm() / random.norm()
        vectors += [(random, 1.0), (random, -1.0)]
    return [Steering(place.layer, share * multiplier, one) for one, share in vectors]


def compared_vectors(request: TraceRequest, d_model: int) -> tuple[list[str], LayerVectors]:
    """The behaviors, and by layer their unit vectors, [n_behaviors, d_model]; NaN where one has none."""
    found = request.compared()
    behaviors = in_order(found)
    by_layer = {layer: torch.full((len(behaviors), d_model), torch.nan) for layer in range(request.n_layers)}
    for row, behavior in enumerate(behaviors):
        for layer in found[behavior]:
            if layer in by_layer:
                vector = load_vector(request.vector(behavior, layer), d_model)
                by_layer[layer][row] = vector / vector.norm()
    return behaviors, by_layer


def trace_behavior(
    request: TraceRequest,
    model: "LlamaWrapper",
    places: Sequence[Place],
    texts: Sequence[AnswerTokens],
    unembedding: Unembedding,
    saes: Sequence[SAE],
) -> list[Trace]:
    """All layers of one behavior, in one pass over the texts; of several processes the main one has the result."""
    behaviors, compared = compared_vectors(request, model.d_model)
    of_place: dict[Place, list[Steering]] = {}
    for place in places:
        vector = load_vector(request.vector(*place), model.d_model)
        if not bool(vector.any()):
            raise UserError(f"{request.vector(*place)} is all zeros and cannot be traced; make it again")
        of_place[place] = steerings_of(place, vector, request.multiplier, request.n_random, request.seed)
    steerings = [one for of in of_place.values() for one in of]
    sums = [LatentSums.of(sae, len(steerings)) for sae in saes]
    settle(model, texts[0], steerings)
    collected = Collected.of(len(steerings), model, unembedding.n_tokens)
    what = f"{places[0].behavior}: texts, {len(steerings)} steerings each"
    for index, text in enumerate(progress(texts, desc=what)):
        if processes.is_mine(index):
            pairs = list(zip(saes, sums, strict=True))
            collected.add(index, trace_text(model, text, steerings, compared, unembedding, pairs))
    parts = processes.gather_to_main((collected, sums))
    if not parts:
        return []
    whole = Collected.merged([part for part, _ in parts])
    whole_sums = [LatentSums.merged([of[i] for _, of in parts]) for i in range(len(saes))]
    traces, first = [], 0
    for place, of in of_place.items():
        rows = slice(first, first + len(of))
        first += len(of)
        latents = [
            trace_latents(model, sae, one.rows(rows), of[0], texts)
            for sae, one in zip(saes, whole_sums, strict=True)
            if sae.layer >= place.layer
        ]
        n_tokens = sum(text.n_steered - 1 for text in texts)
        traces.append(build_trace(request, model, place, whole.rows(rows), behaviors, latents, n_tokens))
    return traces


def write_trace(request: TraceRequest, model: "LlamaWrapper", trace: Trace) -> None:
    """Figures and tables first, the result last: where it is there, all of them are."""
    path = request.result_path(trace.place)
    stems = plot_trace(request, trace)
    report: Mapping[str, object] = report_entry(
        request.choice.label, trace.place.behavior, request.kind, "Downstream of steering", stems
    )
    made = {**model.provenance(), "command": request.command}
    write_result(path, request.describe(trace.place), made, {"results": trace.as_json(), ENTRY: report})
