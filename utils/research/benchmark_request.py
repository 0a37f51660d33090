"""What the steering benchmark is asked for, and where its pieces are kept; needs no torch."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files.reading import read_json, sha256_of
from utils.judge.requests import JudgeFlags
from utils.model.checkpoints import ModelChoice
from utils.paths import DataPaths
from utils.settings import Side


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    items: int | None = 24
    """Test items of each behavior, the first ones; None for all."""
    validation: int | None = 16
    """Validation items; None for all."""
    lettered: int = 12
    """Of them, those that are asked as lettered questions, too."""
    neutral: int = 8
    """Neutral prompts on which the amount is solved; as many others are reported."""
    free: int = 8
    """Open-ended questions, answered freely."""
    free_tokens: int = 24
    knowledge: int = 12
    """Questions of MMLU and of TruthfulQA each."""
    others: int = 1
    """Test items of each other behavior."""
    texts: int = 10
    """Neutral texts whose perplexity is measured."""
    draws: int = 6
    """Of the controls (random vectors, permuted labels)."""


WHOLE = Sizes(
    items=None,
    validation=None,
    lettered=40,
    neutral=12,
    free=16,
    free_tokens=32,
    knowledge=40,
    others=6,
    texts=24,
    draws=8,
)
QUICK = Sizes(
    items=16,
    validation=12,
    lettered=10,
    neutral=5,
    free=4,
    free_tokens=20,
    knowledge=10,
    others=0,
    texts=6,
    draws=3,
)


PROMPTS: tuple[Side | None, ...] = (None, "pos", "neg")
TRANSFER = "transfer"
"""The unit of vectors made and tested under different system prompts."""


@dataclass(frozen=True)
class BenchmarkRequest:
    """Which methods to compare on which behaviors, and how."""

    paths: DataPaths
    choice: ModelChoice
    behaviors: tuple[str, ...]
    methods: tuple[str, ...]
    layers: tuple[int, ...]
    """That a vector method chooses from."""
    kl: float
    """Budget: 95th percentile of the per-token KL on neutral prompts, in nats."""
    sizes: Sizes = field(default_factory=Sizes)
    seed: int = 0
    transfer: bool = False
    """Also make and test the answer vector under each system prompt."""
    saes: tuple[Path, ...] = ()
    """Of the filtered method: at most one a layer."""
    batch_size: int | None = None
    judge: JudgeFlags | None = None
    """Scores the free answers; None where no judge is asked."""
    overwrite: bool = False
    command: str = ""

    @property
    def folder(self) -> Path:
        return self.paths.research("steering_benchmark", self.choice.label)

    def unit_path(self, behavior: str, method: str) -> Path:
        """One method on one behavior."""
        return self.folder / "units" / f"{behavior}__{method}.json"

    def scores_path(self, behavior: str) -> Path:
        """The judge's scores of the free answers of all methods."""
        return self.folder / "scores" / f"{behavior}.json"

    def describe(self) -> dict[str, Any]:
        """What every unit's numbers depend on, as far as it is known without the model."""
        return {
            "model": self.choice.label,
            "quantize": self.choice.quantize,
            "layers": list(self.layers),
            "kl_budget": self.kl,
            "seed": self.seed,
            "sizes": asdict(self.sizes),
        }

    def kept(self, behavior: str, method: str) -> Mapping[str, Any] | None:
        """A unit that is there; None where it is to be made. One that was not run is tried again.

        Raises:
            UserError: If it was made with other settings.
        """
        path = self.unit_path(behavior, method)
        if self.overwrite or not path.exists():
            return None
        unit: Mapping[str, Any] = read_json(path)
        settings = unit.get("settings", {}) if isinstance(unit, dict) else {}
        asked = self.describe()
        if differing := [key for key, value in asked.items() if settings.get(key) != value]:
            raise UserError(f"{path} was made with another {', '.join(differing)}; --overwrite makes it again")
        return None if "not_run" in unit else unit

    @property
    def waiting(self) -> list[tuple[str, str]]:
        """Behavior and method of every unit that is to be made."""
        names = [*self.methods, *([TRANSFER] if self.transfer else [])]
        units = [(behavior, name) for behavior in self.behaviors for name in names]
        return [unit for unit in units if self.kept(*unit) is None]

    def dataset_facts(self, behavior: str) -> dict[str, str]:
        """Of the provenance."""
        return {"test_sha256": sha256_of(self.paths.test_dataset(behavior, "answer_text"))}


def finite(value: Any) -> Any:
    """With None for numbers that there are not: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
