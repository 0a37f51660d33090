"""The causal inner product (Park, Choe & Veitch 2024, arXiv 2311.03658): cosines that mean what the vocabulary does.

    g = Cov(gamma)^(-1/2) gamma      of an output embedding gamma
    l = Cov(gamma)^(1/2) v           of a vector v of the residual stream
    gamma . v = g . l

In the coordinates g and l the usual inner product is the causal one. gamma is the output embedding as the residual
stream meets it: with the final norm's weights. All in float64: the smallest eigenvalues of Cov are a thousandth of
the largest, and float32 loses them.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.inside.unembedding import Unembedding

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

_ROWS_AT_ONCE = 8192
_SINGULAR = 1e-10  # smallest eigenvalue, relative to the largest
_TOLERATED = 1e-4  # relative; the model's own head runs in its own dtype
_TOLERATED_IN_HALF = 5e-2


def output_directions(model: "LlamaWrapper") -> Tensor:
    """The output embeddings as the residual stream meets them, [n_tokens, d_model] float64 on the CPU.

    Their dot products with a direction of root mean square 1 are what it does to the logits behind the final norm,
    any softcapping left out.

    Raises:
        UserError: If the final norm is more than a rescaling (and, for LayerNorm, a centring).
    """
    unembedding = Unembedding(model)
    head = unembedding.head.weight
    assert isinstance(head, Tensor)
    weights = _norm_weights(unembedding)
    rows = head[: unembedding.n_tokens].detach().double().cpu() * weights * unembedding.scale
    if isinstance(unembedding.norm, nn.LayerNorm):
        rows = rows - rows.mean(dim=1, keepdim=True)  # what all entries have in common it takes off
    probe = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    probe = probe - probe.mean()
    expected = unembedding.vector_logits(probe)[: unembedding.n_tokens].double()
    found = rows @ (probe.double() / probe.double().square().mean().sqrt())
    found = found - found.mean()
    tolerated = _TOLERATED if model.dtype == torch.float32 else _TOLERATED_IN_HALF
    if not float((found - expected).abs().max()) <= tolerated * float(expected.abs().max()):
        raise UserError(
            f"{model.label} ({model.config.model_type}): its final norm is not one that the causal inner product is "
            "known for; leave --inner_product causal out"
        )
    return rows


def _norm_weights(unembedding: Unembedding) -> Tensor:
    """What the final norm multiplies each entry by, [d_model] float64: read off a vector of mean 0 and variance 1."""
    weight = next(unembedding.norm.parameters())
    balanced = torch.ones(unembedding.d_model, dtype=weight.dtype, device=weight.device)
    balanced[1::2] = -1
    with torch.no_grad():
        normed = unembedding.norm(balanced[None])[0] - unembedding.norm(torch.zeros_like(balanced)[None])[0]
    return (normed * balanced).double().cpu()


def covariance(rows: Tensor) -> Tensor:
    """Of rows [n, d_model], [d_model, d_model] float64."""
    mean = rows.double().mean(dim=0)
    total = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    for some in rows.split(_ROWS_AT_ONCE):
        centred = some.double() - mean
        total += centred.T @ centred
    return total / rows.shape[0]


def covariance_roots(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Cov^(1/2) and Cov^(-1/2) of rows [n, d_model], symmetric, [d_model, d_model] float64.

    Raises:
        UserError: If the covariance has no inverse: fewer rows than columns, or columns that depend on each other.
    """
    values, axes = torch.linalg.eigh(covariance(rows))
    if not float(values[0]) > _SINGULAR * float(values[-1]):
        raise UserError(
            f"the covariance of {rows.shape[0]} output embeddings of width {rows.shape[1]} has no inverse; "
            "the causal inner product is not defined for this model"
        )
    return (axes * values.sqrt()) @ axes.T, (axes * values.rsqrt()) @ axes.T


def causal_root(model: "LlamaWrapper") -> Tensor:
    """Cov^(1/2) of a model's output embeddings: l = root v has the causal inner product as its usual one.

    For a LayerNorm the direction of all ones, which it takes off, counts nothing.

    Raises:
        UserError: If it is not defined for this model.
    """
    rows = output_directions(model)
    values, axes = torch.linalg.eigh(covariance(rows))
    return (axes * values.clamp(min=0).sqrt()) @ axes.T
