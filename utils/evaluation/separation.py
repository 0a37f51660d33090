"""What saved activations look like, in numbers: PCA, and how well the sides of the pairs separate."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from utils.data.estimates import Estimate, share_estimate
from utils.errors import UserError
from utils.evaluation.metrics import FloatArray

_EXACT_PCA_UP_TO = 200  # points or dimensions; above, only the leading components are computed


@dataclass(frozen=True, eq=False)
class Projection:
    """Points on their first two principal components."""

    coordinates: FloatArray
    """[n_points, 2]."""
    explained: tuple[float, float]
    """Share of the whole variance that lies along each component, 0 to 1."""


def principal_components(points: FloatArray, seed: int) -> Projection:
    """Project points on the two directions in which they vary most.

    Args:
        points: [n_points, d_model].
        seed: Of the solver's starting vector; it does not change the result beyond rounding.

    Raises:
        UserError: If there are fewer than two points or dimensions, or all points are the same.
    """
    from sklearn.decomposition import PCA

    if min(points.shape) < 2 or not np.ptp(points, axis=0).any():
        raise UserError(f"no principal components: {points.shape[0]} activations that do not differ")
    solver = "full" if min(points.shape) <= _EXACT_PCA_UP_TO else "arpack"
    pca = PCA(n_components=2, svd_solver=solver, random_state=seed)
    coordinates = pca.fit_transform(points)
    first, second = pca.explained_variance_ratio_
    return Projection(coordinates, (float(first), float(second)))


Letters = tuple[str, str]
"""Of a contrast pair: the matching answer's and the other answer's."""


@dataclass(frozen=True)
class Separation:
    """How well the steering vector's direction tells the two sides of contrast pairs apart.

    It is held out: the pairs are split in two, the steering vector (mean difference, matching minus
    not matching) of either part is taken, and the pairs of the other part are projected on it. On
    the very pairs that it was made from, a mean difference in thousands of dimensions would separate
    even pure noise. And it is free of letters: where (A) matches more often than (B), the mean
    difference also points from (B) to (A), and telling letters apart must not count as telling sides
    apart. A direction that only knows letters gets 0.5 in both measures.
    """

    auc: float
    """Probability that a matching answer lies further along the vector than a not matching answer
    with the same letter (area under the ROC curve; mean over letters and parts, weighted by their
    points). NaN where no letter occurs on both sides."""
    pairs_apart: Estimate
    """Share of pairs whose matching half lies further along than their other half: for every two
    letters the mean of both ways round, weighted by their pairs; with a 95% interval. Its n leaves
    out pairs whose letters occur only one way round. NaN where there are no others."""


def held_out_separation(positive: FloatArray, negative: FloatArray, letters: Sequence[Letters]) -> Separation:
    """How well the sides of the pairs can be told apart along their own steering vector.

    Pairs with the same letters go to the two parts in turn, so that no letter is more frequent in
    one part's vector than in the other's.

    Args:
        positive: Activations at the matching answers, [n_pairs, d_model].
        negative: At the other answers; row i is the other half of pair i.
        letters: One a pair.
    """
    n_pairs = len(positive)
    if n_pairs < 2:
        return Separation(float("nan"), share_estimate(0, 0, n_pairs))
    in_turn = sorted(range(n_pairs), key=lambda pair: letters[pair])
    parts = in_turn[0::2], in_turn[1::2]
    matching, other = np.empty(n_pairs), np.empty(n_pairs)  # projections
    for held_out, made_from in (parts, parts[::-1]):
        vector = positive[made_from].mean(axis=0) - negative[made_from].mean(axis=0)  # [d_model]
        matching[held_out], other[held_out] = positive[held_out] @ vector, negative[held_out] @ vector
    aucs, weights = [], []
    for part in parts:
        for higher, lower in _with_the_same_letter(part, matching, other, letters):
            aucs.append(area_under_curve(higher, lower))
            weights.append(len(higher) + len(lower))
    auc = float(np.average(aucs, weights=weights)) if aucs else float("nan")
    return Separation(auc, letter_balanced_share((matching > other).tolist(), letters))


def _with_the_same_letter(
    part: Sequence[int], matching: FloatArray, other: FloatArray, letters: Sequence[Letters]
) -> Iterator[tuple[FloatArray, FloatArray]]:
    """The projections of matching and of other answers for each letter that occurs on both sides."""
    for letter in sorted({letter for pair in part for letter in letters[pair]}):
        higher = matching[[pair for pair in part if letters[pair][0] == letter]]
        lower = other[[pair for pair in part if letters[pair][1] == letter]]
        if len(higher) and len(lower):
            yield higher, lower


def letter_balanced_share(is_true: Sequence[bool], letters: Sequence[Letters]) -> Estimate:
    """The share of pairs for which something holds, with both ways round of two letters weighing the same.

    The interval combines the Wilson intervals of the groups (MOVER; Zou & Donner 2008).
    """
    groups: dict[Letters, list[bool]] = {}
    for holds, key in zip(is_true, letters, strict=True):
        groups.setdefault(key, []).append(holds)
    balanced = {key: found for key, found in groups.items() if key[::-1] in groups}
    n = sum(map(len, balanced.values()))
    value = below = above = 0.0
    for (letter, other), found in balanced.items():
        weight = (len(found) + len(groups[other, letter])) / (2 * n)
        share = share_estimate(sum(found), len(found), len(found))
        value += weight * share.value
        below += (weight * (share.value - share.low)) ** 2
        above += (weight * (share.high - share.value)) ** 2
    if not balanced:
        return share_estimate(0, 0, len(letters))
    return Estimate(value, max(0.0, value - below**0.5), min(1.0, value + above**0.5), n, len(letters))


def area_under_curve(higher: FloatArray, lower: FloatArray) -> float:
    """Probability that a value of the first sample exceeds one of the second; ties count half."""
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([higher, lower]))[: len(higher)]
    n_above = float(ranks.sum()) - len(higher) * (len(higher) + 1) / 2
    return n_above / (len(higher) * len(lower))


@dataclass(frozen=True, eq=False)
class LayerActivations:
    """The saved activations of one layer, seen from two sides: PCA and separation."""

    layer: int
    projection: Projection
    """Of the matching halves of all pairs, then of the other halves: [2 * n_pairs, 2]."""
    separation: Separation
    vector_norm: float
    """Norm of the steering vector that these activations give."""

    @property
    def n_pairs(self) -> int:
        return len(self.projection.coordinates) // 2


def look_at_layer(
    layer: int, positive: FloatArray, negative: FloatArray, letters: Sequence[Letters], seed: int
) -> LayerActivations:
    """PCA over both halves of all pairs, and how well they separate.

    The sign of a principal component says nothing; here the matching halves have the larger mean.

    Args: as for `held_out_separation` and `principal_components`.
    """
    projection = principal_components(np.concatenate([positive, negative]), seed)
    at = projection.coordinates
    signs = np.where(at[: len(positive)].mean(axis=0) >= at[len(positive) :].mean(axis=0), 1.0, -1.0)
    vector_norm = float(np.linalg.norm((positive - negative).mean(axis=0)))
    separation = held_out_separation(positive, negative, letters)
    return LayerActivations(layer, Projection(at * signs, projection.explained), separation, vector_norm)
