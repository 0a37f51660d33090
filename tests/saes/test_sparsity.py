"""How few latents make up a direction: closed forms, the three methods against each other, and planted latents."""

import numpy as np
import pytest
import torch
from torch import Tensor

from utils.saes.dictionary import SAE
from utils.saes.fidelity import Sides
from utils.saes.sparsity import (
    SIZES,
    bootstrap_curves,
    curve_of,
    errors_left,
    ordered_latents,
    sparsity_curve,
    top_latents,
)

D = 24


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def exact() -> SAE:
    return SAE(torch.eye(D), torch.zeros(D), torch.eye(D), torch.zeros(D), "standard", None, 1, "tiny", "text", "exact")


def sides() -> Sides:
    return Sides(drawn(9, D).abs() + 0.5 * drawn(D, seed=7).abs(), drawn(9, D, seed=1).abs())


def some_rows(n: int, seed: int = 3) -> Tensor:
    return torch.nn.functional.normalize(drawn(n, D, seed=seed).double(), dim=1)


def test_exact_codes_leave_the_smallest_squares_of_r() -> None:
    given = sides()
    curve = sparsity_curve(given, exact())
    squares = given.difference.square().sort(descending=True).values
    expected = 1 - squares.cumsum(0) / squares.sum()
    assert curve.sizes == tuple(size for size in SIZES if size <= D) and curve.n_nonzero == D
    np.testing.assert_allclose(curve.errors, [float(expected[size - 1]) for size in curve.sizes], atol=1e-9)


def test_the_exact_fit_is_least_squares_at_every_size_and_never_rises() -> None:
    r, rows = drawn(D, seed=9).double(), some_rows(60)
    left = errors_left(r, rows)
    for size in (1, 3, 10, D):
        fitted = rows[:size].T @ torch.linalg.lstsq(rows[:size].T, r).solution
        assert float(left[size - 1]) == pytest.approx(float((fitted - r).square().sum() / r.square().sum()), abs=1e-10)
    assert bool((left[1:] <= left[:-1] + 1e-12).all())
    assert float(left[D - 1 :].max()) < 1e-10


def test_rows_that_others_span_add_nothing() -> None:
    r, rows = drawn(D, seed=9).double(), some_rows(6)
    doubled = torch.stack([rows[0], rows[0], rows[1], torch.zeros(D).double(), rows[0] + rows[1], rows[2]])
    left, plain = errors_left(r, doubled), errors_left(r, rows[:3])
    np.testing.assert_allclose(left, plain[[0, 0, 1, 1, 1, 2]], atol=1e-10)


def test_the_exact_fit_is_never_above_adam_s() -> None:
    r, rows, delta = drawn(D, seed=9), some_rows(40), drawn(40, seed=2)
    exactly, adam = (curve_of(r, rows, delta, method, 0) for method in ("lstsq", "adam"))
    assert exactly.sizes == adam.sizes
    for best, fitted in zip(exactly.errors, adam.errors, strict=True):
        assert best <= fitted + 1e-6
    assert adam.errors[2] == pytest.approx(exactly.errors[2], abs=1e-3)  # small problems it solves


def test_matching_pursuit_is_sklearn_s_on_unit_rows_and_finds_planted_latents() -> None:
    from sklearn.linear_model import OrthogonalMatchingPursuit

    rows = some_rows(80)
    r = 3 * rows[5] - 2 * rows[31] + rows[77]
    curve = curve_of(r, rows, torch.ones(80), "omp", 0)
    assert curve.sizes == (1, 2, 4, 8, 16, 32, 64)
    assert curve.errors[1] < 0.2 and curve.errors[2] < 1e-12
    for size, error in zip(curve.sizes[:2], curve.errors, strict=False):
        fit = OrthogonalMatchingPursuit(n_nonzero_coefs=size, fit_intercept=False).fit(rows.numpy().T, r.numpy())
        left = r.numpy() - rows.numpy().T @ fit.coef_
        assert error == pytest.approx(float(left @ left / (r @ r)), abs=1e-10)
        assert set(np.flatnonzero(fit.coef_)) <= {5, 31, 77}


@pytest.mark.parametrize("method", ["lstsq", "adam"])
def test_the_curve_ends_where_no_latent_differs_any_more(method: str) -> None:
    delta = torch.zeros(40)
    delta[[3, 9, 20, 21, 22]] = torch.tensor([1.0, -2.0, 0.5, 0.1, 0.2])
    assert ordered_latents(delta).tolist() == [9, 3, 20, 22, 21]
    curve = curve_of(drawn(D), some_rows(40), delta, method, 0)  # type: ignore[arg-type]
    assert curve.n_nonzero == 5 and curve.sizes == (1, 2, 4)
    nothing = curve_of(drawn(D), some_rows(40), torch.zeros(40), method, 0)  # type: ignore[arg-type]
    assert nothing.sizes == () and nothing.errors == ()


def test_latents_are_ordered_as_with_decoder_rows_of_norm_1() -> None:
    """A latent that writes ten times as far counts ten times."""
    scale = torch.linspace(0.1, 10, D)
    unfolded = SAE(
        torch.eye(D) / scale, torch.zeros(D), torch.diag(scale), torch.zeros(D), "standard", None, 1, "t", "t", "x"
    )
    given = sides()
    assert sparsity_curve(given, unfolded).errors == pytest.approx(sparsity_curve(given, exact()).errors, abs=1e-6)


def test_resampled_curves_lie_around_the_curve() -> None:
    found = bootstrap_curves(sides(), exact(), 0, 40)
    curve = sparsity_curve(sides(), exact())
    assert found.shape == (40, len(SIZES))
    assert np.isfinite(found[:, : len(curve.sizes)]).all() and np.isnan(found[:, len(curve.sizes) :]).all()
    low, high = np.quantile(found[:, 1], [0.005, 0.995])
    assert low < curve.errors[1] < high
    np.testing.assert_array_equal(found, bootstrap_curves(sides(), exact(), 0, 40))


def test_the_top_latents_are_the_largest_differences_of_each_sign() -> None:
    top = top_latents(torch.tensor([0.0, -3.0, 2.0, 0.5, -0.25]), 3)
    assert top.positive == ((2, 2.0), (3, 0.5)) and top.negative == ((1, -3.0), (4, -0.25))
