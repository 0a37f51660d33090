"""Layer and amount of a vector: the amount that spends the budget of KL at each layer, and the layer by validation.

The amount is a strength for operators that add, else the multiplier. What is solved on the first half of the neutral
prompts is reported on the other half.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from utils.data.records import TextPair, load_open_ended_questions
from utils.evaluation.choice import MAX_STRENGTH, PROBED_STRENGTHS, solve_strength
from utils.evaluation.metrics import mean_estimates
from utils.model.side_effects import measure_kl, neutral_answers
from utils.model.steering import Operator, Steering
from utils.research.benchmark_measures import Subject, preferences
from utils.research.benchmark_methods import NotRun
from utils.settings import ADDING_OPERATORS
from utils.vectors.norms import layer_norms, multiplier_of_strength, neutral_prompts_path
from utils.vectors.operator_parts import OperatorMaker

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper
    from utils.research.benchmark_request import BenchmarkRequest

TOLERANCE = 1.05
"""Times the budget: what a solved amount may spend."""
ROUNDS = 4
FULL_SHARE = 1.0
SMALLEST = 1e-3
"""An amount below which nothing is steered: of float32's arithmetic more than of the vector."""


@dataclass(frozen=True)
class LayerOutcome:
    """One layer at its amount, on the validation items."""

    layer: int
    amount: float
    kl_95: float
    effect: float = math.nan
    """With its interval; NaN where nothing was to be chosen."""
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class ChosenAmount:
    """What was chosen for a method."""

    layer: int
    amount: float
    sign: int
    """-1 where the negative multiplier is the behavior's side: only of operators whose multiplier is a share."""
    by_layer: tuple[LayerOutcome, ...]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "by_layer": [asdict(one) for one in self.by_layer]}


class AmountChooser:
    """Chooses for one model: norms and neutral answers are measured once."""

    def __init__(self, model: "LlamaWrapper", request: "BenchmarkRequest") -> None:
        self.model, self.request = model, request
        self.norms = layer_norms(model, request.paths)
        questions = load_open_ended_questions(neutral_prompts_path(request.paths))
        half = min(request.sizes.neutral, len(questions) // 2)
        questions = questions[: 2 * half]
        answers = neutral_answers(model, [model.chat_format.encode(question) for question in questions])
        self._solving = answers[:half]
        self.reported = questions[half:], answers[half:]
        """Neutral prompts that nothing is chosen on, and the unsteered answers to them."""
        self._maker = OperatorMaker(model, request.paths)

    def steering_of(self, vectors: Mapping[int, Tensor], operator: str) -> Callable[[int, float], Steering]:
        """Makes the steering at a layer and an amount."""
        made: dict[int, Operator] = {}

        def steering(layer: int, amount: float) -> Steering:
            vector = vectors[layer]
            if layer not in made:
                made[layer] = self._maker.make(operator, layer, vector, of_layers=lambda: list(vectors.values()))
            adds = operator in ADDING_OPERATORS
            multiplier = multiplier_of_strength(amount, self.norms[layer], vector) if adds else amount
            return Steering(layer, multiplier, vector, made[layer])

        return steering

    def choose(
        self,
        steering: Callable[[int, float], Steering],
        layers: Sequence[int],
        operator: str,
        items: Sequence[TextPair],
    ) -> ChosenAmount:
        """
        Args:
            steering: As `steering_of` makes it.
            layers: To choose from.
            operator: Of the steering.
            items: To choose on; none where there is one layer, and no sign to choose either.

        Raises:
            NotRun: If no layer has an amount within the budget.
        """
        within = self.solve(steering, layers, operator)
        if not items:
            [only] = within
            return ChosenAmount(only.layer, only.amount, 1, (only,))
        sides = [steering(one.layer, sign * one.amount) for one in within for sign in (1, -1)]
        found = preferences([Subject(self.model, side) for side in sides], items, self.request.batch_size)
        effects = found[0::2] - found[1::2]
        by_layer = [
            replace(one, effect=estimate.value, low=estimate.low, high=estimate.high)
            for one, estimate in zip(within, mean_estimates(effects, self.request.seed), strict=True)
        ]
        may_turn = operator not in ADDING_OPERATORS
        best = max(by_layer, key=lambda one: abs(one.effect) if may_turn else one.effect)
        return ChosenAmount(best.layer, best.amount, -1 if may_turn and best.effect < 0 else 1, tuple(by_layer))

    def solve(
        self, steering: Callable[[int, float], Steering], layers: Sequence[int], operator: str
    ) -> list[LayerOutcome]:
        """The amount that spends the budget at every layer where one does."""
        budget, largest = self.request.kl, MAX_STRENGTH if operator in ADDING_OPERATORS else FULL_SHARE
        probed = self._kl_95(steering, [(layer, amount) for layer in layers for amount in PROBED_STRENGTHS])
        amounts = {
            layer: solve_strength(PROBED_STRENGTHS, probed[2 * i : 2 * i + 2], budget, largest)
            for i, layer in enumerate(layers)
        }
        spent: dict[int, float] = {}
        over = list(layers)
        for _ in range(ROUNDS):
            spent |= dict(zip(over, self._kl_95(steering, [(layer, amounts[layer]) for layer in over]), strict=True))
            over = [layer for layer in over if spent[layer] > TOLERANCE * budget]
            if not over:
                break
            amounts |= {layer: amounts[layer] * math.sqrt(budget / spent[layer]) for layer in over}
        within = [layer for layer in layers if layer not in over and amounts[layer] >= SMALLEST]
        if not within:
            named = ", ".join(map(str, layers))
            raise NotRun(f"no strength at layers {named} meets the KL budget of {budget:g} nats", "raise --kl")
        return [LayerOutcome(layer, amounts[layer], spent[layer]) for layer in within]

    def _kl_95(self, steering: Callable[[int, float], Steering], at: Sequence[tuple[int, float]]) -> list[float]:
        """95th percentile of the per-token KL; the larger one of both signs."""
        both = [steering(layer, sign * amount) for layer, amount in at for sign in (1, -1)]
        found: Tensor = measure_kl(self.model, self._solving, both).percentile(0.95)
        return [float(pair.max()) for pair in torch.as_tensor(found).view(-1, 2)]
