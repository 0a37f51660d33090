"""Singular vectors of the differences: exact shares, planted components, and what noise looks like."""

import numpy as np
import pytest
from sklearn.decomposition import PCA, TruncatedSVD

from utils.errors import UserError
from utils.research.svd_components import (
    centred_component,
    count_real,
    decompose,
    flipped_spectra,
    flipped_vectors,
    weights_null,
)

D_MODEL, N_PAIRS = 48, 60


def noise(seed: int = 0, n_pairs: int = N_PAIRS) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n_pairs, D_MODEL))


def planted(*sizes: float, noise_size: float = 0.2, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Differences with orthogonal directions: the first the same in every pair, the others with random sign."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.normal(size=(D_MODEL, len(sizes))))[0].T
    amounts = rng.choice([-1.0, 1.0], (N_PAIRS, len(sizes))) * np.array(sizes)
    amounts[:, 0] = sizes[0]
    return amounts @ directions + noise_size * noise(seed), directions


def test_the_vector_is_the_weighted_sum_of_the_components_to_the_last_digits() -> None:
    differences = noise() + 0.3
    parts = decompose(differences)
    np.testing.assert_allclose(parts.vector, differences.mean(axis=0), rtol=0, atol=1e-13)
    np.testing.assert_allclose(parts.first(parts.rank), differences.mean(axis=0), rtol=0, atol=1e-13)
    removed = parts.weights[2] * parts.components[2]
    np.testing.assert_allclose(parts.without(3) + removed, differences.mean(axis=0), rtol=0, atol=1e-13)
    assert parts.share_of_vector.sum() == pytest.approx(1) and parts.share_of_differences.sum() == pytest.approx(1)
    assert (parts.weights >= 0).all()


def test_the_components_are_those_of_truncated_svd() -> None:
    differences = noise() + 0.3
    parts = decompose(differences)
    theirs = TruncatedSVD(5, algorithm="arpack", random_state=0).fit(differences)
    np.testing.assert_allclose(parts.singular_values[:5], theirs.singular_values_, rtol=1e-10)
    np.testing.assert_allclose(np.abs((parts.components[:5] * theirs.components_).sum(axis=1)), 1, rtol=1e-10)


def test_the_centred_component_is_pca_s_and_another_than_the_uncentred_one() -> None:
    differences, directions = planted(2.0, 1.0)
    theirs = PCA(1, svd_solver="full").fit(differences).components_[0]
    centred = centred_component(differences)
    assert abs(centred @ theirs) == pytest.approx(1, abs=1e-10)
    parts = decompose(differences)
    assert abs(parts.components[0] @ directions[0]) > 0.99  # what all pairs share
    assert abs(centred @ directions[0]) < 0.3 and abs(centred @ directions[1]) > 0.95  # what they differ in


def test_planted_components_are_counted_and_noise_has_none() -> None:
    differences, _ = planted(2.0, 1.5, 1.0)
    parts = decompose(differences)
    assert count_real(parts.singular_values, flipped_spectra(differences, 60, 0)) == 3
    alone = [noise(seed) for seed in range(20)]
    counted = [count_real(decompose(each).singular_values, flipped_spectra(each, 60, 0)) for each in alone]
    assert sum(n > 0 for n in counted) <= 4


def test_flipping_whole_pairs_leaves_the_spectrum_as_it_is() -> None:
    differences, _ = planted(2.0, 1.0)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], N_PAIRS)
    flipped = decompose(differences * signs[:, None])
    np.testing.assert_allclose(flipped.singular_values, decompose(differences).singular_values, rtol=1e-12)


def test_only_the_component_that_the_pairs_share_is_consistent() -> None:
    parts = decompose(planted(1.0, 2.0, 1.5)[0])  # the shared one is not the largest
    null = weights_null(parts, 999, 0)
    shared = int(parts.weights.argmax())
    assert shared != 0 and null.p_family[shared] == pytest.approx(0.001)
    assert parts.agreeing[shared] == 1 and parts.weights[shared] > null.limit[shared]
    assert np.delete(null.p_family, shared).min() > 0.05


def test_the_family_of_components_is_wrong_in_about_one_noise_of_twenty() -> None:
    smallest = [weights_null(decompose(noise(seed)), 199, seed).p_family.min() for seed in range(60)]
    assert np.mean(np.array(smallest) < 0.05) <= 0.12


def test_vectors_of_drawn_signs_stay_among_the_activations_and_are_shorter() -> None:
    differences, _ = planted(2.0, 0.5)
    parts = decompose(differences)
    drawn = flipped_vectors(differences, 50, 0)
    inside = drawn @ parts.components.T @ parts.components
    np.testing.assert_allclose(inside, drawn, atol=1e-12)
    assert np.linalg.norm(drawn, axis=1).mean() < 0.3 * np.linalg.norm(parts.vector)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: decompose(noise(n_pairs=7)), "7 pairs are too few"),
        (lambda: decompose(np.zeros((9, 4))), "the same on both sides"),
        (lambda: decompose(noise(n_pairs=9)).first(10), "rank 10: 9 pairs have ranks 1 to 9"),
        (lambda: decompose(noise(n_pairs=9)).without(0), "component 0: 9 pairs have components 1 to 9"),
    ],
)
def test_what_cannot_be_taken_apart_is_refused_in_a_line(act: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        act()  # type: ignore[operator]
