"""A behavior's function vector beside its steering vectors: what each does to the preference for the answer's text."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from utils.data.estimates import Estimate
from utils.data.records import load_text_pairs
from utils.evaluation.metrics import mean_estimates
from utils.model.steering import Steering
from utils.research.function_request import FunctionRequest
from utils.research.preference import both_signs
from utils.vectors.norms import layer_norms, multiplier_of_strength

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

STRENGTH = 0.1
"""Of the layer's median residual norm; the same for every vector."""


def side_by_side(
    request: FunctionRequest, model: "LlamaWrapper", behavior: str, vectors: dict[str, Tensor]
) -> dict[str, Estimate]:
    """Preference for the matching answer at +STRENGTH minus at -STRENGTH, nats per token, over held-out items.

    Args:
        request: Says the layer, and how many items.
        model: The model.
        behavior: Whose text items.
        vectors: Of the request's layer, by name; those that are all zeros (examples that shuffling left as they
            were) have no strength and are left out. A random one of equal norm is put beside.
    """
    items = load_text_pairs(request.paths.test_dataset(behavior, "answer_text"))[: request.n_test]
    generator = torch.Generator().manual_seed(request.seed)
    there = {name: vector for name, vector in vectors.items() if float(vector.norm()) > 0}
    named = {**there, "random vector": torch.randn(model.d_model, generator=generator)}
    norm = layer_norms(model, request.paths)[request.layer]
    steerings = [
        Steering(request.layer, multiplier_of_strength(STRENGTH, norm, vector), vector) for vector in named.values()
    ]
    changes = both_signs(model, items, steerings, f"{behavior}: answers in words")
    return dict(zip(named, mean_estimates(changes, request.seed), strict=True))
