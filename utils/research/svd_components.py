"""Singular vectors of the per-pair activation differences, and what of a steering vector each of them is.

D [n_pairs, d_model] holds positive minus negative, a row a pair, uncentred. With D = U S Vh the steering vector, the
mean row, is exactly `sum_k S_k mean(U_k) V_k`. A singular vector has no sign of its own: each is turned so that the
mean projection of the pairs on it is 0 or more, as its weight in the vector then is. (Others turn it by the majority
of the pairs: where the share of pairs on the positive side is below a half, they would turn it the other way.)

Centred components, as repeng's `pca_diff` takes them, leave out what all pairs have in common, which is the vector
itself; `centred_component` gives the first of them, to be compared and never to be mixed up.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from utils.errors import UserError
from utils.vectors.differences import MIN_PAIRS

FloatArray = NDArray[np.float64]

_NO_SIZE = 1e-10
"""A singular value below this share of the largest is rounding."""


@dataclass(frozen=True, eq=False)
class Decomposition:
    """The differences of n pairs in singular vectors, the largest singular value first."""

    singular_values: FloatArray
    """[rank]"""
    components: FloatArray
    """V, [rank, d_model], of length 1, turned to the positive side."""
    projections: FloatArray
    """U S, [n_pairs, rank]: of each pair's difference on each component."""

    @property
    def rank(self) -> int:
        return len(self.singular_values)

    @cached_property
    def weights(self) -> FloatArray:
        """[rank], 0 or more: the vector is `weights @ components`."""
        return self.projections.mean(axis=0)

    @cached_property
    def vector(self) -> FloatArray:
        """The mean difference, [d_model]."""
        return self.weights @ self.components

    @property
    def share_of_differences(self) -> FloatArray:
        """Of the sum of squares of all differences, [rank]; together 1."""
        squares = self.singular_values**2
        return squares / squares.sum()

    @property
    def share_of_vector(self) -> FloatArray:
        """Of the vector's squared norm, [rank]; together 1."""
        squares = self.weights**2
        return squares / squares.sum()

    @property
    def agreeing(self) -> FloatArray:
        """Share of the pairs whose difference lies on a component's positive side, [rank]."""
        return (self.projections > 0).mean(axis=0)

    def first(self, r: int) -> FloatArray:
        """The vector's part in the first r components, [d_model].

        Raises:
            UserError: If there are fewer.
        """
        if not 1 <= r <= self.rank:
            raise UserError(f"rank {r}: {len(self.projections)} pairs have ranks 1 to {self.rank}")
        return self.weights[:r] @ self.components[:r]

    def without(self, k: int) -> FloatArray:
        """The vector without component k, counted from 1, [d_model].

        Raises:
            UserError: If there is none such.
        """
        if not 1 <= k <= self.rank:
            raise UserError(f"component {k}: {len(self.projections)} pairs have components 1 to {self.rank}")
        return self.vector - self.weights[k - 1] * self.components[k - 1]


def decompose(differences: FloatArray) -> Decomposition:
    """Take the differences apart.

    Args:
        differences: Positive minus negative activations, [n_pairs, d_model].

    Raises:
        UserError: If there are fewer than 8 pairs, or they do not differ on average.
    """
    n_pairs = len(differences)
    if n_pairs < MIN_PAIRS:
        raise UserError(f"{n_pairs} pairs are too few to take their differences apart; it takes {MIN_PAIRS}")
    left, sizes, components = np.linalg.svd(np.asarray(differences, dtype=np.float64), full_matrices=False)
    if not sizes[0] > 0:
        raise UserError(f"the activations of all {n_pairs} pairs are the same on both sides: there is nothing in them")
    rank = int((sizes > _NO_SIZE * sizes[0]).sum())
    projections = left[:, :rank] * sizes[:rank]
    signs = np.where(projections.mean(axis=0) < 0, -1.0, 1.0)
    return Decomposition(sizes[:rank], components[:rank] * signs[:, None], projections * signs)


def centred_component(differences: FloatArray) -> FloatArray:
    """First principal component of the centred differences (repeng's `pca_diff`), [d_model] of length 1.

    Turned to the side of the mean difference.
    """
    mean = differences.mean(axis=0)
    component = np.linalg.svd(differences - mean, full_matrices=False)[2][0]
    return component if component @ mean >= 0 else -component


# --- the null --------------------------------------------------------------------------------------


def flipped_spectra(differences: FloatArray, n_flips: int, seed: int) -> FloatArray:
    """Singular values with the sign of every entry drawn at random, [n_flips, min(n_pairs, d_model)], descending.

    The sizes of the entries stay, what they have in common goes: noise of the same variances (Hong, Sheng & Dobriban
    2020, arXiv 2012.02985). Flipping whole pairs would change nothing: D'D stays as it is.
    """
    wide = differences if differences.shape[0] <= differences.shape[1] else differences.T
    wide = wide.astype(np.float32)
    rng = np.random.default_rng(seed)
    found = np.empty((n_flips, len(wide)))
    for row in range(n_flips):
        flipped = np.where(rng.integers(0, 2, wide.shape, dtype=np.int8) == 0, wide, -wide)
        squares = np.linalg.eigvalsh(flipped @ flipped.T)[::-1]
        found[row] = np.sqrt(np.clip(squares, 0, None))
    return found


def count_real(singular_values: FloatArray, spectra: FloatArray, share: float = 0.95) -> int:
    """How many leading components are above the null's quantile at their own place; it ends at the first below."""
    limit = np.quantile(spectra, share, axis=0)[: len(singular_values)]
    below = np.flatnonzero(singular_values <= limit)
    return int(below[0]) if len(below) else len(singular_values)


@dataclass(frozen=True, eq=False)
class Consistency:
    """Whether the pairs agree on a component's side more than pairs do whose signs are drawn."""

    limit: FloatArray
    """[rank]: 95% quantile of the weight that the component has with the pairs' signs drawn at random."""
    p_family: FloatArray
    """[rank]: that the pairs have no side on it, corrected for all components (the largest of all, sign flips)."""


def weights_null(decomposition: Decomposition, n_flips: int, seed: int) -> Consistency:
    """Draw the sign of each pair's difference: the components stay, their weights in the mean vanish but for chance.

    A component's statistic is its weight in units of `S_k / n`, the spread that it has under the flips.
    """
    n_pairs = len(decomposition.projections)
    rng = np.random.default_rng(seed)
    signs = rng.integers(0, 2, (n_flips, n_pairs)) * 2.0 - 1
    drawn = np.abs(signs @ decomposition.projections) / n_pairs  # [n_flips, rank]
    spread = decomposition.singular_values / n_pairs
    largest = (drawn / spread).max(axis=1)
    above = (largest[:, None] >= decomposition.weights / spread).sum(axis=0)
    return Consistency(np.quantile(drawn, 0.95, axis=0), (1 + above) / (1 + n_flips))


def flipped_vectors(differences: FloatArray, n_vectors: int, seed: int) -> FloatArray:
    """Mean differences with the pairs' signs drawn at random, [n_vectors, d_model]: what is no behavior's direction,
    and still made of these activations."""
    rng = np.random.default_rng(seed)
    signs = rng.integers(0, 2, (n_vectors, len(differences))) * 2.0 - 1
    return signs @ differences / len(differences)
