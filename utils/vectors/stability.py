"""How much a mean-difference vector depends on its pairs: how like itself it is, and how alike two behaviors truly are.

With D [n_pairs, d_model] the pairs' differences, mu their expected value and Sigma their covariance:

    |mu|^2, unbiased        U = (|sum d|^2 - sum |d|^2) / (n (n - 1))
    noise of a pair         T = trace(Sigma) = mean |d|^2 - U
    two vectors of m pairs  expected cosine about U / (U + T / m)
    vector and mu           expected cosine about sqrt(U / (U + T / m))

so that a curve over m follows from one set of pairs; it is drawn beside what split halves of 2 m pairs give. The cosine
of two behaviors' vectors is too small by the noise of both; mean_i,j d_i . e_j / sqrt(U_d U_e) is not.
Everything is computed from Gram matrices. float64 throughout.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utils.data.estimates import Estimate, jackknife_error
from utils.vectors.similarity import FloatArray

N_SPLITS = 400
N_RESAMPLES = 1000
_TAILS = (0.025, 0.975)
_NORMAL = 1.959963984540054  # 97.5% of the standard normal distribution
_LARGEST = 700.0  # whose exponential is still a number
ENOUGH = 0.95
"""Cosine with the vector of all possible pairs that counts as enough."""


@dataclass(frozen=True)
class Band:
    """A mean over random draws, and the middle 95% of the draws."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Stability:
    """One behavior's vector at one layer."""

    n_pairs: int
    halves: Band
    """Cosine of the vectors of two halves of the pairs, over random halvings."""
    null_halves: Band
    """The same after each pair's sign was drawn at random: pairs that agree on no direction."""
    bootstrap: Band
    """Cosine of the vector of resampled pairs with the vector."""
    reliability: Estimate
    """Expected cosine of this vector with another one of as many new pairs; interval by the jackknife."""
    with_truth: Estimate
    """Expected cosine with the vector of all possible pairs."""
    enough: float
    """Pairs at which that is expected to reach ENOUGH; infinite where the pairs agree on no direction."""
    curve: tuple[tuple[int, Band, float], ...]
    """Pairs m, cosine of vectors of two disjoint sets of m pairs, and the one expected of m pairs."""


def signal_and_noise(gram: FloatArray) -> tuple[float, float]:
    """U and T of differences with the Gram matrix D D^T."""
    n = len(gram)
    own = float(np.trace(gram))
    signal = (float(gram.sum()) - own) / (n * (n - 1))
    return signal, own / n - signal


