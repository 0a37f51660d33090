"""The arithmetic of SAEs against arrays worked out by hand, and what is refused."""

import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from utils.errors import UserError
from utils.saes.dictionary import SAE, check_fits, random_dictionary


def identity_sae(architecture: str = "standard", k: int | None = None, threshold: Tensor | None = None) -> SAE:
    """d_model 2, d_sae 4: the latents are +x, -x, +y, -y."""
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    weights = {"W_enc": rows.T, "b_enc": torch.zeros(4), "W_dec": rows, "b_dec": torch.zeros(2), "threshold": threshold}
    return SAE(**weights, architecture=architecture, k=k, layer=1, model="tiny-chat", source="chat", name="identity")


def test_a_standard_sae_computes_what_the_formula_gives_by_hand() -> None:
    sae = SAE(
        W_enc=torch.tensor([[1.0, 2.0, -1.0], [0.0, 1.0, 1.0]]),
        b_enc=torch.tensor([0.5, -4.0, 0.0]),
        W_dec=torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]]),
        b_dec=torch.tensor([10.0, 20.0]),
        architecture="standard", k=None, layer=0, model="m", source="s", name="by hand",
    )  # fmt: skip
    x = torch.tensor([[1.0, 3.0], [-1.0, 0.0]])
    # x W_enc + b_enc = [1.5, 1, 2] and [-0.5, -6, 1]
    assert torch.equal(sae.encode(x), torch.tensor([[1.5, 1.0, 2.0], [0.0, 0.0, 1.0]]))
    assert torch.equal(sae.reconstruct(x), torch.tensor([[17.5, 28.0], [13.0, 23.0]]))


def test_topk_keeps_the_k_largest_and_of_them_only_what_is_positive() -> None:
    sae = identity_sae("topk", 1)
    assert torch.equal(
        sae.encode(torch.tensor([[3.0, -5.0], [0.0, 0.0]])), torch.tensor([[0.0, 0.0, 0.0, 5.0], [0.0] * 4])
    )
    assert torch.equal(sae.reconstruct(torch.tensor([3.0, -5.0])), torch.tensor([0.0, -5.0]))


def test_batchtopk_reads_with_a_threshold_whatever_else_is_in_the_batch() -> None:
    sae = identity_sae("batchtopk", 1, torch.full((4,), 2.0))
    x = torch.tensor([[3.0, 2.0], [9.0, -9.0]])
    assert torch.equal(sae.encode(x), torch.tensor([[3.0, 0.0, 0.0, 0.0], [9.0, 0.0, 0.0, 9.0]]))
    assert torch.equal(sae.encode(x)[:1], sae.encode(x[:1]))


def test_the_identity_dictionary_gives_back_what_it_reads_in_any_shape_and_float_type() -> None:
    x = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(identity_sae().reconstruct(x), x)
    half = identity_sae().reconstruct(x.to(torch.float16))
    assert half.dtype == torch.float32
    assert torch.equal(half, x.to(torch.float16).float())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b_enc": torch.zeros(3)}, "SAE identity: b_enc is [3], but W_enc [2, 4] wants [4]"),
        ({"W_dec": torch.zeros(4, 3)}, "W_dec is [4, 3], but W_enc [2, 4] wants [4, 2]"),
        ({"b_dec": torch.zeros(4)}, "b_dec is [4], but W_enc [2, 4] wants [2]"),
        ({"architecture": "topk", "k": 5}, "k is 5, but it has 4 latents; k must be from 1 to 4"),
        ({"architecture": "topk"}, "k is None, but it has 4 latents"),
        ({"architecture": "jumprelu"}, "threshold is missing, but W_enc [2, 4] wants [4]"),
    ],
)
def test_weights_that_do_not_fit_together_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        replace(identity_sae(), **change)


def test_an_sae_of_another_width_layer_or_model_is_refused_in_one_line() -> None:
    sae = identity_sae()
    check_fits(sae, "Tiny-Chat", 2, 4)  # hub names are written in either case
    with pytest.raises(UserError, match="SAE identity has width 2, but the residual stream of tiny-chat has 32"):
        check_fits(sae, "tiny-chat", 32, 4)
    with pytest.raises(UserError, match="reads layer 1, but tiny-chat has layers 0 to 0"):
        check_fits(sae, "tiny-chat", 2, 1)
    with pytest.raises(UserError, match="was trained on tiny-chat, not on other; use an SAE of this model"):
        check_fits(sae, "other", 2, 4)
    check_fits(sae, "other", 2, 4, other_model=True)


def test_a_random_dictionary_has_rows_of_norm_1_of_its_own_seed_and_reads_without_b_dec() -> None:
    sae = replace(identity_sae(), b_dec=torch.tensor([3.0, -4.0]))
    one, same, other = random_dictionary(sae, 1), random_dictionary(sae, 1), random_dictionary(sae, 2)
    torch.testing.assert_close(one.W_dec.norm(dim=-1), torch.ones(4))
    assert torch.equal(one.W_dec, same.W_dec)
    assert not torch.equal(one.W_dec, other.W_dec)
    x = torch.tensor([5.0, 6.0])
    torch.testing.assert_close(one.encode(x), ((x - sae.b_dec) @ one.W_dec.T).relu())
