"""From activations to a steering vector: the estimators, and normalisation.

An estimator takes two tables of activations, row i of each from one contrast pair, and gives one vector.
A new one is a function of that form and a line in `ESTIMATORS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from utils.errors import UserError
from utils.settings import METHODS

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

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
            f"a steering vector needs two activation tables of the same shape [n_pairs, d_model], "
            f"found {list(positive.shape)} and {list(negative.shape)}"
        )


def _check_spread(rows: Tensor) -> None:
    """Refuse rows that are all zero (or not finite): they have no direction."""
    if not float(rows.norm()) > 0:
        raise UserError(f"{rows.shape[0]} pairs do not give a direction; their activations do not differ")


def with_mean_s_sign_and_norm(direction: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """A direction scaled to the mean difference's norm, and turned to its side.

    An axis has no sign of its own, and its length means nothing: the sign is that of its projection on the mean
    difference, the norm the mean difference's, so that multipliers compare.

    Raises:
        UserError: If the direction is not one (all zeros or not finite).
    """
    mean = mean_difference(positive, negative).double()
    length = direction.norm()
    if not bool(length.isfinite()) or float(length) == 0.0:
        raise UserError(f"{positive.shape[0]} pairs do not give a direction; their activations do not differ")
    unit = direction / length
    return (unit * mean.norm() * (-1.0 if float(unit @ mean) < 0 else 1.0)).float()


def principal_difference(positive: Tensor, negative: Tensor) -> Tensor:
    """First principal component of the centred pair differences; see `with_mean_s_sign_and_norm`.

    Takes and gives what every estimator does.
    """
    check_tables(positive, negative)
    return _first_component(positive.double() - negative.double(), positive, negative)


def principal_pair_axis(positive: Tensor, negative: Tensor) -> Tensor:
    """First principal component of all activations, each pair centred at its own mean (Zou et al. 2023, LAT)."""
    check_tables(positive, negative)
    half = (positive.double() - negative.double()) / 2
    return _first_component(torch.cat([half, -half]), positive, negative)


def _first_component(rows: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    from sklearn.decomposition import PCA

    _check_spread(rows - rows.mean(dim=0))
    component = PCA(n_components=1, svd_solver="full").fit(rows.cpu().numpy()).components_[0]
    return with_mean_s_sign_and_norm(torch.from_numpy(component).to(positive.device), positive, negative)


def probe_direction(positive: Tensor, negative: Tensor) -> Tensor:
    """Normal of a logistic regression between the two sides (L2 penalty, C = 1, activations on one scale)."""
    from sklearn.linear_model import LogisticRegression

    rows, sides = _sides(positive, negative)
    scale = float(rows.std())  # one for all dimensions: the direction keeps its meaning
    weights = LogisticRegression(max_iter=2000).fit(rows / scale, sides).coef_[0]
    return with_mean_s_sign_and_norm(torch.from_numpy(weights).to(positive.device), positive, negative)


def discriminant_direction(positive: Tensor, negative: Tensor) -> Tensor:
    """Linear discriminant between the two sides, with a covariance shrunk by Ledoit and Wolf (2004)."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    rows, sides = _sides(positive, negative)
    weights = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(rows, sides).coef_[0]
    return with_mean_s_sign_and_norm(torch.from_numpy(weights).to(positive.device), positive, negative)


def _sides(positive: Tensor, negative: Tensor) -> "tuple[NDArray[float64], NDArray[float64]]":
    """All activations, pair by pair centred at the pair's mean, and 1 for the matching side, 0 for the other."""
    import numpy as np

    check_tables(positive, negative)
    _check_spread(positive.double() - negative.double())
    half = ((positive.double() - negative.double()) / 2).cpu().numpy()
    return np.concatenate([half, -half]), np.repeat([1.0, 0.0], len(half))


MEAN = "mean"
ESTIMATORS: dict[str, Estimator] = {
    MEAN: mean_difference,
    "pca": principal_difference,
    "pca_pairs": principal_pair_axis,
    "probe": probe_direction,
    "lda": discriminant_direction,
}
assert tuple(ESTIMATORS) == METHODS, "the flag --method names the estimators"


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
