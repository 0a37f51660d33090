"""Which layer and how strong: chosen on validation items under a budget of side effects, then tested once.

The validation items are a part of the generate set. While choosing, vectors are made from the rest of it, so
that no item says how well a vector works that it has helped to make (vectors of the model's own answers have seen
none of them). Test items are read once, at the end,
with the vectors of the whole generate set.

The budget is on the KL divergence to the unsteered model on neutral prompts. For small strengths KL grows with
the square of the strength, so it is a line in log-log coordinates, on which the strength is solved.
"""

import logging
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from utils.data.records import AnyPair, TextPair, load_open_ended_questions, load_text_pairs
from utils.errors import UserError
from utils.evaluation.chosen import Choice, ChoiceRequest, LayerChoice, Outcome
from utils.evaluation.metrics import mean_estimates
from utils.evaluation.paired_tests import paired_tests
from utils.evaluation.preferences import answer_pair, preferences
from utils.files.reading import load_vector
from utils.model import processes
from utils.model.side_effects import linear_range, measure_kl, neutral_answers
from utils.model.steering import Steering
from utils.paths import DataPaths
from utils.settings import VectorKind
from utils.vectors.estimators import ESTIMATORS
from utils.vectors.files import generate_command, normalize_command
from utils.vectors.norms import layer_norms, multiplier_of_strength, neutral_prompts_path
from utils.vectors.plan import load_pairs_for

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

log = logging.getLogger(__name__)

VALIDATION_SHARE = 1 / 3
MIN_VALIDATION = 4
PROBED_STRENGTHS = (0.05, 0.1)
"""At which KL is measured for the log-log line."""
MAX_STRENGTH = 0.5
"""Beyond half of the residual norm the line no longer holds, and text falls apart."""
N_NEUTRAL = 12
LEVELS = (0.5, 1.0)
"""Of the solved strength, at which effect and KL are measured."""
LINEAR_STRENGTHS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)


