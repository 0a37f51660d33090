"""What a sweep does to the model: its operator, the vectors beside the swept one, and the gate before them."""

import logging
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor

from utils.data.records import load_prompt_pairs
from utils.errors import UserError
from utils.evaluation.plan import Sweep, SweepRequest
from utils.files.reading import load_vector
from utils.model.checkpoints import check_layers
from utils.model.conditions import FittedCondition, fit_condition
from utils.model.steering import Operator, Steering, add
from utils.paths import parse_vector_name
from utils.vectors.norms import multiplier_of_strength
from utils.vectors.operator_parts import OperatorMaker

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

log = logging.getLogger(__name__)


class SweepEdits:
    """Makes the steerings of one sweep."""

    def __init__(self, model: "LlamaWrapper", request: SweepRequest, sweep: Sweep) -> None:
        self.model, self.request, self.sweep = model, request, sweep
        self._maker = OperatorMaker(model, request.paths)
        self._fitted = self._fit() if request.condition else None
        self._operators: dict[tuple[int, int], Operator] = {}  # by layer and vector

    @property
    def facts(self) -> dict[str, Any]:
        """For the run record."""
        return {"condition": self._fitted.describe()} if self._fitted else {}

    def steering(self, layer: int, vector: Tensor, amount: float, norms: Sequence[float]) -> Steering:
        """At a multiplier or, where there are norms of the layers, at a strength."""
        multiplier = multiplier_of_strength(amount, norms[layer], vector) if norms else amount
        condition = self._fitted.condition if self._fitted else None
        return Steering(layer, multiplier, vector, self._operator(layer, vector), condition=condition)

    def beside(self, amount: float, norms: Sequence[float]) -> list[Steering]:
        """With the vectors beside the swept one, each at its layer and weight."""
        return [self.steering(layer, vector, weight * amount, norms) for layer, vector, weight in self._beside]

    @cached_property
    def _beside(self) -> list[tuple[int, Tensor, float]]:
        found = []
        for one, path in self.sweep.beside:
            check_layers([one.layer], self.model.n_layers, self.model.label, "--beside")
            found.append((one.layer, load_vector(path, self.model.d_model), one.weight))
        return found

    def _operator(self, layer: int, vector: Tensor) -> Operator:
        if self.request.operator == "add":
            return add
        key = (layer, id(vector))
        if key not in self._operators:
            name, quantile = self.request.operator, self.request.quantile
            self._operators[key] = self._maker.make(name, layer, vector, quantile, lambda: self._plane)
        return self._operators[key]

    @cached_property
    def _plane(self) -> list[Tensor]:
        return [load_vector(path, self.model.d_model) for path in self.sweep.plane]

    def _fit(self) -> FittedCondition:
        """
        Raises:
            UserError: If the pairs are too few, or the condition's vector is not one of this model's layers.
        """
        assert self.request.condition is not None
        model, path = self.model, self.request.condition_vector
        pairs = load_prompt_pairs(self.request.condition)
        layers, vector = list(range(model.n_layers)), None
        if path is not None:
            named = parse_vector_name(path.name)
            if named is None:
                raise UserError(f"--condition_vector {path}: its name does not say its layer (vec_layer_N_MODEL.pt)")
            if named.model_label != model.label:
                raise UserError(f"--condition_vector {path} is a vector of {named.model_label}, not of {model.label}")
            layers = check_layers([named.layer], model.n_layers, model.label, "--condition_vector")
            vector = load_vector(path, model.d_model)
        fitted = fit_condition(model, pairs, layers, self.sweep.system_prompt, vector)
        log.info("condition %s: %s", self.request.condition.stem, fitted.describe())
        return fitted
