"""What taking vectors apart is asked for, and whether it is done; needs no torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.behaviors import load_behavior
from utils.errors import UserError
from utils.files.reading import sha256_of
from utils.files.tables import with_suffix
from utils.model.checkpoints import ModelChoice
from utils.paths import DataPaths
from utils.saes.requests import is_done
from utils.settings import Side, VectorKind
from utils.vectors.files import generate_command

DEFAULT_RANKS = (1, 2, 4, 8, 16, 32)
SIDES: tuple[Side, ...] = ("pos", "neg")


@dataclass(frozen=True)
class DecomposeRequest:
    """Which vectors to take apart, and what to measure of their parts."""

    paths: DataPaths
    choice: ModelChoice
    behaviors: tuple[str, ...]
    layers: tuple[int, ...]
    kind: VectorKind
    ranks: tuple[int, ...] | None = None
    """Of the vectors that are written and measured; None for DEFAULT_RANKS as far as there are components."""
    leave_out: int = 2
    """The vector without component 1, 2, ... is written and measured up to this one."""
    strength: float = 0.15
    """At which vectors are measured: the added norm as a share of the layer's residual norm."""
    n_flips: int = 500
    """Draws of random signs."""
    n_random: int = 2
    """Draws of each control whose effect is measured."""
    limit: int | None = None
    """Test items, the first ones; None for all."""
    seed: int = 0
    overwrite: bool = False
    command: str = ""
    batch_size: int | None = None
    plainly: bool = False

    def __post_init__(self) -> None:
        """
        Raises:
            UserError: If the vectors are not mean differences, whose parts add up to them.
        """
        if self.kind.method != VectorKind.method:
            raise UserError(
                f"--method {self.kind.method}: only a mean difference is the sum of its components; leave it out"
            )

    @property
    def jobs(self) -> Iterator[tuple[str, int]]:
        """Every behavior and layer."""
        return ((behavior, layer) for behavior in self.behaviors for layer in self.layers)

    def stem(self, what: str, behavior: str, layer: int) -> Path:
        """Of a result's files."""
        name = f"{what}_layer={layer}_{self.choice.label}{self.kind.suffix}"
        return self.paths.research(behavior, name)

    def result(self, behavior: str, layer: int) -> Path:
        """What is written last of a job."""
        return with_suffix(self.stem("singular_vectors", behavior, layer), ".json")

    def activations(self, behavior: str, layer: int) -> list[Path]:
        """Of the matching and of the other answers."""
        return [self.paths.activations(behavior, side, layer, self.choice.label, self.kind) for side in SIDES]

    def vector(self, behavior: str, layer: int, *, normalized: bool = False) -> Path:
        """The whole one."""
        return self.paths.vector(behavior, layer, self.choice.label, normalized=normalized, kind=self.kind)

    def make_command(self, behavior: str, layer: int) -> str:
        """What makes a job's vector and activations."""
        return generate_command(self.paths, [behavior], [layer], self.choice, activations=True, kind=self.kind)

    def inputs(self, behavior: str, layer: int) -> dict[str, str]:
        """What a job reads, by sha256.

        Raises:
            UserError: If something of it is missing; names the command that makes it.
        """
        files = [self.vector(behavior, layer), *self.activations(behavior, layer)]
        if missing := [path for path in files if not path.is_file()]:
            raise UserError(f"{missing[0]} not found; run: {self.make_command(behavior, layer)}")
        return dict(zip(("vector", "positive", "negative"), map(sha256_of, files), strict=True))

    def test_items(self, behavior: str) -> Path:
        return self.paths.test_dataset(behavior, "answer_text")

    def settings(self, behavior: str, layer: int) -> dict[str, Any]:
        """All that a job's numbers depend on, but for the model's weights.

        Raises:
            UserError: If its inputs or the test set are missing.
        """
        items = self.test_items(behavior)
        if not items.is_file():
            hint = self.paths.command("process_raw_datasets", "--behaviors", behavior)
            raise UserError(f"{items} not found; run: {hint}")
        return {
            "behavior": behavior,
            "layer": layer,
            "model": self.choice.label,
            "kind": self.kind.suffix,
            **self.inputs(behavior, layer),
            "test_items": sha256_of(items),
            "limit": self.limit,
            "ranks": None if self.ranks is None else list(self.ranks),
            "leave_out": self.leave_out,
            "strength": self.strength,
            "n_flips": self.n_flips,
            "n_random": self.n_random,
            "seed": self.seed,
        }

    def waiting(self) -> list[tuple[str, int]]:
        """The jobs that are not done.

        Raises:
            UserError: If a job's inputs are missing, or it was done with other settings.
        """
        return [
            job for job in self.jobs if not is_done(self.result(*job), self.settings(*job), overwrite=self.overwrite)
        ]


def describe_vector(request: DecomposeRequest, behavior: str, layer: int) -> str:
    """Behavior, layer, model and kind in words, for titles."""
    label = load_behavior(request.paths, behavior).label
    kind = " ".join(request.kind.command_words)
    return ", ".join([label, f"layer {layer}", request.choice.label, *([kind] if kind else [])])
