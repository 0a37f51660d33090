"""How alike steering vectors are, in numbers: cosines, norms, and whether normalised ones fit.

A vector that is not there is a row of NaN, and so is every number that would need it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

_SAME_DIRECTION = 0.9999  # cosine; float16 vectors and their scaled copies stay above it
_SAME_NORM = 1e-3  # relative


def norms(vectors: FloatArray) -> FloatArray:
    """Euclidean norms, [...] from [..., d_model]."""
    return np.asarray(np.linalg.norm(vectors, axis=-1))


def cosine_matrices(vectors: FloatArray) -> FloatArray:
    """Cosine similarity of every vector with every other, [..., n, n] from [..., n, d_model].

    NaN for an absent vector, and for one of norm 0, which has no direction.
    """
    units = _units(vectors)
    return np.clip(units @ np.swapaxes(units, -1, -2), -1.0, 1.0)


def paired_cosines(first: FloatArray, second: FloatArray) -> FloatArray:
    """Cosine similarity of each vector with its counterpart, [...] from two [..., d_model]."""
    return np.clip(np.einsum("...d,...d->...", _units(first), _units(second)), -1.0, 1.0)


def random_cosine(root: FloatArray, seed: int = 0, n: int = 2000) -> float:
    """What 95% of the cosines of two random vectors are within, under the inner product <root x, root y>."""
    rng = np.random.default_rng(seed)
    first, second = (rng.standard_normal((n, root.shape[0])) @ root for _ in range(2))
    return float(np.quantile(np.abs(paired_cosines(first, second)), 0.95))


def _units(vectors: FloatArray) -> FloatArray:
    lengths = norms(vectors)[..., None]
    return np.divide(vectors, lengths, out=np.full_like(vectors, np.nan), where=lengths > 0)


@dataclass(frozen=True)
class NormalisationFaults:
    """Places in a table of normalised vectors that `normalize_vectors.py` would not leave so today."""

    other_direction: tuple[tuple[int, int], ...]
    """(behavior, layer) indices where the normalised vector is not a multiple of today's vector."""
    unequal_norms: tuple[int, ...]
    """Layer indices where the norms of the behaviors differ."""


def normalisation_faults(before: FloatArray, after: FloatArray) -> NormalisationFaults:
    """Compare vectors before and after normalisation, both [n_behaviors, n_layers, d_model]."""
    turned = np.argwhere(paired_cosines(before, after) < _SAME_DIRECTION)  # NaN compares as not smaller
    lengths = norms(after)
    unequal = []
    for layer, column in enumerate(lengths.T):
        there = column[np.isfinite(column)]
        if len(there) > 1 and np.ptp(there) > _SAME_NORM * there.max():
            unequal.append(layer)
    return NormalisationFaults(tuple((int(b), int(layer)) for b, layer in turned), tuple(unequal))
