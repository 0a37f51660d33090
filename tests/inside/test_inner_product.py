"""The causal inner product: its identity, and what counts as an output embedding."""

import pytest
import torch

from tests.models import ARCHITECTURES, build_wrapper, random_vector
from utils.errors import UserError
from utils.inside.inner_product import causal_root, covariance, covariance_roots, output_directions
from utils.inside.unembedding import Unembedding


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_output_directions_give_the_logits_of_a_direction(architecture: str) -> None:
    model = build_wrapper(architecture)
    vector = random_vector(3)
    centred = vector - vector.mean()  # as a LayerNorm leaves it; all the same to the others
    rows = output_directions(model)
    found = rows @ (centred.double() / centred.double().square().mean().sqrt())
    expected = Unembedding(model).vector_logits(centred)[: len(rows)].double()
    torch.testing.assert_close(found - found.mean(), expected, atol=1e-3, rtol=1e-3)


def test_gamma_times_v_is_g_times_l() -> None:
    model = build_wrapper()
    gamma = output_directions(model)
    root, inverse = covariance_roots(gamma)
    v = random_vector(5).double()
    g, ell = gamma @ inverse, root @ v
    torch.testing.assert_close(g @ ell, gamma @ v, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(covariance(g), torch.eye(len(v), dtype=torch.float64), rtol=0, atol=1e-10)


def test_the_root_s_square_is_the_covariance_that_numpy_gives() -> None:
    import numpy as np

    model = build_wrapper()
    root = causal_root(model)
    expected = np.cov(output_directions(model).numpy().T, bias=True)
    assert root.dtype == torch.float64
    np.testing.assert_allclose((root @ root).numpy(), expected, atol=1e-12)


def test_too_few_embeddings_have_no_inverse_covariance() -> None:
    with pytest.raises(UserError, match="has no inverse"):
        covariance_roots(torch.randn(10, 32))
