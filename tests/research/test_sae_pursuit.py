"""Vectors as few latents: planted sums are recovered; the closed forms are what their definitions say."""

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from utils.errors import UserError
from utils.research.sae_closed_forms import fgaa_target, rotation, targeted_vector
from utils.research.sae_pursuit import combine, pursue
from utils.research.sae_tradeoff import at_cost, trade_off

D_MODEL, D_SAE = 32, 96


def dictionary(seed: int = 0, d_sae: int = D_SAE) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(d_sae, D_MODEL))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_a_planted_sum_of_latents_is_recovered_with_its_signs() -> None:
    rows = dictionary()
    amounts = np.zeros(D_SAE)
    amounts[[3, 40, 77]] = [2.0, -1.5, 1.0]
    found = pursue(amounts @ rows, rows, (1, 3, 16), signed=True)
    assert found[1].latents == (3,) and set(found[3].latents) == {3, 40, 77}
    assert dict(zip(found[3].latents, found[3].coefficients, strict=True)) == pytest.approx({3: 2.0, 40: -1.5, 77: 1.0})
    assert found[3].unexplained == pytest.approx(0, abs=1e-12)
    assert found[16].latents == found[3].latents  # nothing is left to take


def test_without_signs_a_negative_latent_is_not_seen() -> None:
    rows = dictionary()
    vector = 2.0 * rows[3] - 1.5 * rows[40]
    positive = pursue(vector, rows, (2,), signed=False)[2]
    assert positive.latents[0] == 3 and 40 not in positive.latents
    assert (positive.coefficients > 0).all() and positive.explained < 0.9
    assert pursue(vector, rows, (2,), signed=True)[2].explained == pytest.approx(1)


def test_non_negative_coefficients_are_optimal_on_their_support() -> None:
    rows = dictionary(d_sae=12)
    vector = np.random.default_rng(1).normal(size=D_MODEL)
    found = pursue(vector, rows, (12,), signed=False)[12]
    gradient = rows @ (vector - found.vector)  # of half the squared error, downhill
    assert np.abs(gradient[list(found.latents)]).max() < 1e-9  # where a latent is in: none
    assert gradient.max() < 1e-9  # where it is out: only downhill by leaving the allowed side
    best = nnls(rows.T, vector)[0]
    np.testing.assert_allclose(found.vector, best @ rows, atol=1e-9)


def test_all_latents_together_are_the_vector_and_shares_only_grow() -> None:
    rows, vector = dictionary(), np.random.default_rng(2).normal(size=D_MODEL)
    found = pursue(vector, rows, (1, 4, 16, D_SAE), signed=True)
    np.testing.assert_allclose(found[D_SAE].vector, vector, atol=1e-9)
    shares = [found[size].explained for size in (1, 4, 16, D_SAE)]
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1)
    assert 1 - found[4].unexplained == pytest.approx(found[4].explained)  # least squares is at its best scale
    nothing = combine(rows, np.zeros(D_SAE), vector)
    assert nothing.latents == () and nothing.explained == 0 and nothing.unexplained == 1


# --- closed forms ---


def random_effects(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    effects = torch.randn(D_MODEL, D_SAE, generator=generator)
    return effects, torch.randn(D_SAE, generator=generator), torch.randn(D_SAE, D_MODEL, generator=generator)


def test_the_targeted_vector_is_what_numpy_makes_of_the_formula() -> None:
    effects, bias, _ = random_effects()
    target = torch.zeros(D_SAE)
    target[[4, 9]] = torch.tensor([1.0, 3.0])
    towards = effects[:, 4].numpy() + 3 * effects[:, 9].numpy()
    always = effects.numpy() @ bias.numpy()
    expected = towards / np.linalg.norm(towards) - always / np.linalg.norm(always)
    found = targeted_vector(effects, bias, target)
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-6)
    torch.testing.assert_close(targeted_vector(effects, bias, 7 * target), found)
    without = targeted_vector(effects, torch.zeros(D_SAE), target)
    np.testing.assert_allclose(without, towards / np.linalg.norm(towards), atol=1e-6)
    for impossible in (torch.zeros(D_SAE), bias):
        with pytest.raises(UserError, match="latents"):
            targeted_vector(effects, bias, impossible)


def test_the_rotation_is_orthogonal_and_finds_a_planted_one() -> None:
    effects, _, decoder = random_effects()
    found = rotation(effects, decoder)
    torch.testing.assert_close(found @ found.T, torch.eye(D_MODEL, dtype=torch.float64))
    turn = torch.linalg.qr(random_effects(5)[2][:D_MODEL].double())[0]
    planted = 3.0 * turn @ decoder.double().T  # every latent is moved by its turned row
    torch.testing.assert_close(rotation(planted, decoder), turn)


def test_fgaa_keeps_the_largest_ends_of_what_is_neither_dense_nor_on_the_first_token() -> None:
    delta = torch.tensor([9.0, 8.0, 3.0, 2.0, 1.0, -1.0, -4.0, -2.0])
    density = torch.tensor([0.5, 0.001, 0.001, 0.001, 0.001, 0.001, 0.001, 0.001])
    first = torch.tensor([False, True, *[False] * 6])
    target = fgaa_target(delta, density, first, 0.01, n_positive=2, n_negative=1)
    assert target.tolist() == pytest.approx([0, 0, 3 / 9, 2 / 9, 0, 0, -4 / 9, 0])
    assert not fgaa_target(delta, torch.ones(8), first, 0.01, 2, 1).any()


# --- effect against KL ---


def test_the_same_vector_at_other_strengths_is_no_better_and_a_better_one_is() -> None:
    per_item = np.random.default_rng(0).normal(1.0, 0.3, 40)

    def at(scale: float, gain: float = 1.0) -> tuple[np.ndarray, list[float]]:
        strengths = np.array([0.5, 1.0]) * scale
        return gain * strengths[:, None] * per_item, (0.8 * strengths**2).tolist()

    effects, kl = zip(at(1.0), at(1.3), at(1.0, gain=1.5), at(0.2), strict=True)
    traded = trade_off(np.stack(effects), np.array(kl), 0)
    assert np.isnan(traded[0].equal.difference.value) and not traded[0].beyond
    assert traded[1].equal.difference.value == pytest.approx(0, abs=1e-12)  # more of both is the same
    assert traded[1].levels[1].difference.value == pytest.approx(0.3 * per_item.mean())
    assert traded[2].equal.difference.low > 0.25 and traded[2].equal.p_difference < 0.001
    assert traded[3].beyond and traded[3].equal.difference.value == pytest.approx(0, abs=1e-12)
    assert np.isnan(at_cost(effects[0], np.array([0.3, 0.3]), 0.5)).all()