class Chooser:
    """Chooses for one model: what does not depend on the behavior is measured once."""

    def __init__(self, model: "LlamaWrapper", request: ChoiceRequest) -> None:
        self.model, self.request = model, request
        self.norms = layer_norms(model, request.paths)
        questions = load_open_ended_questions(neutral_prompts_path(request.paths))[:N_NEUTRAL]
        self.neutral = neutral_answers(model, [model.chat_format.encode(question) for question in questions])

    def choose(self, behavior: str) -> Choice:
        """Choose layer and strength, and test them once.

        Raises:
            UserError: If pairs or vectors are missing, or there are too few pairs.
        """
        request = self.request
        pairs, texts = load_both_forms(request.paths, behavior, request.kind)
        validation = validation_items(len(pairs), request.seed, behavior)
        chosen_set = set(validation)
        vectors = (
            self._vectors_of([pair for i, pair in enumerate(pairs) if i not in chosen_set])
            if request.kind.origin == "pairs"
            else {layer: self._whole_vector(behavior, layer, request.kind) for layer in request.layers}
        )
        strengths = self._solve_strengths(vectors)
        candidates = [(layer, level * strengths[layer]) for layer in request.layers for level in LEVELS]
        kl = self._kl_of(candidates, vectors)
        steerings = [self._steering(layer, strength, vectors[layer]) for layer, strength in candidates]
        effects = self._effects([texts[i] for i in validation], steerings, f"{behavior}: validation")
        by_layer = [
            LayerChoice(layer, strength, kl[place], estimate.value, estimate.low, estimate.high)
            for place, ((layer, strength), estimate) in enumerate(
                zip(candidates, mean_estimates(effects.both, request.seed), strict=True)
            )
        ]
        at_budget = [one for one in by_layer if one.strength == strengths[one.layer]]
        best = max(at_budget, key=lambda one: one.effect)
        return self._tested(behavior, best, tuple(by_layer), len(validation))

    def _tested(self, behavior: str, best: LayerChoice, by_layer: tuple[LayerChoice, ...], n: int) -> Choice:
        request = self.request
        vector = self._whole_vector(behavior, best.layer, request.kind)
        vectors = {"chosen": vector, **self._controls(behavior, best.layer, vector)}
        steerings = [self._steering(best.layer, best.strength, one) for one in vectors.values()]
        items = load_text_pairs(request.paths.test_dataset(behavior, "answer_text"))
        effects = self._effects(items, steerings, f"{behavior}: test")
        outcomes = dict(zip(vectors, outcomes_of(effects, request.seed), strict=True))
        unit = multiplier_of_strength(1.0, self.norms[best.layer], vector)
        linear = linear_range(
            self.model, self.neutral[0], Steering(best.layer, 1.0, vector), [unit * s for s in LINEAR_STRENGTHS]
        )
        return Choice(
            behavior,
            by_layer,
            best,
            n,
            None if linear is None else linear / unit,
            unit * best.strength,
            outcomes.pop("chosen"),
            outcomes,
        )

    def _controls(self, behavior: str, layer: int, vector: Tensor) -> dict[str, Tensor]:
        """Vectors to test beside it at the same norm: a random one, and the letter vector where there is one."""
        generator = torch.Generator().manual_seed(self.request.seed)
        controls = {"random": torch.randn(vector.shape, generator=generator)}
        letter = VectorKind()
        path = self.request.paths.vector(behavior, layer, self.request.choice.label, normalized=True, kind=letter)
        if self.request.kind != letter and path.exists():
            controls["letter"] = self._whole_vector(behavior, layer, letter)
        return controls

    def _whole_vector(self, behavior: str, layer: int, kind: VectorKind) -> Tensor:
        request = self.request
        path = request.paths.vector(behavior, layer, request.choice.label, normalized=True, kind=kind)
        make = generate_command(request.paths, [behavior], [], request.choice, kind=kind)
        then = normalize_command(request.paths, [], request.choice, kind=kind)
        return load_vector(path, self.model.d_model, f"run: {make}, then: {then}")

    def _vectors_of(self, pairs: Sequence[AnyPair]) -> dict[int, Tensor]:
        """The vector of every layer from some pairs."""
        layers, kind = self.request.layers, self.request.kind
        positive, negative = torch.empty(2, len(pairs), len(layers), self.model.d_model)
        own = list(self.model.answer_activations(pairs, list(layers), self.request.batch_size, (), kind.reading))
        for share in processes.gather(own):
            for indices, of_matching, of_other in share:
                positive[indices], negative[indices] = of_matching, of_other
        estimate = ESTIMATORS[kind.method]
        return {layer: estimate(positive[:, row], negative[:, row]) for row, layer in enumerate(layers)}

    def _steering(self, layer: int, strength: float, vector: Tensor) -> Steering:
        return Steering(layer, multiplier_of_strength(strength, self.norms[layer], vector), vector)

    def _kl_of(self, candidates: Sequence[tuple[int, float]], vectors: Mapping[int, Tensor]) -> list[float]:
        """95th percentile of the per-token KL of each candidate; the larger one of both signs."""
        steerings = [self._steering(layer, sign * s, vectors[layer]) for layer, s in candidates for sign in (1, -1)]
        found = measure_kl(self.model, self.neutral, steerings).percentile(0.95)
        return [float(pair.max()) for pair in found.view(-1, 2)]

    def _solve_strengths(self, vectors: Mapping[int, Tensor]) -> dict[int, float]:
        """The strength of every layer that spends the budget."""
        layers = self.request.layers
        kl = self._kl_of([(layer, strength) for layer in layers for strength in PROBED_STRENGTHS], vectors)
        solved = {}
        for place, layer in enumerate(layers):
            solved[layer] = solve_strength(PROBED_STRENGTHS, kl[2 * place : 2 * place + 2], self.request.kl)
        spent = self._kl_of([(layer, solved[layer]) for layer in layers], vectors)
        over = {layer: kl for layer, kl in zip(layers, spent, strict=True) if kl > self.request.kl}
        # where the curve is steeper than its line, half way back is within the budget: KL is about quadratic
        return {
            layer: s * min(1.0, math.sqrt(self.request.kl / over[layer])) if layer in over else s
            for layer, s in solved.items()
        }

    def _effects(self, items: Sequence[TextPair], steerings: Sequence[Steering], what: str) -> "Effects":
        """What each steering and its opposite change on some items."""
        return answer_effects(self.model, items, steerings, self.request.batch_size, what)


