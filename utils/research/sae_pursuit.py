"""A vector as few directions of a dictionary: orthogonal matching pursuit, with signs or without."""

from dataclasses import dataclass

import numpy as np

from utils.research.svd_components import FloatArray


@dataclass(frozen=True, eq=False)
class Combination:
    """A sum of unit directions, and how near it comes to a vector."""

    latents: tuple[int, ...]
    """Rows of the dictionary with a coefficient that is not 0, the largest first."""
    coefficients: FloatArray
    """[n]; of rows of length 1, so that they are norms."""
    vector: FloatArray
    """The sum, [d_model]."""
    cosine: float
    """With the vector that is approximated; NaN for an empty sum."""
    unexplained: float
    """|v - sum|^2 / |v|^2: more than 1 where the sum leads away."""

    @property
    def explained(self) -> float:
        """Share of |v|^2 that the sum explains at its best scale: the cosine's square, 0 where it points away."""
        return max(self.cosine, 0.0) ** 2 if self.latents else 0.0


def combine(rows: FloatArray, amounts: FloatArray, vector: FloatArray) -> Combination:
    """What amounts [d_sae] of unit rows [d_sae, d_model] add up to, beside a vector [d_model]."""
    places = np.flatnonzero(amounts)
    places = places[np.argsort(-np.abs(amounts[places]), kind="stable")]
    total = amounts[places] @ rows[places]
    length = np.linalg.norm(total)
    cosine = float(total @ vector / (length * np.linalg.norm(vector))) if length > 0 else float("nan")
    unexplained = float(((vector - total) ** 2).sum() / (vector**2).sum())
    return Combination(tuple(places.tolist()), amounts[places], total, cosine, unexplained)


def pursue(vector: FloatArray, rows: FloatArray, sizes: tuple[int, ...], *, signed: bool) -> dict[int, Combination]:
    """Combine up to k rows to come near a vector, for several k.

    Greedy: at each step the row with the largest cosine with what is left (of either sign, or the largest positive one)
    joins, and all coefficients are fitted again, by least squares or non-negative least squares.

    Args:
        vector: [d_model]
        rows: Dictionary rows of length 1, or 0 (never taken), [d_sae, d_model].
        sizes: Values of k.
        signed: Whether coefficients may be negative.

    Returns:
        By size. Where no further row helps (none has a positive cosine, or nothing is left), as far as it goes.
    """
    from scipy.optimize import nnls

    taken: list[int] = []
    amounts = np.zeros(len(rows))
    left, size_of = vector.copy(), np.linalg.norm(vector)
    found: dict[int, Combination] = {}
    for step in range(1, max(sizes) + 1):
        products = rows @ left
        reach = np.abs(products) if signed else products
        reach[taken] = -np.inf
        best = int(reach.argmax())
        if reach[best] <= 1e-10 * size_of:
            break
        taken.append(best)
        support = rows[taken].T
        fitted = np.linalg.lstsq(support, vector, rcond=None)[0] if signed else nnls(support, vector)[0]
        amounts[taken] = fitted
        left = vector - support @ fitted
        if step in sizes:
            found[step] = combine(rows, amounts, vector)
    last = combine(rows, amounts, vector)
    return {size: found.get(size, last) for size in sorted(set(sizes))}
