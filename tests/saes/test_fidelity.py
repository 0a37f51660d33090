"""Reconstruction of a direction: hand-computed cases, what cannot move it, and intervals that cover the truth."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from utils.saes.dictionary import SAE, random_dictionary
from utils.saes.direction_evals import labels_of
from utils.saes.fidelity import (
    Sides,
    cosine_of,
    jackknife,
    largest_cosine,
    measure_fidelity,
    range_of,
    relative_error,
    with_random_direction,
)

D = 12


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sides(n: int = 9, seed: int = 0) -> Sides:
    return Sides(drawn(n, D, seed=seed).abs() + 0.5, drawn(n, D, seed=seed + 1).abs())


def sae(w_enc: Tensor, b_enc: Tensor, w_dec: Tensor, b_dec: Tensor) -> SAE:
    return SAE(w_enc, b_enc, w_dec, b_dec, "standard", None, 1, "tiny-chat", "text", "tiny")


def exact() -> SAE:
    """Codes are the positive input itself."""
    return sae(torch.eye(D), torch.zeros(D), torch.eye(D), torch.zeros(D))


def test_exact_codes_give_cosine_1_and_error_0() -> None:
    found = measure_fidelity(sides(), exact())
    assert found.cosine == pytest.approx(1.0, abs=1e-9) and found.relative_mse == pytest.approx(0.0, abs=1e-12)
    assert found.corrected_cosine.value == pytest.approx(1.0, abs=1e-9)
    assert found.corrected_mse.value == pytest.approx(0.0, abs=1e-9)


def test_a_dictionary_of_zeros_gives_error_1_and_no_cosine_rather_than_0() -> None:
    nothing = sae(torch.zeros(D, 4), torch.zeros(4), torch.zeros(4, D), drawn(D))
    found = measure_fidelity(sides(), nothing)
    assert found.cosine is None and math.isnan(found.corrected_cosine.value)
    assert found.relative_mse == pytest.approx(1.0, abs=1e-12)


def test_the_numbers_are_those_of_the_formulas_in_numpy() -> None:
    given, some = sides(), sae(drawn(D, 20, seed=3), drawn(20, seed=4), drawn(20, D, seed=5), drawn(D, seed=6))
    codes = [
        np.maximum(x.double().numpy() @ some.W_enc.double().numpy() + some.b_enc.double().numpy(), 0)
        for x in (given.harmful, given.harmless)
    ]
    decoded = [f @ some.W_dec.double().numpy() + some.b_dec.double().numpy() for f in codes]
    r = given.harmful.double().numpy().mean(0) - given.harmless.double().numpy().mean(0)
    r_hat = decoded[0].mean(0) - decoded[1].mean(0)
    found = measure_fidelity(given, some)
    assert found.cosine == pytest.approx(r @ r_hat / np.linalg.norm(r) / np.linalg.norm(r_hat), abs=1e-5)
    assert found.relative_mse == pytest.approx(((r_hat - r) ** 2).sum() / (r @ r), rel=1e-5)


def test_b_dec_moves_nothing() -> None:
    some = sae(drawn(D, 20, seed=3), drawn(20, seed=4), drawn(20, D, seed=5), torch.zeros(D))
    one, other = measure_fidelity(sides(), some), measure_fidelity(sides(), replace(some, b_dec=drawn(D, seed=8) * 50))
    assert one.cosine == pytest.approx(other.cosine, abs=1e-5)
    assert one.relative_mse == pytest.approx(other.relative_mse, abs=1e-5)


def test_leaving_a_prompt_out_is_computing_without_it() -> None:
    given, some = sides(7), sae(drawn(D, 20, seed=3), drawn(20, seed=4), drawn(20, D, seed=5), drawn(D))
    found = jackknife(given, given.through(some))
    less = Sides(torch.cat([given.harmful[:2], given.harmful[3:]]), given.harmless)
    np.testing.assert_allclose(found.without_harmful[2], jackknife(less, less.through(some)).whole, rtol=1e-8)
    less = Sides(given.harmful, given.harmless[:-1])
    np.testing.assert_allclose(found.without_harmless[6], jackknife(less, less.through(some)).whole, rtol=1e-8)


def test_corrected_numbers_are_unbiased_and_their_intervals_cover_the_value_of_infinitely_many_prompts() -> None:
    """A projection as the reconstruction: the true cosine and error are known. Plain numbers are biased."""
    generator = torch.Generator().manual_seed(5)
    width, n = 60, 24
    r = torch.randn(width, generator=generator, dtype=torch.float64)
    r *= 5 / r.norm()
    kept = torch.randn(width, 4, generator=generator, dtype=torch.float64)
    kept, _ = torch.linalg.qr(torch.cat([(r + kept[:, 0])[:, None], kept[:, 1:]], dim=1))
    mixing = kept @ kept.T  # what is kept is a subspace that has much of r, and little of the noise
    cosine, error = cosine_of(mixing @ r, r), relative_error(mixing @ r, r)
    assert cosine is not None and error is not None
    covered, corrected, plain = np.zeros(2), [], []
    for _ in range(200):
        noise = torch.randn(2, n, width, generator=generator, dtype=torch.float64)
        given = Sides(noise[0] + r, noise[1])
        through = Sides(given.harmful @ mixing.T, given.harmless @ mixing.T)
        found = jackknife(given, through).estimates()
        corrected.append([one.value for one in found])
        plain.append(cosine_of(through.difference, given.difference))
        covered += [one.low <= truth <= one.high for one, truth in zip(found, (cosine, error), strict=True)]
    assert covered.min() >= 0.92 * 200
    np.testing.assert_allclose(np.mean(corrected, axis=0), [cosine, error], atol=0.01)
    assert abs(float(np.mean(plain)) - cosine) > 0.02


def test_a_dictionary_does_not_differ_from_itself() -> None:
    given = sides()
    own = jackknife(given, given.through(exact()))
    for difference in own.minus(own):
        assert (difference.value, difference.low, difference.high) == (0.0, 0.0, 0.0)


def test_the_controls_are_a_direction_of_r_s_norm_and_dictionaries_of_unit_rows() -> None:
    given = sides()
    changed = with_random_direction(given, 3)
    assert float(changed.difference.norm()) == pytest.approx(float(given.difference.norm()), rel=1e-5)
    assert abs(cosine_of(changed.difference, given.difference) or 0) < 0.9
    drawn_one = random_dictionary(exact(), 1)
    torch.testing.assert_close(drawn_one.W_dec.norm(dim=1), torch.ones(D))
    assert range_of([0.1, None, 0.3]).n == 2 and math.isnan(range_of([None]).mean)


def test_the_largest_cosine_is_signed_and_a_row_of_zeros_has_none() -> None:
    rows = torch.zeros(3, D)
    rows[0, 0], rows[1, 1] = -5.0, 2.0
    some = sae(torch.zeros(D, 3), torch.zeros(3), rows, torch.zeros(D))
    direction = torch.zeros(D)
    direction[0], direction[1] = 4.0, 3.0
    assert largest_cosine(some, direction) == (1, pytest.approx(0.6))


def test_labels_say_what_an_sae_was_trained_on_and_what_tells_it_from_others_of_that() -> None:
    def sae(name: str, source: str) -> SAE:
        about = {"architecture": "standard", "k": None, "layer": 1, "model": "m", "source": source, "name": name}
        return SAE(torch.eye(2), torch.zeros(2), torch.eye(2), torch.zeros(2), **about)

    saes = [sae("m_chat_tokens=9", "chat"), sae("m_chat_tokens=9_seed=1", "chat"), sae("m_web_tokens=9", "web")]
    assert labels_of(saes) == ["m\nchat", "m\nchat, seed=1", "m\nweb"]
    assert labels_of(saes[1:2]) == ["m\nchat"]
    assert labels_of([saes[1], sae("m_chat_tokens=9_seed=2", "chat")]) == ["m\nchat, seed=1", "m\nchat, seed=2"]
