"""The vectors of every layer, read three ways, and normalised; the layer and strength that are chosen of them."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from utils.authoring.request import KIND, KINDS, AuthoringRequest
from utils.data.estimates import Estimate, share_estimate
from utils.data.records import load_text_pairs
from utils.evaluation.chosen import Choice, ChoiceRequest, Outcome, load_choice, save_choice
from utils.files.reading import load_vector
from utils.model.checkpoints import check_layers
from utils.model.shapes import model_shape
from utils.settings import VectorKind
from utils.vectors.normalizing import Normalizer, NormalizeRequest, find_sets
from utils.vectors.plan import ExtractionRequest, plan_extraction

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from llama_wrapper import LlamaWrapper

log = logging.getLogger(__name__)

_MIDDLE = (0.4, 0.68)
"""Of the layers: where vectors of answers steer best (docs/steering.md); every second one is a candidate."""


def write_vectors(request: AuthoringRequest, load: "Callable[[], LlamaWrapper]", *, overwrite: bool) -> int:
    """Make the vectors of all layers that are missing, and normalise them; returns how many were made."""
    n_made = 0
    for kind in KINDS:
        asked = _extraction(request, kind, overwrite=overwrite)
        [plan] = plan_extraction(asked)
        if plan.layers:
            from utils.vectors.extraction import extract_behavior

            extract_behavior(load(), plan, asked)
            n_made += len(plan.layers)
    _normalize(request, overwrite=overwrite)
    return n_made


def _extraction(request: AuthoringRequest, kind: VectorKind, *, overwrite: bool) -> ExtractionRequest:
    return ExtractionRequest(
        paths=request.paths,
        choice=request.choice,
        behaviors=(request.behavior,),
        layers=tuple(range(model_shape(request.choice).n_layers)),
        command=request.command,
        kind=kind,
        overwrite=overwrite,
        batch_size=request.batch_size,
    )


def _normalize(request: AuthoringRequest, *, overwrite: bool) -> None:
    asked = NormalizeRequest(
        paths=request.paths,
        behaviors=(request.behavior,),
        layers=None,
        label=request.choice.label,
        reading=None,
        method=VectorKind.method,
        origin=VectorKind.origin,
        overwrite=overwrite,
        command=request.command,
    )
    for of_kind in find_sets(asked):
        if of_kind.kind in KINDS:
            normalizer = Normalizer(asked, of_kind)
            for layer in sorted(of_kind.layers_of[request.behavior]):
                normalizer.normalize(layer)


def choice_request(request: AuthoringRequest, *, overwrite: bool = False) -> ChoiceRequest:
    n_layers = model_shape(request.choice).n_layers
    middle = range(round(_MIDDLE[0] * n_layers), max(round(_MIDDLE[1] * n_layers), 1) + 1, 2)
    layers = request.layers or tuple(layer for layer in middle if layer < n_layers) or (n_layers // 2,)
    return ChoiceRequest(
        paths=request.paths,
        choice=request.choice,
        behaviors=(request.behavior,),
        layers=tuple(check_layers(layers, n_layers, request.choice.label)),
        kind=KIND,
        kl=request.kl,
        seed=request.seed,
        overwrite=overwrite,
        command=request.command,
        batch_size=request.batch_size,
    )


def write_choice(request: AuthoringRequest, model: "LlamaWrapper", *, overwrite: bool) -> None:
    """Choose layer and strength, and test them once."""
    from utils.evaluation.choice import Chooser
    from utils.figures.choice import plot_choice

    asked = choice_request(request, overwrite=overwrite)
    chosen = Chooser(model, asked).choose(request.behavior)
    plot_choice(chosen, asked)
    log.info("wrote %s", save_choice(chosen, asked, model.provenance()))


def read_choice(request: AuthoringRequest) -> Choice:
    """
    Raises:
        UserError: If nothing was chosen.
    """
    return load_choice(choice_request(request).output(request.behavior))[0]


@dataclass(frozen=True)
class ReadingSummary:
    """A vector of the chosen layer, read in one of three ways."""

    reading: str
    share: float
    """Its norm as a share of the layer's median residual norm."""
    cosine: float
    """With the vector that was read from the answers."""
    test: Outcome
    """Its effect on the test items at the chosen strength."""


def load_vectors(request: AuthoringRequest, layer: int, *, normalized: bool) -> "dict[str, Tensor]":
    """The vectors of a layer, by their reading."""
    found: dict[str, Tensor] = {}
    for kind in KINDS:
        path = request.paths.vector(request.behavior, layer, request.choice.label, normalized=normalized, kind=kind)
        found[kind.reading] = load_vector(path, hint=f"run: {request.again('vector')}")
    return found


def compare_readings(model: "LlamaWrapper", request: AuthoringRequest, choice: Choice) -> list[ReadingSummary]:
    """The three vectors of the chosen layer, at one and the same norm."""
    from utils.evaluation.choice import answer_effects, outcomes_of
    from utils.model.steering import Steering
    from utils.vectors.norms import layer_norms, multiplier_of_strength

    layer, strength = choice.chosen.layer, choice.chosen.strength
    norm = layer_norms(model, request.paths)[layer]
    vectors = load_vectors(request, layer, normalized=False)
    others = [one for reading, one in vectors.items() if reading != KIND.reading]  # that one was tested when chosen
    steerings = [Steering(layer, multiplier_of_strength(strength, norm, one), one) for one in others]
    items = load_text_pairs(request.paths.test_text_dataset(request.behavior))
    effects = answer_effects(model, items, steerings, request.batch_size, f"{request.behavior}: three readings")
    tested = iter(outcomes_of(effects, request.seed))
    outcomes = {reading: choice.test if reading == KIND.reading else next(tested) for reading in vectors}
    doubles = {reading: one.double() for reading, one in vectors.items()}
    own = doubles[KIND.reading]
    return [
        ReadingSummary(
            reading, float(one.norm()) / norm, float(one @ own / (one.norm() * own.norm())), outcomes[reading]
        )
        for reading, one in doubles.items()
    ]


def tell_apart(model: "LlamaWrapper", request: AuthoringRequest, choice: Choice) -> Estimate:
    """The share of test pairs whose matching answer lies further along the vector, as `monitor.py` projects them."""
    layer = choice.chosen.layer
    vector = load_vectors(request, layer, normalized=False)[KIND.reading].double()
    items = load_text_pairs(request.paths.test_text_dataset(request.behavior))
    n_apart = sum(
        int(((positive[:, 0].double() - negative[:, 0].double()) @ vector > 0).sum())
        for _, positive, negative in model.answer_activations(items, [layer], request.batch_size, (), KIND.reading)
    )
    return share_estimate(n_apart, len(items), len(items))
