"""How much a vector depends on its pairs, on pairs whose truth is known."""

import math

import numpy as np
import pytest

from utils.vectors.similarity import FloatArray
from utils.vectors.stability import ENOUGH, pair_similarity, reliability_estimate, signal_and_noise, stability_of

D_MODEL = 40
SPREAD = np.linspace(0.2, 2.0, D_MODEL)
"""Of the pairs' noise: not the same in every direction."""


def planted(mean: FloatArray, n: int, seed: int) -> FloatArray:
    return mean + np.random.default_rng(seed).standard_normal((n, len(mean))) * SPREAD


def direction(seed: int, size: float = 1.5) -> FloatArray:
    found = np.random.default_rng(seed).standard_normal(D_MODEL)
    return size * found / np.linalg.norm(found)


NOISE = float((SPREAD**2).sum())


def test_signal_and_noise_are_unbiased() -> None:
    mean = direction(1)
    found = [signal_and_noise(d @ d.T) for d in (planted(mean, 30, seed) for seed in range(400))]
    signals, noises = (np.array(column) for column in zip(*found, strict=True))
    for values, truth in ((signals, 1.5**2), (noises, NOISE)):
        assert abs(values.mean() - truth) < 4 * values.std() / math.sqrt(len(values))


def test_split_halves_and_the_expected_curve_agree_with_fresh_pairs() -> None:
    mean = direction(2, 2.5)
    found = stability_of(planted(mean, 120, 0), seed=0)
    for m, band, expected in found.curve:
        fresh = [planted(mean, m, 1000 + i).mean(axis=0) for i in range(400)]
        cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(fresh[::2], fresh[1::2], strict=True)]
        truth = 2.5**2 / (2.5**2 + NOISE / m)
        assert abs(expected - truth) < 0.12 and abs(np.mean(cosines) - band.mean) < 0.12
    assert [m for m, _, _ in found.curve] == [2, 4, 8, 16, 32, 60]
    assert found.halves == found.curve[-1][1] and found.bootstrap.mean > found.halves.mean


def test_the_number_of_pairs_that_is_enough_is_found() -> None:
    mean = direction(3, 2.5)
    enough = stability_of(planted(mean, 400, 0), seed=0).enough
    truth = NOISE / 2.5**2 * ENOUGH**2 / (1 - ENOUGH**2)
    assert enough == pytest.approx(truth, rel=0.25)
    vectors = [planted(mean, round(truth), seed).mean(axis=0) for seed in range(200)]
    assert np.mean([v @ mean / np.linalg.norm(v) / np.linalg.norm(mean) for v in vectors]) == pytest.approx(
        ENOUGH, abs=0.01
    )


def test_the_interval_of_the_reliability_covers_the_truth() -> None:
    mean, n = direction(4, 2.0), 40
    truth = 2.0**2 / (2.0**2 + NOISE / n)
    estimates = [reliability_estimate(d @ d.T) for d in (planted(mean, n, seed) for seed in range(300))]
    assert 0.9 <= np.mean([one.low <= truth <= one.high for one in estimates]) <= 0.99


def test_pairs_that_agree_on_nothing_look_like_pairs_with_random_signs() -> None:
    found = stability_of(planted(np.zeros(D_MODEL), 60, 5), seed=0)
    assert found.null_halves.low < found.halves.mean < found.null_halves.high
    assert found.reliability.low < 0.05 < found.reliability.high
    real = stability_of(planted(direction(5, 4.0), 60, 5), seed=0)
    assert real.halves.low > real.null_halves.high


def test_without_noise_two_behaviors_are_as_alike_as_their_true_directions() -> None:
    one, other = direction(6), direction(7)
    other = 0.6 * one + 0.8 * (other - other @ one / (one @ one) * one) / np.linalg.norm(other) * 1.5
    truth = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    found = [pair_similarity(planted(one, 60, 2 * s), planted(other, 45, 2 * s + 1), s) for s in range(200)]
    assert np.mean([f.cosine.value for f in found]) < truth - 0.1  # noise makes vectors look unlike
    assert abs(np.mean([f.without_noise.value for f in found]) - truth) < 0.03
    assert 0.9 <= np.mean([f.without_noise.low <= truth <= f.without_noise.high for f in found]) <= 0.99


def test_unrelated_behaviors_are_beyond_the_null_about_as_often_as_it_says() -> None:
    found = [
        pair_similarity(planted(np.zeros(D_MODEL), 40, 2 * s), planted(np.zeros(D_MODEL), 40, 2 * s + 1), s)
        for s in range(200)
    ]
    assert 0.01 <= np.mean([f.holds for f in found]) < 0.1


def test_the_cosine_is_that_of_the_two_vectors_and_its_jackknife_that_of_leaving_out_pairs() -> None:
    one, other = planted(direction(8), 12, 0), planted(direction(9), 10, 1)

    def cosine(a: FloatArray, b: FloatArray) -> float:
        first, second = a.mean(axis=0), b.mean(axis=0)
        return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))

    left = [
        np.array([cosine(np.delete(one, i, axis=0), other) for i in range(len(one))]),
        np.array([cosine(one, np.delete(other, i, axis=0)) for i in range(len(other))]),
    ]
    error = math.sqrt(sum((len(x) - 1) / len(x) * ((x - x.mean()) ** 2).sum() for x in left))
    found = pair_similarity(one, other, 0).cosine
    assert found.value == pytest.approx(cosine(one, other))
    assert found.high - found.value == pytest.approx(1.959964 * error, rel=1e-6)


def test_pairs_that_cancel_by_design_have_split_halves_below_0_and_no_direction() -> None:
    apart = direction(10)
    halves = np.where(np.arange(40)[:, None] % 2, apart, -apart)  # as many one way as the other
    found = stability_of(halves + 0.1 * planted(np.zeros(D_MODEL), 40, 3), seed=0)
    assert found.halves.mean < 0 and found.enough == math.inf
    assert found.reliability.value == found.reliability.high == 0
