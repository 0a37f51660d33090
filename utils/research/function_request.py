"""What function_vectors.py is asked for; needs no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files.reading import sha256_of
from utils.model.checkpoints import ModelChoice
from utils.paths import DataPaths


@dataclass(frozen=True)
class FunctionRequest:
    """Which tasks, and how much of each is run."""

    paths: DataPaths
    choice: ModelChoice
    tasks: tuple[Path, ...]
    behaviors: tuple[str, ...]
    """Run as tasks too: lettered questions, answered with the matching letter."""
    layers: tuple[int, ...]
    """At which vectors are added."""
    layer: int
    """Of the numbers that stand for all: fixed beforehand."""
    n_shots: int
    behavior_shots: int
    n_prompts: int
    """That means are taken over, with right examples and with shuffled ones."""
    n_trials: int
    """Shuffled prompts in which every head is tried."""
    n_heads: int
    n_test: int
    multiplier: float
    seed: int
    command: str

    def stem(self, name: str) -> Path:
        return self.paths.research("function_vectors", f"{name}_{self.choice.label}")

    def result_path(self, name: str) -> Path:
        return self.stem(name).with_name(self.stem(name).name + ".json")

    def vector_path(self, name: str) -> Path:
        return self.stem(name).with_name(self.stem(name).name + ".pt")

    def data_of(self, name: str) -> tuple[Path, ...]:
        """The files that a task is read from."""
        if name in self.behaviors:
            return self.paths.generate_dataset(name), self.paths.test_dataset(name, "ab")
        return tuple(path for path in self.tasks if path.stem == name)

    @property
    def names(self) -> tuple[str, ...]:
        return (*(path.stem for path in self.tasks), *self.behaviors)

    def check(self) -> None:
        """
        Raises:
            UserError: If there is no task, two have one name, which would be one file, or data are missing.
        """
        names = self.names
        if not names:
            raise UserError("nothing to do: name --tasks or --behaviors")
        if repeated := [name for place, name in enumerate(names) if name in names[:place]]:
            raise UserError(f"two tasks are called {repeated[0]!r}; rename one of their files")
        for name in self.behaviors:
            for path in self.data_of(name):
                if not path.is_file():
                    command = self.paths.command("process_raw_datasets", "--behaviors", name)
                    raise UserError(
                        f"{path} not found; --behaviors takes those with lettered questions; run: {command}"
                    )

    def describe(self, name: str) -> dict[str, Any]:
        return {
            "model": self.choice.label,
            "data_sha256": [sha256_of(path) for path in self.data_of(name)],
            "layers": list(self.layers),
            "layer": self.layer,
            "n_shots": self.behavior_shots if name in self.behaviors else self.n_shots,
            "n_prompts": self.n_prompts,
            "n_trials": self.n_trials,
            "n_heads": self.n_heads,
            "n_test": self.n_test,
            "multiplier": self.multiplier,
            "seed": self.seed,
        }
