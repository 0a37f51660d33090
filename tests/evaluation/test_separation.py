"""PCA and separation of activations against independent computations."""

import math

import numpy as np
import pytest

from utils.errors import UserError
from utils.evaluation.separation import (
    area_under_curve,
    held_out_separation,
    letter_balanced_share,
    look_at_layer,
    principal_components,
)

AB, BA = ("A", "B"), ("B", "A")


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.mark.parametrize(("n_points", "d_model"), [(12, 7), (260, 300)])
def test_principal_components_are_those_of_the_singular_value_decomposition(n_points: int, d_model: int) -> None:
    points = rng().normal(size=(n_points, d_model)) * np.linspace(4, 0.1, d_model) + 3
    found = principal_components(points, seed=0)
    centered = points - points.mean(axis=0)
    left, singular, _ = np.linalg.svd(centered, full_matrices=False)
    assert found.explained == pytest.approx(tuple(singular[:2] ** 2 / (singular**2).sum()), rel=1e-9)
    for component in range(2):
        expected = left[:, component] * singular[component]
        sign = np.sign(expected @ found.coordinates[:, component])
        assert found.coordinates[:, component] == pytest.approx(sign * expected, abs=1e-8)


@pytest.mark.parametrize("points", [np.ones((6, 4)), np.zeros((1, 4)), np.zeros((5, 1))])
def test_points_that_do_not_differ_have_no_principal_components(points: np.ndarray) -> None:
    with pytest.raises(UserError, match="do not differ"):
        principal_components(points, seed=0)


def test_the_matching_side_has_the_larger_mean_along_both_components() -> None:
    positive, negative = rng().normal(size=(2, 30, 6))
    for first, second in ((positive, negative), (negative, positive)):
        view = look_at_layer(3, first, second, [AB, BA] * 15, seed=0)
        at = view.projection.coordinates
        assert (at[:30].mean(axis=0) >= at[30:].mean(axis=0)).all()
        assert (view.layer, view.n_pairs) == (3, 30)
        assert view.vector_norm == pytest.approx(np.sqrt((((first - second).sum(axis=0) / 30) ** 2).sum()))


def test_the_area_under_the_curve_counts_pairs_and_ties_as_half() -> None:
    higher, lower = np.array([3.0, 1.0, 2.0]), np.array([1.0, 2.0, 0.0, 0.5])
    wins = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a in higher for b in lower)
    assert area_under_curve(higher, lower) == pytest.approx(wins / 12)


def test_noise_is_not_told_apart_although_its_own_mean_difference_separates_it() -> None:
    positive, negative = rng().normal(size=(2, 200, 2000))
    own = positive.mean(axis=0) - negative.mean(axis=0)
    assert ((positive - negative) @ own > 0).mean() > 0.95
    separation = held_out_separation(positive, negative, [AB, BA] * 100)
    assert separation.auc == pytest.approx(0.5, abs=0.1)
    assert separation.pairs_apart.value == pytest.approx(0.5, abs=0.1)
    assert separation.pairs_apart.low < 0.5 < separation.pairs_apart.high


def test_sides_that_differ_are_told_apart() -> None:
    positive, negative = rng().normal(size=(2, 60, 20))
    positive[:, 0] += 12
    separation = held_out_separation(positive, negative, [AB, BA] * 30)
    assert separation.auc > 0.999 and separation.pairs_apart.value == 1
    swapped = held_out_separation(negative, positive, [AB, BA] * 30)
    assert swapped.auc > 0.999  # the vector turns with the sides


def test_telling_letters_apart_is_not_telling_sides_apart() -> None:
    """(A) matches in three quarters of the pairs, and activations know nothing but the letter."""
    letters = [AB] * 75 + [BA] * 25
    at = {"A": 10.0, "B": -10.0}
    positive, negative = 0.1 * rng().normal(size=(2, 100, 30))
    positive[:, 0] += [at[first] for first, _ in letters]
    negative[:, 0] += [at[second] for _, second in letters]
    separation = held_out_separation(positive, negative, letters)
    assert separation.pairs_apart.value == 0.5  # 100% of one way round, 0% of the other; plainly counted: 75%
    assert separation.auc == pytest.approx(0.5, abs=0.12)


def test_held_out_separation_is_that_of_a_plain_loop() -> None:
    n = 21
    letters = [(AB, BA, ("C", "A"), AB)[index % 4] for index in range(n)]
    positive, negative = rng().normal(size=(2, n, 5))
    positive[:, 1] += 0.7
    order = sorted(range(n), key=lambda pair: (letters[pair], pair))
    halves = [order[0::2], order[1::2]]
    wins: dict[tuple[str, str], list[bool]] = {}
    score = total = 0.0
    for held_out, rest in ((halves[0], halves[1]), (halves[1], halves[0])):
        vector = sum(positive[pair] - negative[pair] for pair in rest) / len(rest)
        for pair in held_out:
            wins.setdefault(letters[pair], []).append(bool((positive[pair] - negative[pair]) @ vector > 0))
        for letter in "ABC":
            first = [positive[pair] @ vector for pair in held_out if letters[pair][0] == letter]
            second = [negative[pair] @ vector for pair in held_out if letters[pair][1] == letter]
            if first and second:
                auc = np.mean([[(a > b) for b in second] for a in first])
                score, total = score + auc * (len(first) + len(second)), total + len(first) + len(second)
    separation = held_out_separation(positive, negative, letters)
    assert separation.auc == pytest.approx(score / total)
    assert separation.pairs_apart.value == pytest.approx((np.mean(wins[AB]) + np.mean(wins[BA])) / 2)
    assert separation.pairs_apart.n == n - len(wins["C", "A"]) and separation.pairs_apart.n_total == n


def test_the_letter_balanced_share_weighs_letter_pairs_by_size_and_leaves_out_one_way_ones() -> None:
    letters = [AB] * 6 + [BA] * 2 + [("C", "D")] * 1 + [("D", "C")] * 1 + [("E", "A")] * 5
    is_true = [True] * 3 + [False] * 3 + [True] * 2 + [True, False] + [True] * 5
    share = letter_balanced_share(is_true, letters)
    assert share.value == pytest.approx(0.8 * (0.5 + 1.0) / 2 + 0.2 * (1.0 + 0.0) / 2)
    assert (share.n, share.n_total) == (10, 15)
    assert 0 <= share.low < share.value < share.high <= 1


def test_the_interval_of_the_balanced_share_covers() -> None:
    """Two ways round with chances 0.9 and 0.5: the true balanced share is 0.7."""
    generator, letters = rng(), [AB] * 60 + [BA] * 30
    covered = 0
    for _ in range(400):
        hits = [*(generator.random(60) < 0.9), *(generator.random(30) < 0.5)]
        share = letter_balanced_share([bool(hit) for hit in hits], letters)
        covered += share.low <= 0.7 <= share.high
    assert 0.92 <= covered / 400 <= 0.98


def test_what_cannot_be_measured_is_not_a_number() -> None:
    one = held_out_separation(np.ones((1, 3)), np.zeros((1, 3)), [AB])
    assert math.isnan(one.auc) and not one.pairs_apart.exists and one.pairs_apart.n_total == 1
    one_way = held_out_separation(*rng().normal(size=(2, 8, 3)), [AB] * 8)
    assert math.isnan(one_way.auc) and not one_way.pairs_apart.exists
