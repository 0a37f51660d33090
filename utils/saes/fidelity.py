"""How much of a direction a dictionary reconstructs: the cosine and relative error of the reconstructed direction.

`r = mean x(harmful) - mean x(harmless)` and `r_hat = mean x_hat(harmful) - mean x_hat(harmless)` over the same prompts;
the published numbers are cosine(r_hat, r) and |r_hat - r|^2 / |r|^2.

Both depend on how many prompts there are: the noise of means over a few prompts is in r and r_hat, does not cancel in a
length, and pulls the cosine down. A bootstrap adds that noise once more, so that its percentiles often never cover the
value of infinitely many prompts. So each number comes with a *corrected* one, made of inner products from which the
noise's expected part is taken off, and its interval from leaving out one prompt at a time (jackknife);
`python -m benchmarks.fidelity_intervals` measures both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.data.estimates import CONFIDENCE, Estimate
from utils.saes.dictionary import SAE, random_dictionary
from utils.saes.selection import random_direction

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Sides:
    """What is read of harmful and of harmless prompts, [n, d_model] each."""

    harmful: Tensor
    harmless: Tensor

    @property
    def difference(self) -> Tensor:
        """Mean of harmful minus mean of harmless, [d_model] float64."""
        return self.harmful.double().mean(dim=0) - self.harmless.double().mean(dim=0)

    def through(self, sae: SAE) -> "Sides":
        """The same as a dictionary reconstructs it, without b_dec, which cancels in every difference."""
        rows = sae.W_dec.double()
        return Sides(sae.encode(self.harmful).double() @ rows, sae.encode(self.harmless).double() @ rows)

    def codes(self, sae: SAE) -> "Sides":
        """Latent activations, [n, d_sae], as they are with decoder rows of norm 1."""
        norms = sae.W_dec.norm(dim=1)
        return Sides(sae.encode(self.harmful) * norms, sae.encode(self.harmless) * norms)


@dataclass(frozen=True)
class Fidelity:
    """How a dictionary reconstructs a direction; None where a number is not defined."""

    cosine: float | None
    """Of the reconstructed and the true direction: the published number."""
    relative_mse: float | None
    """|r_hat - r|^2 / |r|^2: the published number."""
    corrected_cosine: Estimate
    """For infinitely many prompts, with its 95% jackknife interval; NaN where it is not defined."""
    corrected_mse: Estimate


@dataclass(frozen=True, eq=False)
class Jackknife:
    """A dictionary's corrected cosine and relative error, of all prompts and with one of them left out each time."""

    whole: FloatArray
    """[2]"""
    without_harmful: FloatArray
    """[n, 2]"""
    without_harmless: FloatArray

    def estimates(self) -> tuple[Estimate, Estimate]:
        spread = np.sqrt(_variance(self.without_harmful) + _variance(self.without_harmless))
        cosine, mse = (_estimate(*pair, self.n) for pair in zip(self.whole, spread, strict=True))
        return cosine, mse

    def minus(self, other: "Jackknife") -> tuple[Estimate, Estimate]:
        """Differences to another dictionary on the same prompts, which are left out of both at once."""
        paired = Jackknife(
            self.whole - other.whole,
            self.without_harmful - other.without_harmful,
            self.without_harmless - other.without_harmless,
        )
        return paired.estimates()

    @property
    def n(self) -> int:
        return len(self.without_harmful)


def _variance(left_out: FloatArray) -> FloatArray:
    n = len(left_out)
    return np.asarray((n - 1) / n * ((left_out - left_out.mean(axis=0)) ** 2).sum(axis=0))


def _estimate(value: float, spread: float, n: int) -> Estimate:
    from scipy import stats

    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, 2 * n - 2)) * spread
    return Estimate(float(value), float(value - half), float(value + half), n, n)


def measure_fidelity(sides: Sides, sae: SAE) -> Fidelity:
    """The published numbers and the corrected ones."""
    reconstructed = sides.through(sae)
    r, r_hat = sides.difference, reconstructed.difference
    cosine, mse = jackknife(sides, reconstructed).estimates()
    return Fidelity(cosine_of(r_hat, r), relative_error(r_hat, r), cosine, mse)


def cosine_of(one: Tensor, other: Tensor) -> float | None:
    """None where one of them is zero."""
    lengths = float(one.double().norm()) * float(other.double().norm())
    return float(one.double() @ other.double()) / lengths if lengths > 0 else None


def relative_error(r_hat: Tensor, r: Tensor) -> float | None:
    """|r_hat - r|^2 / |r|^2; None where r is zero."""
    length = float(r.double() @ r.double())
    return float((r_hat - r).double().square().sum()) / length if length > 0 else None


