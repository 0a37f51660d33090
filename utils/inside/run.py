"""A run of analyze_vectors.py --decode and --prompt: reports for which the model itself is needed."""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from utils.errors import UserError
from utils.evaluation.words import are_all, behavior_label, describe, of_its_root
from utils.figures.requests import FigureCounts, InnerProduct, product_suffix
from utils.figures.style import log_written
from utils.files.tables import save_table, with_suffix
from utils.files.writing import write_text
from utils.inside.decode_run import plan_decodings
from utils.inside.figures import projections_table
from utils.inside.inner_product import causal_root
from utils.inside.planned import LayerVectors, PlannedReading, fingerprint, load_layer_vectors
from utils.inside.readings import generate_transcripts, project_tokens_on_all
from utils.inside.requests import InsideRequest, TokenPageRequest
from utils.inside.token_pages import token_page
from utils.model.checkpoints import ModelChoice
from utils.model.loading import load_config
from utils.model.steering import Steering
from utils.vectors.files import choice_of_label, find_vectors, generate_command, layer_ranges, normalize_command

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

log = logging.getLogger(__name__)

_NOT_IN_A_NAME = re.compile(r"[^a-z0-9]+")


@of_its_root
def look_inside(request: InsideRequest, load: "Callable[[ModelChoice], LlamaWrapper]") -> FigureCounts:
    """Make the reports that are asked for and do not show these vectors yet; the model is loaded only for such.

    Raises:
        UserError: If the model cannot be told, or vectors are missing.
    """
    choice, readings = plan_readings(request)
    waiting = [reading for reading in readings if request.overwrite or not reading.is_there()]
    if waiting:
        model = load(choice)
        for reading in waiting:
            log_written(reading.make(model))
    return FigureCounts(len(waiting), len(readings) - len(waiting))


def plan_readings(request: InsideRequest) -> tuple[ModelChoice, list[PlannedReading]]:
    """The model and what is asked for, whether it is there already or not.

    Raises:
        UserError: If the model cannot be told, or vectors are missing.
    """
    readings = []
    if request.decode:
        choice, layers_of = _vectors_asked_for(request, None)
        readings += plan_decodings(request, choice, layers_of)
    if request.page is not None:
        choice, layers_of = _vectors_asked_for(request, request.page)
        readings.append(plan_token_page(request, choice, request.page, layers_of))
    return choice, readings


# --- which vectors ---------------------------------------------------------------------------------


def _vectors_asked_for(
    request: InsideRequest, page: TokenPageRequest | None
) -> tuple[ModelChoice, dict[str, list[int]]]:
    """The model, and the layers by behavior of which there are vectors; for a page the normalised ones.

    Raises:
        UserError: If the model cannot be told, or vectors that were named are not there.
    """
    behaviors = list(dict.fromkeys([*request.behaviors, *([page.behavior] if page else [])]))
    is_page = page is not None
    kind = request.kind
    found = {behavior: find_vectors(request.paths, behavior, normalized=is_page, kind=kind) for behavior in behaviors}
    choice = request.choice or _only_model(set().union(*found.values()))
    layers_of = {behavior: sorted(layers.get(choice.label, ())) for behavior, layers in found.items()}
    if request.layers:
        wanted = sorted({*request.layers, page.layer} if page else set(request.layers))
        if lacking := [behavior for behavior, layers in layers_of.items() if not set(wanted) <= set(layers)]:
            raise _missing(request, choice, lacking, wanted, is_page)
        layers_of = dict.fromkeys(layers_of, wanted)
    if page and page.layer not in layers_of[page.behavior]:
        raise _missing(request, choice, [page.behavior], [page.layer], is_page)
    if not any(layers_of.values()):
        raise _missing(request, choice, behaviors, [], is_page)
    if absent := [behavior for behavior, layers in layers_of.items() if not layers]:
        log.warning("%s: left out, no vectors: %s", choice.label, ", ".join(absent))
    return choice, {behavior: layers for behavior, layers in layers_of.items() if layers}


def _only_model(labels: set[str]) -> ModelChoice:
    if len(labels) == 1:
        choice = choice_of_label(next(iter(labels)))
        if choice.size is not None:
            return choice
    there = ", ".join(sorted(labels)) or "none yet"
    raise UserError(f"name the model to look into, with --model_size or --model (models with vectors: {there})")


