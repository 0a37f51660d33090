"""Cosine similarities, norms, PCA and separation against independent computations."""

import math

import numpy as np
import pytest

from utils.errors import UserError
from utils.vectors.analysis import (
    area_under_curve,
    cosine_matrices,
    held_out_separation,
    letter_balanced_share,
    look_at_layer,
    normalisation_faults,
    norms,
    paired_cosines,
    principal_components,
)

AB, BA = ("A", "B"), ("B", "A")


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def cosine(u: np.ndarray, v: np.ndarray) -> float:
    return sum(a * b for a, b in zip(u, v, strict=True)) / math.sqrt(sum(a * a for a in u) * sum(b * b for b in v))


def test_cosines_and_norms_are_those_of_the_formula() -> None:
    vectors = rng().normal(size=(3, 4, 6))
    matrices = cosine_matrices(vectors)
    assert matrices.shape == (3, 4, 4)
    for table, matrix in zip(vectors, matrices, strict=True):
        for row in range(4):
            for column in range(4):
                assert matrix[row, column] == pytest.approx(cosine(table[row], table[column]), abs=1e-12)
    pairs = paired_cosines(vectors[0], vectors[1])
    assert pairs == pytest.approx([cosine(u, v) for u, v in zip(vectors[0], vectors[1], strict=True)], abs=1e-12)
    assert norms(vectors)[2, 3] == pytest.approx(math.sqrt(sum(x * x for x in vectors[2, 3])))


def test_absent_and_zero_vectors_have_no_cosine_and_do_not_touch_the_others() -> None:
    vectors = rng().normal(size=(4, 5))
    vectors[1], vectors[2] = np.nan, 0.0
    matrix = cosine_matrices(vectors)
    assert np.isnan(matrix[[1, 2]]).all() and np.isnan(matrix[:, [1, 2]]).all()
    assert matrix[0, 3] == pytest.approx(cosine(vectors[0], vectors[3]))
    assert np.isnan(norms(vectors)[1]) and norms(vectors)[2] == 0


def test_cosines_stay_within_one_despite_rounding() -> None:
    vectors = np.repeat(rng().normal(size=(1, 300)), 40, axis=0) * rng().uniform(1e-8, 1e8, size=(40, 1))
    matrix = cosine_matrices(vectors)
    assert matrix.max() <= 1.0 and matrix.min() > 1 - 1e-12


def test_normalised_vectors_that_do_not_fit_are_found() -> None:
    before = rng().normal(size=(3, 4, 8))
    after = before / norms(before)[..., None]
    assert normalisation_faults(before, after) == normalisation_faults(before, 5 * after)
    assert not any(vars(normalisation_faults(before, after)).values())
    after[1, 2] = after[1, 3]
    after[0, 0] *= 1.01
    after[2, 1] = np.nan  # missing is no fault
    faults = normalisation_faults(before, after)
    assert faults.other_direction == ((1, 2),)
    assert faults.unequal_norms == (0,)


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
