"""Steering vectors from an SAE's latents in closed form: FGAA and SAE-TS, given the effects of vectors on latents.

Effects are linear: adding x [d_model] changes the mean latent activations by `x W + b`, W [d_model, d_sae], b [d_sae].
Fitting W takes the effects of thousands of vectors on generated text (a GPU job); what follows from it is here.

Sources: SAE-TS, Chalnev, Siu & Conmy 2024 (arXiv 2411.02193); FGAA, Soo et al. 2025 (arXiv 2501.09929).
"""

import torch
from torch import Tensor

from utils.errors import UserError


def targeted_vector(effects: Tensor, bias: Tensor, target: Tensor) -> Tensor:
    """The vector that moves some latents and, beyond what every vector does, no others (SAE-TS; FGAA's last step).

    `unit(unit(W t) - unit(W b))`: the length of the target does not matter.

    Args:
        effects: W, [d_model, d_sae].
        bias: b, [d_sae]; what any vector changes. All zeros for none.
        target: t, [d_sae]: one latent, or several with their weights.

    Returns:
        [d_model], float64, of length 1.

    Raises:
        UserError: If the target is zero, or moved by every vector and so by none.
    """
    towards, always = effects.double() @ target.double(), effects.double() @ bias.double()
    if not float(towards.norm()) > 0:
        raise UserError("no vector moves these latents: the target or its effects are zero")
    vector = _unit(towards) - (_unit(always) if float(always.norm()) > 0 else 0)
    if not float(vector.norm()) > 1e-9:
        raise UserError("these latents are what every vector moves: nothing is left to target")
    return _unit(vector)


def rotation(effects: Tensor, decoder: Tensor) -> Tensor:
    """The rotation that turns decoder rows towards what moves their latents (SAE-TS, rotated decoder).

    `R = U Vt` of the singular value decomposition of unit(W) unit(W_dec): of all rotations the one with the largest
    sum of cosines between `R d_j` and column j of W (orthogonal Procrustes).

    Args:
        effects: W, [d_model, d_sae]; columns are brought to length 1.
        decoder: W_dec, [d_sae, d_model]; rows are brought to length 1.

    Returns:
        [d_model, d_model] float64, orthogonal; `rotation @ row` is the vector of a latent.
    """
    columns = torch.nn.functional.normalize(effects.double(), dim=0)
    rows = torch.nn.functional.normalize(decoder.double(), dim=1)
    left, _, right = torch.linalg.svd(columns @ rows)
    return left @ right


def fgaa_target(
    delta: Tensor, density: Tensor, fires_first: Tensor, max_density: float, n_positive: int, n_negative: int
) -> Tensor:
    """FGAA's target: the difference of encodings, without dense and first-token latents, its largest ends kept.

    Args:
        delta: mean f(matching) - mean f(other), [d_sae].
        density: Share of tokens on which each latent fires, [d_sae].
        fires_first: Whether it fires on a sequence's first token, [d_sae] bool.
        max_density: Latents that fire on more are left out (published: 0.01).
        n_positive: Latents kept that fire more on the matching side.
        n_negative: On the other side.

    Returns:
        [d_sae] float64, of L1 norm 1; zeros where nothing is left.
    """
    kept = torch.where((density > max_density) | fires_first, 0.0, delta.double())
    target = torch.zeros_like(kept)
    for sign, n in ((1.0, n_positive), (-1.0, n_negative)):
        side = (sign * kept).clamp(min=0)
        values, places = side.topk(min(n, len(side)))
        target[places] += sign * values
    total = target.abs().sum()
    return target / total if float(total) > 0 else target


def _unit(vector: Tensor) -> Tensor:
    return vector / vector.norm()