def _missing(
    request: InsideRequest, choice: ModelChoice, behaviors: Sequence[str], layers: Sequence[int], normalized: bool
) -> UserError:
    paths, kind = request.paths, request.kind
    n_layers = load_config(choice).num_hidden_layers if layers else 0
    if outside := [str(layer) for layer in layers if layer >= n_layers]:  # no matter of missing vectors
        return UserError(f"layers {', '.join(outside)}: {choice.label} has layers 0 to {n_layers - 1}")
    folder = paths.root / ("normalized_vectors" if normalized else "vectors")
    where = f" at layers {layer_ranges(layers)}" if layers else ""
    named = [] if are_all(behaviors) else behaviors
    command = generate_command(paths, named, layers, choice, kind=kind)
    then = f", then: {normalize_command(paths, named, choice, kind=kind)}" if normalized else ""
    return UserError(
        f"{folder}: not all vectors of {choice.label}{where} for {', '.join(behaviors)}; run: {command}{then}"
    )


# --- a prompt and its answer -----------------------------------------------------------------------


def plan_token_page(
    inside: InsideRequest, choice: ModelChoice, request: TokenPageRequest, layers_of: Mapping[str, Sequence[int]]
) -> PlannedReading:
    """A prompt and its answer, coloured by any of the behaviors' vectors at any layer."""
    paths, kind, product = inside.paths, inside.kind, inside.inner_product
    vectors = {
        behavior: load_layer_vectors(paths, choice.label, behavior, layers, normalized=True, kind=kind)
        for behavior, layers in layers_of.items()
    }
    steered = f"multiplier={request.multiplier}_" if request.multiplier else ""
    made_by = f"{choice.label}{kind.suffix}{product_suffix(product)}"
    name = f"tokens_layer={request.layer}_{steered}{made_by}_{_prompt_name(request.prompt)}"
    stem = paths.analysis(request.behavior, name)
    label = behavior_label(request.behavior)
    how = "without steering"
    if request.multiplier:
        how = f"steered with {request.multiplier:g} x the vector of {label} at layer {request.layer}"
    under = "" if product == "euclidean" else f" under the {product} inner product"
    subtitle = (
        f"{choice.label}; the answer is its most likely one, {how}, at most {request.max_new_tokens} tokens. "
        f"Values are of each token's residual stream behind a layer and that layer's normalised vector{under}."
    )
    notes = (
        f"{choice.label}, {label}, layer {request.layer}: residual stream of each token and the normalised vector"
        + under,
        f"prompt: {json.dumps(request.prompt)}",
        f"answer: {how}, at most {request.max_new_tokens} tokens",
        f"vectors: {fingerprint(vectors.values())} ({', '.join(vectors)})",
    )
    make = partial(_write_token_page, stem, request, vectors, subtitle, notes, product)
    return PlannedReading(stem, (".html",), notes, make)


def _write_token_page(
    stem: Path,
    request: TokenPageRequest,
    vectors: Mapping[str, LayerVectors],
    subtitle: str,
    notes: tuple[str, ...],
    product: InnerProduct,
    model: "LlamaWrapper",
) -> list[Path]:
    start = request.behavior, request.layer
    steering = None
    if request.multiplier:
        steering = Steering(request.layer, request.multiplier, vectors[request.behavior][request.layer])
    [transcript] = generate_transcripts(model, [request.prompt], request.max_new_tokens, steering)
    all_vectors = {
        (behavior, layer): (layer, vector) for behavior, of in vectors.items() for layer, vector in of.items()
    }
    root = causal_root(model) if product == "causal" else None
    projections = project_tokens_on_all(model, transcript, all_vectors, steering, root)
    page_path = with_suffix(stem, ".html")
    write_text(
        page_path,
        token_page(projections, start, "Tokens along a steering vector", subtitle, {b: describe(b) for b in vectors}),
    )
    return [page_path, save_table(stem, projections_table(projections[start], notes))]


def _prompt_name(prompt: str) -> str:
    """A prompt as part of a file name: its first words, and a checksum that tells it from others."""
    words = _NOT_IN_A_NAME.sub("-", prompt.lower())[:40].strip("-")
    return "-".join(part for part in (words, hashlib.sha256(prompt.encode()).hexdigest()[:8]) if part)
