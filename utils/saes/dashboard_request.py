"""What dashboards are asked for; needs no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.files.reading import sha256_of
from utils.paths import DataPaths
from utils.saes.formats import WEIGHTS_NAME
from utils.saes.prompts import PromptSource, SystemPrompt
from utils.saes.requests import ModelRequest, is_done
from utils.saes.text import TextSource


@dataclass(frozen=True)
class DashboardRequest:
    """A page of an SAE's latents."""

    paths: DataPaths
    model: ModelRequest
    folder: Path
    source: TextSource | None
    """None for the SAE's own."""
    n_tokens: int
    latents: tuple[int, ...]
    """Empty for the `top` ones."""
    top: int
    prompts: PromptSource
    n_prompts: int
    position: int
    system_prompt: SystemPrompt
    other_model: bool
    """Whether SAEs of another checkpoint of the same shape are meant."""
    command: str

    @property
    def stem(self) -> Path:
        """Of the page and its numbers: named for the SAE, and for the model where the SAE's name does not say it."""
        name = self.folder.resolve().name
        on = "" if name.startswith(self.model.name) else f"_on_{self.model.name}"
        return self.paths.sae_analysis(f"dashboard_{name}{on}")

    @property
    def page_path(self) -> Path:
        return self.stem.with_name(self.stem.name + ".html")

    @property
    def result_path(self) -> Path:
        return self.stem.with_name(self.stem.name + ".json")

    def describe(self) -> dict[str, Any]:
        chosen = {"latents": list(self.latents)} if self.latents else {"top": self.top}
        return {
            **self.model.describe(),
            "sae": sha256_of(self.folder / WEIGHTS_NAME),
            "text": None if self.source is None else self.source.identity(),
            "tokens": self.n_tokens,
            **chosen,
            "prompts": self.prompts.describe(("train",)),
            "n_prompts": self.n_prompts,
            "position": self.position,
            "prompt_system_prompt": self.system_prompt,
        }

    def is_done(self, *, overwrite: bool) -> bool:
        return self.page_path.exists() and is_done(self.result_path, self.describe(), overwrite=overwrite)
