"""What concept_geometry.py is asked for; needs no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.files.reading import sha256_of
from utils.model.checkpoints import ModelChoice
from utils.paths import DataPaths


@dataclass(frozen=True)
class GeometryRequest:
    """Which words of which model, and how many controls."""

    paths: DataPaths
    choice: ModelChoice
    words: Path
    n_shuffles: int
    """Draws of every control."""
    seed: int
    command: str

    def stem(self, figure: str = "") -> Path:
        name = f"{self.words.stem}_{self.choice.label}"
        return self.paths.research("concept_geometry", f"{figure}_{name}" if figure else name)

    @property
    def result_path(self) -> Path:
        return self.stem().with_name(self.stem().name + ".json")

    def describe(self) -> dict[str, Any]:
        return {
            "model": self.choice.label,
            "words": self.words.name,
            "words_sha256": sha256_of(self.words),
            "n_shuffles": self.n_shuffles,
            "seed": self.seed,
        }
