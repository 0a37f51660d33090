"""From activations to a steering vector: the estimators, and normalisation.

An estimator takes two tables of activations, row i of each from one contrast pair, and gives one vector.
A new one is a function of that form and a line in `ESTIMATORS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.errors import UserError

Estimator = Callable[[Tensor, Tensor], Tensor]
"""Positive and negative activations, each [n_pairs, d_model], to a steering vector [d_model], float32."""


@dataclass
class RunningMean:
    """The mean difference in its streaming form: its memory does not grow with the number of pairs."""

    total: Tensor
    """Sum of positive minus negative so far, [..., d_model], float64."""
    n_pairs: int = 0

    def add(self, positive: Tensor, negative: Tensor) -> None:
        """Take in pairs, each [n, ..., d_model], any float dtype."""
        self.total = self.total + (positive.double() - negative.double()).sum(dim=0)
        self.n_pairs += positive.shape[0]

    @property
    def vector(self) -> Tensor:
        """The mean so far, [..., d_model], float32."""
        return (self.total / self.n_pairs).float()


def mean_difference(positive: Tensor, negative: Tensor) -> Tensor:
    """Average the activation difference over contrast pairs (CAA, Rimsky et al. 2023, eq. 1).

    Args:
        positive: Activations of the matching answers, [n_pairs, d_model], any float dtype.
        negative: Same shape; row i is the other half of pair i.

    Returns:
        Steering vector, [d_model], float32, on the inputs' device.

    Raises:
        UserError: If the shapes differ or n_pairs is 0.
    """
    check_tables(positive, negative)
    running = RunningMean(torch.zeros(positive.shape[1], dtype=torch.float64, device=positive.device))
    running.add(positive, negative)
    return running.vector


def check_tables(positive: Tensor, negative: Tensor) -> None:
    """Refuse what is not two equal tables with a row a pair."""
    if positive.shape != negative.shape or positive.dim() != 2 or positive.shape[0] == 0:
        raise UserError(
            f"a steering vector needs two equal activation tables [n_pairs, d_model], "
            f"found {list(positive.shape)} and {list(negative.shape)}"
        )


MEAN = "mean"
ESTIMATORS: dict[str, Estimator] = {MEAN: mean_difference}


def normalize_to_mean_norm(vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scale vectors to their mean Euclidean norm, so that one multiplier means the same for all.

    Args:
        vectors: One vector [d_model] a behavior, of the same layer and model.

    Returns:
        The scaled vectors, float32, under the same keys.

    Raises:
        UserError: If a vector is zero and so has no direction.
    """
    norms = {key: vector.double().norm().item() for key, vector in vectors.items()}
    for key, norm in norms.items():
        if norm == 0.0:
            raise UserError(f"the vector of {key} is all zeros and cannot be normalised; make it again")
    mean_norm = sum(norms.values()) / len(norms)
    return {key: (vector.double() * (mean_norm / norms[key])).float() for key, vector in vectors.items()}
