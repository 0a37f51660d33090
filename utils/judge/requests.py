"""Which answers a judge is to score, and how it is asked: built once, from the command line or by hand."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from utils.behaviors import Behavior, load_behavior, published_behaviors
from utils.errors import UserError
from utils.judge.cost import Price
from utils.model.checkpoints import checkpoint_label, choose_model
from utils.paths import DataPaths
from utils.settings import SteeringSettings

if TYPE_CHECKING:
    from utils.judge.score_files import Purpose


@dataclass(frozen=True)
class WantedAnswers:
    """Which open-ended results are meant, and the command that makes them."""

    paths: DataPaths
    behaviors: tuple[str, ...]
    layers: tuple[int, ...] = ()
    """All where empty, as for what follows."""
    multipliers: tuple[float, ...] = ()
    strengths: tuple[float, ...] = ()
    model_size: str | None = None
    model: str | None = None
    use_base_model: bool = False
    """Only those of base models."""

    def has(self, at: SteeringSettings, *, with_unsteered: bool = False) -> bool:
        """Whether these answers are asked for, or they are those at multiplier 0 `with_unsteered`."""
        return (
            (not self.layers or at.layer in self.layers)
            and (self._has_amount(at) or (with_unsteered and at.multiplier == 0))
            and (self.model_size is None or at.model_size == self.model_size)
            and (self.model is None or at.model == checkpoint_label(self.model))
            and (at.use_base_model or not self.use_base_model)
        )

    def _has_amount(self, at: SteeringSettings) -> bool:
        asked = self.multipliers if at.knob == "multiplier" else self.strengths
        return at.multiplier in asked if asked else not (self.multipliers or self.strengths)

    def missing(self, found: Iterable[SteeringSettings]) -> list[str]:
        """What was asked for by name and is not among what was found, e.g. `--layers 3 4`.

        Raises:
            UserError: If nothing was found.
        """
        found = list(found)
        if not found:
            raise UserError(f"no such open-ended results under {self.paths.results_dir}; run: {self.command}")
        named = self.behaviors if set(self.behaviors) != set(published_behaviors()) else ()
        absent: dict[str, Sequence[object]] = {
            "--behaviors": [one for one in named if one not in {at.behavior for at in found}],
            "--layers": [one for one in self.layers if one not in {at.layer for at in found}],
            "--multipliers": [one for one in self.multipliers if one not in {at.multiplier for at in found}],
            "--strengths": [one for one in self.strengths if one not in {at.multiplier for at in found}],
        }
        return [f"{flag} {' '.join(map(str, values))}" for flag, values in absent.items() if values]

    @property
    def command(self) -> str:
        """What makes them."""
        words: list[object] = []
        if set(self.behaviors) != set(published_behaviors()):
            words += ["--behaviors", *self.behaviors]
        for flag, values in (("layers", self.layers), ("multipliers", self.multipliers), ("strengths", self.strengths)):
            words += [f"--{flag}", *values] if values else []
        if self.model or self.model_size:
            words += choose_model(self.model_size or "", self.model, self.use_base_model).command_words
        return self.paths.command("prompting_with_steering", *words, "--type", "open_ended")


@dataclass(frozen=True)
class JudgeFlags:
    """A judge model, and how it is asked."""

    model: str
    base_url: str
    price: Price | None
    max_cost: float | None = None
    """In US dollars; None for no limit."""
    concurrency: int = 10
    timeout: float = 60.0
    """Of one request, in seconds."""
    max_retries: int = 6

    def __post_init__(self) -> None:
        if self.max_cost is not None and self.price is None:
            raise UserError(f"--max_cost: the price of {self.model!r} is not known; give it with --price IN OUT")

    def record(self, behavior: Behavior) -> dict[str, str]:
        """What tells one judge from another in provenance records."""
        from utils.judge.prompt import prompt_fingerprint

        return {"judge_model": self.model, "base_url": self.base_url, **prompt_fingerprint(behavior)}


@dataclass(frozen=True)
class JudgeRequest:
    """What to score, by which judge."""

    wanted: WantedAnswers
    judge: JudgeFlags
    scores_dir: Path
    overwrite: bool = False
    retry_unscored: bool = False
    command: str = ""
    """The command line, for the provenance records."""

    def record(self, behavior: str) -> dict[str, str]:
        """What tells one judge from another in provenance records."""
        return self.judge.record(load_behavior(self.wanted.paths, behavior))

    def journal_path(self, behavior: str, purpose: "Purpose") -> Path:
        """Where replies are kept until score files are written."""
        judge = hashlib.sha256(json.dumps(self.record(behavior), sort_keys=True).encode()).hexdigest()[:16]
        return self.scores_dir / behavior / f".{purpose}_{judge}.jsonl"
