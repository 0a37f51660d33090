"""How well an SAE stands for a layer: reconstruction, sparsity, and what the model loses with it in place.

All numbers are over kept tokens: all but the first of each sequence, which is an attention sink and stays as it is.
Intervals are jackknives over sequences, whose tokens are not independent: a bootstrap of a few sequences is too narrow,
and explained variance falls in it, because a resample of fewer different sequences varies less.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.cli.progress import progress
from utils.data.estimates import Estimate, jackknife_estimate
from utils.errors import UserError
from utils.model.steering import capture_outputs, output_hooks
from utils.saes.dictionary import SAE, activate

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

FloatArray = NDArray[np.float64]
RARE_DENSITY = 1e-4


@dataclass(frozen=True)
class TextActivations:
    """A layer over some sequences, and what the model makes of them."""

    token_ids: Tensor
    """[n_sequences, context]"""
    x: Tensor
    """[n_sequences, context - 1, d_model] float32, on the CPU: kept tokens."""
    ce_clean: FloatArray
    """[n_sequences]: cross-entropy of the next tokens in nats, mean over what kept tokens predict."""
    ce_zero: FloatArray
    """The same with the layer's output 0 at kept tokens."""

    @property
    def n_tokens(self) -> int:
        return self.x.shape[0] * self.x.shape[1]


@dataclass(frozen=True)
class StandardEvals:
    """What one SAE is like on one text."""

    ce_clean: Estimate
    ce_sae: Estimate
    ce_zero: Estimate
    ce_loss_score: Estimate
    """(CE zero - CE SAE) / (CE zero - CE clean): 1 where nothing is lost, 0 as if the layer were gone."""
    explained_variance: Estimate
    """1 - sum |x - x_hat|^2 / sum |x - mean x|^2"""
    l0: Estimate
    l1: Estimate
    mse: Estimate
    """Mean over tokens of |x - x_hat|^2."""
    density: FloatArray
    """[d_sae]: share of tokens on which each latent fires."""

    @property
    def dead(self) -> float:
        """Share of latents that fire on none of these tokens."""
        return float(np.mean(self.density == 0))

    @property
    def rare(self) -> float:
        """Share of latents that fire, but on less than one in 10,000 tokens."""
        return float(np.mean((self.density > 0) & (self.density < RARE_DENSITY)))

    def estimates(self) -> dict[str, Estimate]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Estimate)}


# --- the model's part -----------------------------------------------------------------------------


def read_text(model: "LlamaWrapper", token_ids: Tensor, layer: int, batch_size: int | None) -> TextActivations:
    """Run the model over sequences as it is, and with a layer's output put to 0.

    Args:
        model: The model.
        token_ids: [n_sequences, context], without padding.
        layer: Block whose output is read.
        batch_size: Sequences in one pass; None for as many as fit.
    """
    found: list[Tensor] = []

    @torch.no_grad()
    def clean(ids: Tensor, _: slice) -> Tensor:
        with capture_outputs([model.layers[layer]]) as captured:
            losses = next_token_losses(model, ids)
        found.append(captured[0][:, 1:].float().cpu())
        return losses

    model.runtime.check_lengths([token_ids.shape[1]])
    ce_clean = _in_batches(model, token_ids, clean, batch_size, "the model as it is")
    zero = torch.zeros(model.d_model)
    x = torch.cat(found)
    ce_zero = cross_entropy_with(model, token_ids, layer, lambda kept: zero.expand_as(kept), batch_size, "zero")
    return TextActivations(token_ids, x, ce_clean, ce_zero)


def cross_entropy_with(
    model: "LlamaWrapper",
    token_ids: Tensor,
    layer: int,
    put: Callable[[Tensor], Tensor],
    batch_size: int | None,
    label: str,
) -> FloatArray:
    """Cross-entropy of each sequence with something else in place of a layer's output at kept tokens.

    Args:
        model: The model.
        token_ids: [n_sequences, context]
        layer: The block.
        put: What to put there, [..., d_model] float32 -> the same shape.
        batch_size: Sequences in one pass.
        label: For the progress line.

    Returns:
        [n_sequences], nats a token.
    """

    def replace(hidden: Tensor) -> Tensor:
        return torch.cat([hidden[:, :1], put(hidden[:, 1:].float()).to(hidden)], dim=1)

    @torch.no_grad()
    def changed(ids: Tensor, _: slice) -> Tensor:
        with output_hooks({model.layers[layer]: replace}):
            return next_token_losses(model, ids)

    return _in_batches(model, token_ids, changed, batch_size, label)


def next_token_losses(model: "LlamaWrapper", ids: Tensor) -> Tensor:
    """Mean cross-entropy of what the tokens behind the first predict, [batch], nats."""
    logits = model.model(input_ids=ids.to(model.device), use_cache=False).logits[:, 1:-1]
    right = ids[:, 2:].to(logits.device)
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), right.flatten(), reduction="none")
    return losses.view_as(right).mean(dim=1).cpu()


