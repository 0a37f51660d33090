"""Cosine similarities and norms of vectors against independent computations."""

import math

import numpy as np
import pytest

from utils.vectors.similarity import cosine_matrices, normalisation_faults, norms, paired_cosines


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
    after[2, 1] = np.nan  # missing is not a fault
    faults = normalisation_faults(before, after)
    assert faults.other_direction == ((1, 2),)
    assert faults.unequal_norms == (0,)
