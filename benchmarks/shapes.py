"""Shapes of paired differences for the simulations: families of correlated layers, centred, with variance 1."""

import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

FloatArray = NDArray[np.float64]

CORRELATION = 0.7
"""Of any two layers of a family."""
_GRID = np.linspace(-8, 8, 4001)  # standard normal scores


def _from_normal(distribution: stats.rv_continuous) -> Callable[[FloatArray], FloatArray]:
    """From standard normal scores to values with a distribution, centred and scaled."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of values of a beta distribution within 1e-20 of 0
        upper = distribution.isf(stats.norm.sf(np.abs(_GRID)))
        values = np.where(_GRID > 0, upper, distribution.ppf(stats.norm.cdf(_GRID)))
    values = (values - distribution.mean()) / distribution.std()
    return lambda scores: np.interp(scores, _GRID, values)


SHAPES: dict[str, Callable[[FloatArray], FloatArray]] = {
    "normal": _from_normal(stats.norm()),
    "t, 3 degrees": _from_normal(stats.t(3)),
    "Beta(.5, 2)": _from_normal(stats.beta(0.5, 2)),
    "Beta(.2, 2)": _from_normal(stats.beta(0.2, 2)),
    "log-normal": _from_normal(stats.lognorm(1)),
}


def score_correlation(shape: Callable[[FloatArray], FloatArray]) -> float:
    """The correlation of normal scores that gives values of this shape CORRELATION (Gaussian copula)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    weights = weights / weights.sum()

    def excess(r: float) -> float:
        second = r * nodes[:, None] + np.sqrt(1 - r * r) * nodes[None, :]
        return float(weights @ (shape(nodes) * (shape(second) @ weights))) - CORRELATION

    return float(optimize.brentq(excess, 0.5, 0.95, xtol=1e-4))


def draw_family(
    rng: np.random.Generator, shape: Callable[[FloatArray], FloatArray], r: float, n_layers: int, n_items: int
) -> FloatArray:
    """[n_layers, n_items]: items are independent, the normal scores behind an item's layers have correlation r."""
    shared, own = rng.standard_normal((1, n_items)), rng.standard_normal((n_layers, n_items))
    return shape(np.sqrt(r) * shared + np.sqrt(1 - r) * own)
