"""What direction is asked for; needs no torch."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from utils.paths import DataPaths
from utils.saes.prompts import PromptSource, Split, SystemPrompt
from utils.saes.requests import ModelRequest, is_done


@dataclass(frozen=True)
class DirectionRequest:
    """A direction to make or to choose, and to try on test prompts."""

    source: PromptSource
    model: ModelRequest
    layers: tuple[int, ...]
    """The suite's: candidates, or the one that is named."""
    positions: tuple[int, ...]
    """From the prompt's end; empty for all behind the instruction."""
    select: bool
    ablation: Literal["zero", "affine"]
    filtered: bool
    """With select: only prompts that the model answers by their side."""
    max_kl: float
    n_prompts: int
    n_val: int
    n_test: int
    system_prompt: SystemPrompt
    refusal_tokens: tuple[str, ...]
    max_new_tokens: int
    save_completions: bool
    seed: int
    command: str

    @property
    def paths(self) -> DataPaths:
        return self.source.paths

    @property
    def folder(self) -> Path:
        return self.paths.refusal_dir(self.model.name)

    @property
    def test_stem(self) -> Path:
        """Of what the direction does to test prompts."""
        return self.paths.sae_analysis(f"refusal_direction_{self.model.name}")

    @property
    def splits(self) -> tuple[Split, ...]:
        return ("train", "val", "test") if self.select else ("train", "test")

    def settings(self) -> dict[str, Any]:
        """What the result depends on."""
        chosen = (
            {"select": True, "max_kl": self.max_kl, "n_val": self.n_val, "filtered": self.filtered}
            if self.select
            else {"select": False}
        )
        return {
            **self.model.describe(),
            **chosen,
            "layers": list(self.layers),
            "positions": list(self.positions),
            "ablation": self.ablation,
            "n_prompts": self.n_prompts,
            "n_test": self.n_test,
            "system_prompt": self.system_prompt,
            "refusal_tokens": list(self.refusal_tokens),
            "max_new_tokens": self.max_new_tokens,
            "prompts": self.source.describe(self.splits),
            "seed": self.seed,
        }

    @property
    def journal(self) -> Path:
        """Of candidates' scores; its name is a digest of what they depend on."""
        others = ("select", "max_kl", "layers", "positions", "n_test", "max_new_tokens")
        facts = {key: value for key, value in self.settings().items() if key not in others}
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        return self.folder / f".sweep_{digest[:16]}.jsonl"

    def is_done(self, *, overwrite: bool) -> bool:
        """
        Raises:
            UserError: If it was made with other settings.
        """
        return is_done(self.test_stem.with_name(self.test_stem.name + ".json"), self.settings(), overwrite=overwrite)
