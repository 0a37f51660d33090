"""What stand-in is asked for; needs no torch."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from utils.model.checkpoints import ModelChoice
from utils.paths import DataPaths
from utils.saes.prompts import PromptSource, SystemPrompt
from utils.saes.requests import is_done


@dataclass(frozen=True)
class RefuserSettings:
    """What the fine-tuning computes."""

    layers: tuple[int, ...]
    """Decoder blocks that are trained."""
    steps: int = 40
    batch_size: int = 16
    """Prompts a step, half of them harmful."""
    lr: float = 2e-4
    """Highest learning rate of AdamW; it rises over the first tenth of the steps and falls linearly."""
    harmless_weight: float = 3.0
    """Weight of a harmless prompt's loss; a harmful one's is 1. More of it means fewer harmless prompts refused."""
    own_tokens: int = 10
    """Of the model's own answers to harmless instructions."""
    seed: int = 0
    system_prompt: SystemPrompt = "none"


@dataclass(frozen=True)
class RefuserRequest:
    """A stand-in to make."""

    paths: DataPaths
    choice: ModelChoice
    settings: RefuserSettings
    max_new_tokens: int
    command: str

    @property
    def source(self) -> PromptSource:
        """The bundled instructions: no other has a split for this."""
        return PromptSource(self.paths)

    @property
    def weights_path(self) -> Path:
        return self.paths.finetuned_weights("refuser")

    @property
    def report_path(self) -> Path:
        return self.paths.sae_analysis(f"refuser_{self.choice.label}.json")

    def describe(self) -> dict[str, Any]:
        settings = {**asdict(self.settings), "layers": list(self.settings.layers)}
        prompts = self.source.describe(("refuser", "test"))
        return {"model": self.choice.label, **settings, "max_new_tokens": self.max_new_tokens, "prompts": prompts}

    def is_done(self, *, overwrite: bool) -> bool:
        """
        Raises:
            UserError: If it was made with other settings.
        """
        return is_done(self.report_path, self.describe(), overwrite=overwrite or not self.weights_path.exists())


def middle_third(n_layers: int) -> Sequence[int]:
    return range(n_layers // 3, max(n_layers // 3 + 1, 2 * n_layers // 3))
