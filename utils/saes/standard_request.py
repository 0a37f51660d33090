"""What standard evaluations are asked for; needs no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.files.reading import sha256_of
from utils.paths import DataPaths
from utils.saes.formats import WEIGHTS_NAME
from utils.saes.requests import ModelRequest, is_done
from utils.saes.text import TextSource


@dataclass(frozen=True)
class EvalsRequest:
    """Which SAEs to measure, on what."""

    paths: DataPaths
    model: ModelRequest
    folders: tuple[Path, ...]
    sources: tuple[TextSource, ...]
    """Empty for each SAE's own, crosswise."""
    n_tokens: int
    context: int
    seed: int
    command: str
    batch_size: int | None = None

    @property
    def stem(self) -> Path:
        """Of the result and its figure."""
        return self.paths.sae_analysis(f"standard_evals_{self.model.name}")

    @property
    def result_path(self) -> Path:
        return self.stem.with_name(self.stem.name + ".json")

    def describe(self) -> dict[str, Any]:
        weights = {str(folder): sha256_of(folder / WEIGHTS_NAME) for folder in self.folders}
        text = {"tokens": self.n_tokens, "context": self.context, "text": [one.identity() for one in self.sources]}
        return {**self.model.describe(), "saes": weights, **text, "seed": self.seed}

    def is_done(self, *, overwrite: bool) -> bool:
        return is_done(self.result_path, self.describe(), overwrite=overwrite)
