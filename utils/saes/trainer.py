"""One SAE while it is trained: its weights, a step, and its state for going on after a kill.

The input is multiplied with one factor, so that its mean norm is sqrt(d_model), and b_dec is taken off; both are
folded into the weights at the end (`Trainer.finished`).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from utils.errors import UserError
from utils.saes.codes import batch_topk_pattern, decoded, topk_pattern, values_at
from utils.saes.dictionary import SAE
from utils.saes.formats import fold_decoder_norms
from utils.saes.settings import TrainSettings, learning_rate_share

BETAS = (0.9, 0.999)
DECODER_NORM = 0.1
"""Of a standard SAE's rows at the beginning (Anthropic, April 2024); those of TopK have norm 1 throughout."""
THRESHOLD_RATE = 0.05
"""How fast the threshold of batchtopk follows the smallest activation that was kept."""


@dataclass(frozen=True)
class StepStats:
    """What a step saw, on its own tokens."""

    loss: float
    """Squared error a token plus the other terms, with the input's norm at sqrt(d_model)."""
    l0: float
    """Latents a token."""
    explained_variance: float
    dead: float
    """Share of latents that did not fire lately."""


class Trainer:
    """Weights, optimiser and counters."""

    def __init__(self, settings: TrainSettings, sample: Tensor, n_steps: int, n_tokens: int, seed: int) -> None:
        """
        Args:
            settings: How to train.
            sample: Activations [n, d_model] that the factor and the first b_dec are taken from, on the device.
            n_steps: Steps of the whole run.
            n_tokens: Tokens of the whole run, repeated ones counted again.
            seed: Of the first weights.
        """
        self.settings, self.n_steps = settings, n_steps
        self.step = 0
        sample = sample.float()
        d_model = sample.shape[1]
        self.factor = math.sqrt(d_model) / float(sample.norm(dim=-1).double().mean())
        rows = torch.randn(settings.d_sae, d_model, generator=torch.Generator().manual_seed(seed)).to(sample.device)
        rows = rows / rows.norm(dim=-1, keepdim=True)
        mean = (sample.double().mean(dim=0) * self.factor).float()
        decoder = rows * (DECODER_NORM if settings.architecture == "standard" else 1.0)
        self.weights = {
            "encoder": decoder.clone(),  # [d_sae, d_model], transposed
            "b_enc": torch.zeros(settings.d_sae, device=sample.device),
            "decoder": decoder,
            "b_dec": torch.zeros_like(mean) if settings.zero_bias else mean,
        }
        for weights in self.weights.values():
            weights.requires_grad_(True)
        self._optimiser = torch.optim.Adam(self.weights.values(), lr=settings.lr, betas=BETAS, fused=True)
        self._silent = torch.zeros(settings.d_sae, dtype=torch.long, device=sample.device)  # tokens since it fired
        self._dead_limit = settings.dead_limit(n_tokens)
        self.threshold = 0.0

    # --- a step ---

    def train(self, activations: Tensor) -> StepStats:
        """One step on activations [n_tokens, d_model] as the model has them.

        Raises:
            UserError: If the loss is not finite any more.
        """
        x = activations.to(self.weights["b_dec"]) * self.factor
        for group in self._optimiser.param_groups:
            group["lr"] = self.settings.lr * learning_rate_share(self.step, self.n_steps)
        error, loss, fired = self._dense_loss(x) if self.settings.architecture == "standard" else self._sparse_loss(x)
        loss = loss + self._auxiliary(x, error.detach())
        value = float(loss.detach())
        if not math.isfinite(value):
            raise UserError(f"step {self.step}: the loss is {value}; use a smaller --lr")
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self._update()
        self._silent = torch.where(fired > 0, 0, self._silent + len(x))
        self.step += 1
        spread = float((x - x.mean(dim=0)).square().sum())
        return StepStats(
            loss=value,
            l0=float(fired.sum()) / len(x),
            explained_variance=1 - float(error.detach().square().sum()) / spread if spread else math.nan,
            dead=float(self.dead.float().mean()),
        )

    @property
    def dead(self) -> Tensor:
        """[d_sae] bool"""
        return self._silent >= self._dead_limit

    def _centred_bias(self) -> Tensor:
        """What b_enc becomes when b_dec is not taken off the input, [d_sae]."""
        return self.weights["b_enc"] - self.weights["encoder"] @ self.weights["b_dec"]

    def _sparse_loss(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Error [n_tokens, d_model], loss, and how often each latent fired [d_sae]."""
        settings, bias = self.settings, self._centred_bias()
        with torch.no_grad():
            pre = torch.nn.functional.linear(x, self.weights["encoder"], bias)
            choose = topk_pattern if settings.architecture == "topk" else batch_topk_pattern
            pattern = choose(pre, settings.k)
        values = values_at(x, self.weights["encoder"], bias, pre, pattern)
        error = x - self.weights["b_dec"] - decoded(values, self.weights["decoder"], pattern)
        positive = values.detach() > 0
        if settings.architecture == "batchtopk" and bool(positive.any()):
            smallest = float(values.detach()[positive].min())
            rate = THRESHOLD_RATE if self.step else 1.0
            self.threshold += rate * (smallest - self.threshold)
        fired = torch.bincount(pattern.columns[positive], minlength=settings.d_sae)
        return error, error.square().sum(dim=-1).mean(), fired

    def _dense_loss(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        f = torch.nn.functional.linear(x, self.weights["encoder"], self._centred_bias()).relu()
        error = x - self.weights["b_dec"] - f @ self.weights["decoder"]
        l1 = self.settings.l1 * min(1.0, (self.step + 1) / max(1, round(0.05 * self.n_steps)))
        penalty = l1 * (f * self.weights["decoder"].norm(dim=-1)).sum(dim=-1).mean()
        return error, error.square().sum(dim=-1).mean() + penalty, (f.detach() > 0).sum(dim=0)

    def _auxiliary(self, x: Tensor, error: Tensor) -> Tensor | float:
        """What revives dead latents.

        Those of TopK, which others outdo, are to write what the others leave out (Gao et al. 2024, appendix A.2).
        Those of a standard SAE, whose pre-activations are all negative, have theirs raised (as in Anthropic's
        "Circuits updates", January 2025).
        """
        dead = self.dead.nonzero()[:, 0]
        if not (self.settings.aux and len(dead)):
            return 0.0
        pre = torch.nn.functional.linear(x, self.weights["encoder"][dead], self._centred_bias()[dead])
        if self.settings.architecture == "standard":
            return self.settings.aux * (-pre).relu().sum(dim=-1).mean()
        values, winners = pre.topk(min(x.shape[1] // 2, len(dead)), dim=-1, sorted=False)
        codes = torch.zeros_like(pre).scatter(-1, winners, values.relu())
        left = error - codes @ self.weights["decoder"][dead]
        return self.settings.aux * left.square().sum(dim=-1).mean()

    @torch.no_grad()
    def _update(self) -> None:
        decoder = self.weights["decoder"]
        unit_rows = self.settings.architecture != "standard"
        if unit_rows and decoder.grad is not None:  # what would only change a row's norm
            decoder.grad -= (decoder.grad * decoder).sum(dim=-1, keepdim=True) * decoder
        self._optimiser.step()
        if unit_rows:
            decoder /= decoder.norm(dim=-1, keepdim=True).clamp(min=1e-8)

    # --- state ---

    def state(self) -> dict[str, Any]:
        """All that the next step depends on; of tensors and numbers."""
        return {
            "weights": {name: weights.detach() for name, weights in self.weights.items()},
            "optimiser": self._optimiser.state_dict(),
            "silent": self._silent,
            **{"threshold": self.threshold, "factor": self.factor, "step": self.step},
        }

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        for name, weights in self.weights.items():
            weights.copy_(state["weights"][name])
        self._optimiser.load_state_dict(state["optimiser"])
        self._silent = state["silent"].to(self._silent.device)
        self.threshold, self.factor, self.step = state["threshold"], state["factor"], state["step"]

    # --- the result ---

    @torch.no_grad()
    def finished(self) -> dict[str, Tensor]:
        """The weights for activations as the model has them, decoder rows of norm 1; float32, on the CPU.

        Takes the input's factor and b_dec into the weights: x c becomes x, and what latents and bias write is
        divided by c. All rows have one norm, so that the same latents win.
        """
        weights = {name: value.detach().cpu() for name, value in self.weights.items()}
        folded = {
            "W_enc": weights["encoder"].T * self.factor,
            "b_enc": self._centred_bias().cpu(),
            "W_dec": weights["decoder"] / self.factor,
            "b_dec": weights["b_dec"] / self.factor,
        }
        if self.settings.architecture == "batchtopk":
            folded["threshold"] = torch.full_like(folded["b_enc"], self.threshold)
        return {name: value.contiguous() for name, value in fold_decoder_norms(folded).items()}

    def as_sae(self, **about: Any) -> SAE:
        """The SAE as it is now; `about`: layer, model, source, name, own."""
        k = None if self.settings.architecture == "standard" else self.settings.k
        everything: dict[str, Any] = {**self.finished(), **about, "architecture": self.settings.architecture, "k": k}
        return SAE(**everything)