def _in_batches(
    model: "LlamaWrapper",
    token_ids: Tensor,
    run: Callable[[Tensor, slice], Tensor],
    batch_size: int | None,
    label: str,
) -> FloatArray:
    n, context = token_ids.shape
    of_pass = batch_size or max(1, int(model.runtime.batcher.token_budget() // context))
    places = [slice(start, start + of_pass) for start in range(0, n, of_pass)]
    losses = [run(token_ids[place], place) for place in progress(places, desc=label, unit="pass", leave=False)]
    found = torch.cat(losses).double().numpy()
    if not np.isfinite(found).all():
        raise UserError(f"{model.label}: a cross-entropy is not finite in {model.dtype}; use --dtype float32")
    return found


# --- the SAE's part -------------------------------------------------------------------------------


def evaluate(sae: SAE, text: TextActivations, ce_sae: FloatArray) -> StandardEvals:
    """All numbers of one SAE on one text.

    Args:
        sae: The SAE.
        text: The text's activations, of the SAE's layer.
        ce_sae: [n_sequences], cross-entropy with the reconstruction in place.
    """
    sums = [_sums(sae, x) for x in text.x.double().unbind()]  # a sequence at a time
    fired = np.sum([one.fired for one in sums], axis=0)
    n = text.x.shape[1]
    error, l0, l1, squares = (
        np.array([getattr(one, name) for one in sums]) for name in ("error", "l0", "l1", "squares")
    )
    totals = np.stack([one.total for one in sums])  # [n_sequences, d_model]
    # the first row: every sequence once; then without each of them
    weights = np.concatenate([np.ones((1, len(sums))), 1 - np.eye(len(sums))])

    def estimate(values: FloatArray) -> Estimate:
        return jackknife_estimate(float(values[0]), values[1:].tolist())

    def mean(of_sequence: FloatArray) -> FloatArray:
        return weights @ of_sequence / weights.sum(axis=1)

    with np.errstate(invalid="ignore"):  # of a single sequence nothing is left
        spread = weights @ squares - np.square(weights @ totals).sum(axis=1) / (weights.sum(axis=1) * n)
        clean, sae_ce, zero = mean(text.ce_clean), mean(ce_sae), mean(text.ce_zero)
        return StandardEvals(
            ce_clean=estimate(clean),
            ce_sae=estimate(sae_ce),
            ce_zero=estimate(zero),
            ce_loss_score=estimate((zero - sae_ce) / (zero - clean)),
            explained_variance=estimate(1 - weights @ error / spread),
            l0=estimate(mean(l0) / n),
            l1=estimate(mean(l1) / n),
            mse=estimate(mean(error) / n),
            density=fired / text.n_tokens,
        )


@dataclass(frozen=True)
class _Sums:
    """Over the kept tokens of one sequence."""

    error: float
    l0: float
    l1: float
    squares: float
    total: FloatArray
    fired: FloatArray


def _sums(sae: SAE, x: Tensor) -> _Sums:
    f = sae.encode(x.float())
    error = x - sae.decode(f).double()
    return _Sums(
        error=float(error.square().sum()),
        l0=float((f > 0).sum()),
        l1=float(f.double().sum()),
        squares=float(x.square().sum()),
        total=x.sum(dim=0).numpy(),
        fired=(f > 0).sum(dim=0).double().numpy(),
    )


def random_control(text: TextActivations, d_sae: int, k: int, seed: int, layer: int) -> SAE:
    """As many random directions, of which each token takes its k nearest: what sparsity alone gives.

    It may do its best: it is centred on the text's mean, and its reconstruction is scaled by the one factor that
    fits this text best.
    """
    x = text.x.flatten(0, 1)
    mean = x.double().mean(dim=0).float()
    rows = torch.randn(d_sae, x.shape[1], generator=torch.Generator().manual_seed(seed))
    rows = rows / rows.norm(dim=-1, keepdim=True)
    k = max(1, min(k, d_sae))
    along, sizes = 0.0, 0.0
    for part in (x - mean).split(1024):
        written = activate(part @ rows.T, "topk", k, None) @ rows
        along += float((written * part).double().sum())
        sizes += float(written.square().double().sum())
    scale = along / sizes if sizes else 0.0
    return SAE(
        W_enc=rows.T.contiguous(),
        b_enc=-(rows @ mean),
        W_dec=rows * scale,
        b_dec=mean,
        **{"architecture": "topk", "k": k, "layer": layer, "model": "none", "source": "none"},  # type: ignore[arg-type]
        name="random dictionary",
    )


def density_counts(density: FloatArray) -> list[tuple[str, int]]:
    """Latents by how often they fire, a power of ten a row."""
    rows = [("never", int((density == 0).sum()))]
    edges = [0.0, *(10.0**power for power in range(-5, 1))]
    for low, high in pairwise(edges):
        inside = (density > low) & (density <= high)
        rows.append((f"{low:g} to {high:g}", int(inside.sum())))
    return rows
