"""Estimators: from two tables of activations to a vector, on numbers small enough to follow by hand."""

import pytest
import torch
from torch import Tensor

from utils.errors import UserError
from utils.vectors.estimators import ESTIMATORS, RunningMean, mean_difference, normalize_to_mean_norm


def test_a_mean_difference_is_the_mean_of_differences() -> None:
    positive = torch.tensor([[1.0, 2.0], [3.0, 10.0]])
    negative = torch.tensor([[0.0, 2.0], [1.0, 4.0]])
    assert mean_difference(positive, negative).tolist() == [1.5, 3.0]


def test_a_mean_difference_is_taken_in_double_precision() -> None:
    positive = torch.cat([torch.full((1, 1), 2.0**25), torch.ones(3, 1)])
    negative = torch.cat([torch.full((1, 1), 2.0**25 - 4), torch.zeros(3, 1)])
    assert mean_difference(positive, negative).tolist() == [7 / 4]


@pytest.mark.parametrize(
    ("positive", "negative"),
    [
        (torch.ones(2, 3), torch.ones(3, 3)),
        (torch.ones(0, 3), torch.ones(0, 3)),
        (torch.ones(3), torch.ones(3)),
    ],
)
def test_tables_that_do_not_belong_together_are_refused(positive: Tensor, negative: Tensor) -> None:
    with pytest.raises(UserError, match="two activation tables of the same shape"):
        mean_difference(positive, negative)


def test_normalised_vectors_have_the_mean_norm_and_their_own_direction() -> None:
    found = normalize_to_mean_norm({"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([0.0, -15.0])})
    assert found["a"].tolist() == pytest.approx([6.0, 8.0]) and found["b"].tolist() == pytest.approx([0.0, -10.0])


def test_a_vector_without_direction_cannot_be_normalised() -> None:
    with pytest.raises(UserError, match="the vector of b is all zeros"):
        normalize_to_mean_norm({"a": torch.ones(2), "b": torch.zeros(2)})


def test_the_streaming_form_gives_the_mean_of_all_pairs_however_they_come() -> None:
    positive = torch.randn(7, 3, 4, generator=torch.Generator().manual_seed(0))
    negative = torch.randn(7, 3, 4, generator=torch.Generator().manual_seed(1))
    running = RunningMean(torch.zeros(3, 4, dtype=torch.float64))
    for rows in ([0, 1], [6], [5, 2, 4, 3]):
        running.add(positive[rows], negative[rows])
    assert running.n_pairs == 7
    for layer in range(3):
        torch.testing.assert_close(running.vector[layer], mean_difference(positive[:, layer], negative[:, layer]))


def planted(n_pairs: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs that differ along one direction, with other differences and a large common part."""
    generator = torch.Generator().manual_seed(3)
    direction = torch.nn.functional.normalize(torch.randn(12, generator=generator), dim=0)
    common = torch.randn(n_pairs, 12, generator=generator) * 5
    strengths = 2 + torch.rand(n_pairs, 1, generator=generator)
    noise = torch.randn(2, n_pairs, 12, generator=generator) * 0.1
    return common + strengths * direction / 2 + noise[0], common - strengths * direction / 2 + noise[1], direction


@pytest.mark.parametrize(
    ("method", "cosine"),
    [
        ("mean", 0.99),
        ("pca", 0.95),
        ("pca_pairs", 0.99),
        ("probe", 0.95),
        ("lda", 0.7),
    ],
)
def test_every_estimator_finds_a_planted_direction_with_the_mean_s_sign_and_norm(method: str, cosine: float) -> None:
    positive, negative, direction = planted()
    vector = ESTIMATORS[method](positive, negative)
    assert vector.shape == (12,) and vector.dtype == torch.float32
    assert float(torch.nn.functional.normalize(vector, dim=0) @ direction) > cosine
    assert float(vector.norm()) == pytest.approx(float(mean_difference(positive, negative).norm()), rel=1e-5)
    swapped = ESTIMATORS[method](negative, positive)
    torch.testing.assert_close(swapped, -vector, rtol=1e-3, atol=1e-3)


def test_pca_takes_the_largest_spread_of_differences_and_pca_pairs_the_largest_difference() -> None:
    """Differences of (10, +-1): their mean is along the first axis, their spread along the second."""
    difference = torch.tensor([[10.0, 1.0], [10.0, -1.0], [10.0, 1.2], [10.0, -1.2]])
    zeros = torch.zeros_like(difference)
    pca = ESTIMATORS["pca"](difference, zeros)
    pairs = ESTIMATORS["pca_pairs"](difference, zeros)
    assert abs(float(pca[1])) == pytest.approx(10.0) and abs(float(pca[0])) < 1e-5
    assert pairs.tolist() == pytest.approx([10.0, 0.0], abs=1e-4)


@pytest.mark.parametrize("method", ["pca", "pca_pairs", "probe", "lda"])
def test_pairs_that_are_all_alike_give_no_direction(method: str) -> None:
    same = torch.ones(4, 3)
    with pytest.raises(UserError, match="pairs do not give a direction"):
        ESTIMATORS[method](same, same)
