"""What SAE is asked for; needs no torch."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.paths import DataPaths
from utils.saes.plan import ActivationPlan
from utils.saes.requests import ModelRequest, is_done
from utils.saes.settings import TrainSettings


@dataclass(frozen=True)
class TrainRequest:
    """An SAE to train."""

    paths: DataPaths
    model: ModelRequest
    plan: ActivationPlan
    settings: TrainSettings
    keep_activations: bool
    """Whether activations are kept on the disk for other runs."""
    command: str
    given_name: str | None = None
    batch_size: int | None = None
    """Sequences in one pass of the model."""

    @property
    def name(self) -> str:
        """The folder's: model and data; architecture and seed where they are not the usual ones."""
        if self.given_name:
            return self.given_name
        architecture = "" if self.settings.architecture == "topk" else f"_{self.settings.architecture}"
        seed = f"_seed={self.settings.seed}" if self.settings.seed else ""
        return f"{self.model.name}_{self.plan.source.label}{architecture}{seed}"

    @property
    def folder(self) -> Path:
        return self.paths.sae(self.name)

    @property
    def metrics_path(self) -> Path:
        """Written last: says that the SAE is there, and what it was made with."""
        return self.folder / "metrics.json"

    @property
    def state_path(self) -> Path:
        return self.folder / "training_state.pt"

    @property
    def start_seed(self) -> int:
        """Of the first weights and the order of tokens: its own for each model and text, so that none share a start."""
        named = f"{self.settings.seed} {self.model.name} {self.plan.source.label}"
        return int.from_bytes(hashlib.sha256(named.encode()).digest()[:4])

    def describe(self) -> dict[str, Any]:
        """What the weights depend on."""
        plan = self.plan
        of_text = {"layer": plan.layer, "tokens": plan.total_rows, "context": plan.context, "buffer": plan.buffer}
        return {
            **self.model.describe(),
            **plan.source.identity(),
            **of_text,
            "stored_dtype": plan.dtype,
            **self.settings.facts(),
        }

    def is_done(self, *, overwrite: bool) -> bool:
        """
        Raises:
            UserError: If an SAE of that name was made with other settings.
        """
        return is_done(self.metrics_path, self.describe(), overwrite=overwrite)