def stability_of(differences: FloatArray, seed: int) -> Stability:
    """
    Args:
        differences: [n_pairs, d_model], at least 4 of them.
        seed: Of halvings, signs and resamples.
    """
    gram = differences @ differences.T
    n = len(gram)
    rng = np.random.default_rng(seed)
    signal, noise = signal_and_noise(gram)
    signs = rng.choice((-1.0, 1.0), (N_SPLITS, n))
    sizes = sorted({m for m in (2, 4, 8, 16, 32, 64, 128, 256, 512) if 2 * m < n} | {n // 2})
    curve = [(m, _band(_split_cosines(gram, m, rng)), expected_cosine(signal, noise, m)) for m in sizes]
    reliability = reliability_estimate(gram)
    return Stability(
        n_pairs=n,
        halves=curve[-1][1],
        null_halves=_band(_split_cosines(gram, n // 2, rng, signs)),
        bootstrap=_band(_bootstrap_cosines(gram, seed)),
        reliability=reliability,
        with_truth=Estimate(
            math.sqrt(reliability.value), math.sqrt(reliability.low), math.sqrt(reliability.high), n, n
        ),
        enough=noise / signal * ENOUGH**2 / (1 - ENOUGH**2) if signal > 0 else math.inf,
        curve=tuple(curve),
    )


def expected_cosine(signal: float, noise: float, m: int) -> float:
    """Of the vectors of two sets of m pairs; 0 where the pairs agree on no direction."""
    return max(0.0, signal) / (max(0.0, signal) + noise / m)


def reliability_estimate(gram: FloatArray) -> Estimate:
    """The expected cosine of two vectors of n pairs, with its jackknife interval.

    The interval is that of U / T; of its logarithm where U is clearly more than 0.
    """
    n = len(gram)
    own = np.diag(gram)
    total, trace = gram.sum(), own.sum()
    rest = (total - 2 * gram.sum(axis=1) + own) - (trace - own)  # sums over i != j without one pair
    left_signal = rest / ((n - 1) * (n - 2))
    left = left_signal / ((trace - own) / (n - 1) - left_signal)
    signal, noise = signal_and_noise(gram)
    ratio, wide = signal / noise, _NORMAL * jackknife_error(left.tolist())
    low, high = ratio - wide, ratio + wide
    if low > 0 and left.min() > 0:
        factor = math.exp(min(_LARGEST, _NORMAL * jackknife_error(np.log(left).tolist())))
        low, high = ratio / factor, ratio * factor
    value, low, high = (max(0.0, one) * n / (max(0.0, one) * n + 1) for one in (ratio, low, high))
    return Estimate(value, low, high, n, n)


def _split_cosines(gram: FloatArray, m: int, rng: np.random.Generator, signs: FloatArray | None = None) -> FloatArray:
    """Cosines of the vectors of two disjoint random sets of m pairs each, [N_SPLITS]."""
    n = len(gram)
    order = np.argsort(rng.random((N_SPLITS, n)), axis=1)
    first, second = np.zeros((N_SPLITS, n)), np.zeros((N_SPLITS, n))
    np.put_along_axis(first, order[:, :m], 1.0, axis=1)
    np.put_along_axis(second, order[:, m : 2 * m], 1.0, axis=1)
    if signs is not None:
        first, second = first * signs, second * signs
    return _cosines(gram, first, second)


def _bootstrap_cosines(gram: FloatArray, seed: int) -> FloatArray:
    n = len(gram)
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), N_RESAMPLES).astype(np.float64)
    return _cosines(gram, drawn, np.ones_like(drawn))


def _cosines(gram: FloatArray, first: FloatArray, second: FloatArray) -> FloatArray:
    """Of the vectors that rows of weights over the pairs give."""
    ahead, behind = first @ gram, second @ gram
    dots = (ahead * second).sum(axis=1)
    sizes = np.sqrt((ahead * first).sum(axis=1) * (behind * second).sum(axis=1))
    return np.asarray(dots / sizes)


def _band(values: FloatArray) -> Band:
    low, high = np.quantile(values, _TAILS)
    return Band(float(values.mean()), float(low), float(high))


# --- two behaviors ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairSimilarity:
    """How alike two behaviors' vectors of one layer are."""

    cosine: Estimate
    """Of the vectors; jackknife interval over both sets of pairs."""
    without_noise: Estimate
    """Of what all possible pairs would give; NaN where a behavior's pairs agree on no direction."""
    null: float
    """95% of the cosines lie within +- this after the signs of all pairs were drawn at random."""

    @property
    def holds(self) -> bool:
        """Whether the vectors share more than pairs without a common direction would."""
        return abs(self.cosine.value) > self.null


def pair_similarity(first: FloatArray, second: FloatArray, seed: int) -> PairSimilarity:
    """
    Args:
        first: One behavior's differences, [n_pairs, d_model].
        second: The other's, [m_pairs, d_model].
        seed: Of the null's signs.
    """
    across, grams = first @ second.T, (first @ first.T, second @ second.T)
    n_total = len(first) + len(second)
    raw = _Ratio(across, grams, unbiased=False).estimate(n_total)
    true = _Ratio(across, grams, unbiased=True).estimate(n_total)
    rng = np.random.default_rng(seed)
    signs = [rng.choice((-1.0, 1.0), (N_RESAMPLES, len(one))) for one in (first, second)]
    dots = ((signs[0] @ across) * signs[1]).sum(axis=1)
    sizes = [((one @ gram) * one).sum(axis=1) for one, gram in zip(signs, grams, strict=True)]
    null = np.abs(dots) / np.sqrt(sizes[0] * sizes[1])
    return PairSimilarity(raw, true, float(np.quantile(null, 0.95)))


class _Ratio:
    """mean d . e / (|d| |e|), with the norms of the mean vectors or with those free of noise, and without any pair."""

    def __init__(self, across: FloatArray, grams: Sequence[FloatArray], *, unbiased: bool) -> None:
        self.unbiased = unbiased
        self.dot = float(across.mean())
        self.dots = [_means_without(across.sum(axis=1), across.size), _means_without(across.sum(axis=0), across.size)]
        self.squares = [self._square(np.array(gram.sum()), np.array(np.trace(gram)), len(gram)) for gram in grams]
        self.squares_without = [
            self._square(
                gram.sum() - 2 * gram.sum(axis=1) + np.diag(gram), np.trace(gram) - np.diag(gram), len(gram) - 1
            )
            for gram in grams
        ]

    def _square(self, total: FloatArray, own: FloatArray, n: int) -> FloatArray:
        return np.asarray((total - own) / (n * (n - 1)) if self.unbiased else total / n**2)

    def estimate(self, n_total: int) -> Estimate:
        """With the jackknife's interval over both sets of pairs."""
        value = self._value(np.array(self.dot), *self.squares)
        variance = 0.0
        for side in (0, 1):
            squares = [self.squares_without[i] if i == side else self.squares[i] for i in (0, 1)]
            left = self._value(self.dots[side], *squares)
            variance += (len(left) - 1) / len(left) * float(((left - left.mean()) ** 2).sum())
        error = _NORMAL * math.sqrt(variance) if math.isfinite(variance) else math.nan
        low, high = float(value) - error, float(value) + error
        return Estimate(float(value), max(-1.0, low), min(1.0, high), n_total, n_total)

    @staticmethod
    def _value(dot: FloatArray, first: FloatArray, second: FloatArray) -> FloatArray:
        with np.errstate(invalid="ignore"):
            return np.asarray(dot / np.sqrt(np.where(first > 0, first, np.nan) * np.where(second > 0, second, np.nan)))


def _means_without(sums: FloatArray, size: int) -> FloatArray:
    """Means of a table of `size` entries without each of its lines, from the lines' sums."""
    return np.asarray((sums.sum() - sums) / (size - size / len(sums)))
