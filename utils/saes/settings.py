"""How an SAE is trained, apart from what it is trained on."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from utils.errors import UserError

TrainedArchitecture = Literal["topk", "batchtopk", "standard"]

WARM_UP_SHARE, DECAY_SHARE = 0.05, 0.2
"""Of the steps: the learning rate rises, and falls to 0 (as in the published training)."""


@dataclass(frozen=True)
class TrainSettings:
    """Sizes, losses and schedule."""

    architecture: TrainedArchitecture = "topk"
    d_sae: int = 2304
    k: int = 32
    """Latents a token; topk and batchtopk."""
    l1: float = 3.0
    """Weight of the activations' L1 norm, with the input's norm at sqrt(d_model); standard."""
    lr: float = 2e-3
    batch: int = 1024
    """Tokens a step."""
    epochs: int = 8
    """Passes over the text."""
    aux: float = 1 / 32
    """Weight of the auxiliary loss, by which dead latents learn what the others leave (Gao et al. 2024); 0 for none."""
    dead_after: int | None = None
    """Tokens without activation after which a latent counts as dead; None for a tenth of the run, 10M at most."""
    zero_bias: bool = False
    """Begin with b_dec = 0, as published, instead of the mean activation."""
    seed: int = 0

    def __post_init__(self) -> None:
        """
        Raises:
            UserError: If k is more than there are latents.
        """
        if self.architecture != "standard" and self.k > self.d_sae:
            raise UserError(f"--k {self.k} is more than the {self.d_sae} latents of --d_sae; give a smaller k")

    @property
    def sparsity(self) -> dict[str, float]:
        """What makes it sparse."""
        return {"l1": self.l1} if self.architecture == "standard" else {"k": self.k}

    def facts(self) -> dict[str, Any]:
        """What the weights depend on."""
        facts = asdict(self)
        del facts["k" if self.architecture == "standard" else "l1"]
        return facts

    def dead_limit(self, n_tokens: int) -> int:
        """Tokens after which a latent counts as dead, in a run of so many."""
        return self.dead_after if self.dead_after is not None else max(1, min(10_000_000, n_tokens // 10))


def learning_rate_share(step: int, n_steps: int) -> float:
    """Share of the full learning rate at a step, from 0 on: rises over 5% of the steps, falls over the last 20%."""
    warm_up, decay = max(1, round(WARM_UP_SHARE * n_steps)), max(1, round(DECAY_SHARE * n_steps))
    return min(1.0, (step + 1) / warm_up, (n_steps - step) / decay)
