"""What operators need beside their vector, measured or read when an operator asks for it."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from utils.data.records import load_records, record_text
from utils.model.operators import Parts, operator_named, second_axis
from utils.model.pairs import encode_answer
from utils.model.steering import Operator
from utils.paths import DataPaths
from utils.vectors.norms import neutral_texts_path

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper


class OperatorMaker:
    """Makes operators for one model; what does not depend on the vector is measured once."""

    def __init__(self, model: "LlamaWrapper", paths: DataPaths) -> None:
        self.model, self.paths = model, paths

    def make(
        self,
        name: str,
        layer: int,
        vector: Tensor,
        quantile: float = 0.75,
        of_layers: Callable[[], Sequence[Tensor]] = lambda: (),
    ) -> Operator:
        """
        Args:
            name: Of the operator.
            layer: Where it edits.
            vector: What it edits along, [d_model].
            quantile: Of the operator `cap`.
            of_layers: Gives the behavior's vectors of all layers, for the plane of a rotation.

        Raises:
            UserError: If there is no such operator, or what it needs cannot be had.
        """

        def quantiles() -> tuple[float, float]:
            return self.component_quantiles(layer, vector, quantile)

        return operator_named(name, Parts(quantiles, lambda: second_axis(of_layers())))

    def component_quantiles(self, layer: int, vector: Tensor, quantile: float) -> tuple[float, float]:
        """Quantiles 1 - q and q of the component along a vector, over the tokens of the neutral answers."""
        along = self._neutral[layer] @ (vector.double() / vector.double().norm()).cpu()
        low, high = along.quantile(torch.tensor([1 - quantile, quantile], dtype=torch.float64)).tolist()
        return low, high

    @cached_property
    def _neutral(self) -> Tensor:
        """Residual stream where the suite steers, from the prompt's last token on, [n_layers, n_tokens, d_model]."""
        path = neutral_texts_path(self.paths)
        keys = ("question", "answer")
        texts = [[record_text(one, key, path, i) for key in keys] for i, one in enumerate(load_records(path, ""))]
        answers = [encode_answer(self.model.chat_format, question, answer) for question, answer in texts]
        return torch.cat([self.model.capture(one)[:, one.steer_start :] for one in answers], dim=1).double()
