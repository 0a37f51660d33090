"""The unembedding in the causal inner product, and the vector of a concept in it.

Park et al. 2024 (The Geometry of Categorical and Hierarchical Concepts in Large Language Models): with the rows
gamma of the unembedding, g = Cov(gamma)^(-1/2) (gamma - mean), in which the Euclidean inner product is the causal one.
All in float64: the eigenvalues of a covariance span a factor of thousands, which float32 does not survive.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from utils.inside.inner_product import covariance_roots

FloatArray = NDArray[np.float64]

_SINGULAR = 1e-10  # of an eigenvalue, relative to the largest


@dataclass(frozen=True, eq=False)
class ConceptSpace:
    """A model's whitened unembedding."""

    g: FloatArray
    """[vocab_size, d_model]; mean 0, covariance 1."""
    root: FloatArray
    """Cov^(1/2), [d_model, d_model]: a residual stream x stands as `root @ x`, for gamma.x = g.(root @ x) + const."""
    inverse_root: FloatArray
    """Cov^(-1/2): what is added to the residual stream behind the final norm for a vector of this space."""


def whiten(unembedding: FloatArray) -> ConceptSpace:
    """Whiten the rows of an unembedding, [vocab_size, d_model] float64.

    Raises:
        UserError: If its covariance is singular.
    """
    root, inverse_root = (matrix.numpy() for matrix in covariance_roots(torch.from_numpy(unembedding)))
    return ConceptSpace((unembedding - unembedding.mean(axis=0)) @ inverse_root, root, inverse_root)


def shrinkage(rows: FloatArray) -> float:
    """How far Ledoit and Wolf (2004) shrink the covariance of rows [n, d] towards that of a sphere, 0 to 1."""
    centred = rows - rows.mean(axis=0)
    return _shrinkage(centred @ centred.T, rows.shape[1])


def _shrinkage(gram: FloatArray, d: int) -> float:
    """From the inner products [n, n] of centred rows of width d: no matrix [d, d] is needed."""
    n = len(gram)
    squares = float(np.square(gram).sum()) / n**2  # |S|^2 of the covariance S
    mean_variance = float(np.trace(gram)) / n / d
    spread = (float(np.square(np.diag(gram)).sum()) / n - squares) / (d * n)
    distance = squares / d - mean_variance**2
    return min(spread, distance) / distance if spread > 0 and distance > 0 else 0.0


def concept_vector(rows: FloatArray) -> FloatArray:
    """The vector of a concept from the whitened rows of its words, [d] from [n, d].

    Its direction is Cov^-1 mean with the words' own covariance after Ledoit and Wolf (a linear discriminant of the
    words against the origin), its length the mean's along that direction. The covariance is inverted through the
    words' inner products (Woodbury), since there are fewer words than dimensions.
    """
    n, d = rows.shape
    mean: FloatArray = rows.mean(axis=0)
    centred = rows - mean
    gram = centred @ centred.T
    kept = 1.0 - _shrinkage(gram, d)
    ridge = (1.0 - kept) * float(np.trace(gram)) / n / d
    if np.trace(gram) <= _SINGULAR**2 * n * (mean @ mean) or kept <= 0:  # all rows are one, or all spread is noise
        direction = mean
    elif ridge <= 0:  # no spread is
        direction = np.linalg.pinv(centred.T @ centred / n, rcond=_SINGULAR) @ mean
    else:
        inner = gram + np.eye(n) * (n * ridge / kept)
        direction = (mean - centred.T @ np.linalg.solve(inner, centred @ mean)) / ridge
    unit = direction / np.linalg.norm(direction)
    return np.asarray((mean @ unit) * unit)


def cosine(first: FloatArray, second: FloatArray) -> float:
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))