def jackknife(sides: Sides, reconstructed: Sides) -> Jackknife:
    """The corrected numbers from inner products of mean differences without their expected noise.

    Of means over n rows, `mean x . mean y` is expected to exceed the product of the true means by cov(x, y) / n.
    """
    pairs = [(sides, sides), (sides, reconstructed), (reconstructed, reconstructed)]
    products = [_products(*pair) for pair in pairs]  # of each: whole, [n] without one harmful, [n] without one harmless
    whole, no_harmful, no_harmless = (
        np.stack([_as_numbers(*values) for values in zip(*columns, strict=True)])
        for columns in (
            [[one[0]] for one in products],
            [one[1] for one in products],
            [one[2] for one in products],
        )
    )
    return Jackknife(whole[0], no_harmful, no_harmless)


def _as_numbers(rr: float, rh: float, hh: float) -> FloatArray:
    """Corrected cosine and relative error from the three inner products; NaN where a squared length is not above 0."""
    cosine = rh / math.sqrt(rr * hh) if rr > 0 and hh > 0 else math.nan
    return np.array([cosine, (hh - 2 * rh + rr) / rr if rr > 0 else math.nan])


def _products(one: Sides, other: Sides) -> tuple[float, list[float], list[float]]:
    """The corrected inner product of two mean differences, whole and with a row left out."""
    harmful, harmless = _Moments(one.harmful, other.harmful), _Moments(one.harmless, other.harmless)
    a, b = harmful.mean_x - harmless.mean_x, harmful.mean_y - harmless.mean_y
    whole = float(a @ b) - harmful.noise - harmless.noise
    no_harmful = _row_products(harmful.means_x - harmless.mean_x, harmful.means_y - harmless.mean_y)
    no_harmless = _row_products(harmful.mean_x - harmless.means_x, harmful.mean_y - harmless.means_y)
    return (
        whole,
        (no_harmful - harmful.noises - harmless.noise).tolist(),
        (no_harmless - harmful.noise - harmless.noises).tolist(),
    )


class _Moments:
    """Means of paired rows, and the expected noise in the product of their means, whole and with a row left out."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        x, y = x.double(), y.double()
        n = len(x)
        self.mean_x, self.mean_y = x.mean(dim=0), y.mean(dim=0)
        self.means_x, self.means_y = (n * self.mean_x - x) / (n - 1), (n * self.mean_y - y) / (n - 1)
        products = _row_products(x, y)
        total = products.sum()
        self.noise = float(total - n * (self.mean_x @ self.mean_y)) / (n - 1) / n
        centred = total - products - (n - 1) * _row_products(self.means_x, self.means_y)
        self.noises = centred / (n - 2) / (n - 1)


def _row_products(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(dim=-1)


# --- controls ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Range:
    """A number over several random draws: its mean, and what 95% of them lie within."""

    mean: float
    low: float
    high: float
    n: int


def range_of(values: Sequence[float | None]) -> Range:
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    if not len(known):
        return Range(math.nan, math.nan, math.nan, 0)
    low, high = np.quantile(known, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Range(float(known.mean()), float(low), float(high), len(known))


def with_random_direction(sides: Sides, seed: int) -> Sides:
    """Harmless prompts, and the same with a random direction of r's norm added: that is their difference, exactly."""
    added = random_direction(sides.difference, seed)
    return Sides(sides.harmless.float() + added, sides.harmless)


def random_directions_fidelity(sides: Sides, sae: SAE, seed: int, n: int) -> list[Fidelity]:
    """How the dictionary reconstructs random directions of r's norm."""
    return [_plainly(with_random_direction(sides, seed + draw), sae) for draw in range(n)]


def random_dictionaries_fidelity(sides: Sides, sae: SAE, seed: int, n: int) -> list[Fidelity]:
    """How random dictionaries of the same size reconstruct r."""
    return [_plainly(sides, random_dictionary(sae, seed + draw)) for draw in range(n)]


def _plainly(sides: Sides, sae: SAE) -> Fidelity:
    r, r_hat = sides.difference, sides.through(sae).difference
    none = Estimate(math.nan, math.nan, math.nan, 0, 0)
    return Fidelity(cosine_of(r_hat, r), relative_error(r_hat, r), none, none)


def largest_cosine(sae: SAE, direction: Tensor) -> tuple[int, float]:
    """The latent whose decoder row points most along a direction (signed), and its cosine."""
    cosines = latent_cosines(sae, direction)
    latent = int(cosines.argmax())
    return latent, float(cosines[latent])


def latent_cosines(sae: SAE, direction: Tensor) -> Tensor:
    """Of every decoder row with a direction, [d_sae] float32; 0 for a row of zeros."""
    unit = torch.nn.functional.normalize(direction.to(sae.W_dec), dim=0)
    return torch.nn.functional.normalize(sae.W_dec, dim=1) @ unit