def answer_effects(
    model: "LlamaWrapper", items: Sequence[TextPair], steerings: Sequence[Steering], batch_size: int | None, what: str
) -> "Effects":
    """What each steering and its opposite change of the preference for the matching answers; `what` is for progress."""
    signed = [replace(one, multiplier=sign * one.multiplier) for one in steerings for sign in (1, -1)]
    pairs = [answer_pair(model.chat_format, item) for item in items]
    preference = preferences(model, pairs, [None, *signed], batch_size, what)
    change = preference[1:] - preference[0]
    return Effects(change[0::2], change[1::2])


@dataclass(frozen=True)
class Effects:
    """Changes of the preference for the matching answer from no steering, [n_candidates, n_items], nats per token."""

    plus: "np.ndarray[Any, np.dtype[np.float64]]"
    minus: "np.ndarray[Any, np.dtype[np.float64]]"

    @property
    def both(self) -> "np.ndarray[Any, np.dtype[np.float64]]":
        return self.plus - self.minus


def outcomes_of(effects: Effects, seed: int) -> list[Outcome]:
    """What each steering did to the items."""
    p_values = paired_tests(effects.both, seed).p_value
    return [
        Outcome(
            estimate.n,
            estimate.value,
            estimate.low,
            estimate.high,
            float(p_values[row]),
            float(effects.minus[row].mean()),
            float(effects.plus[row].mean()),
            float((effects.both[row] > 0).mean()),
        )
        for row, estimate in enumerate(mean_estimates(effects.both, seed))
    ]


def solve_strength(
    strengths: Sequence[float], kl: Sequence[float], budget: float, largest: float = MAX_STRENGTH
) -> float:
    """The strength at which KL meets the budget, on the log-log line through two measured points.

    Args:
        strengths: Two.
        kl: At these.
        budget: In the same unit.
        largest: That may be used.

    Returns:
        At most `largest`; that too where the KL does not grow (nothing is known to forbid it).
    """
    (low, high), (kl_low, kl_high) = strengths, (max(value, 1e-12) for value in kl)
    slope = math.log(kl_high / kl_low) / math.log(high / low)
    if slope <= 0:
        return largest
    return min(largest, high * (budget / kl_high) ** (1 / slope))


def load_both_forms(paths: DataPaths, behavior: str, kind: VectorKind) -> tuple[Sequence[AnyPair], list[TextPair]]:
    """The generate set as the reading takes it, and the same pairs as texts to measure on.

    Raises:
        UserError: If it is missing, broken, or has no texts (pairs of prompts).
    """
    if kind.reading in ("prompt", "prompt_mean"):
        raise UserError(
            f"--read {kind.reading}: pairs of prompts have no answers to choose by; choose with --read answer"
        )
    dataset = load_pairs_for(paths, behavior, kind.reading)
    return dataset.pairs, load_text_pairs(dataset.path)


def validation_items(n_pairs: int, seed: int, behavior: str) -> list[int]:
    """A third of the pairs, drawn with the seed.

    Raises:
        UserError: If that is too few to choose by.
    """
    n = int(n_pairs * VALIDATION_SHARE)
    if n < MIN_VALIDATION:
        raise UserError(
            f"{behavior}: {n_pairs} pairs are too few to choose by; it takes at least "
            f"{math.ceil(MIN_VALIDATION / VALIDATION_SHARE)}, a third of which are set aside"
        )
    return sorted(random.Random(seed).sample(range(n_pairs), n))
