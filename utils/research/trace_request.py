"""Which vectors are to be traced through the layers above them; needs no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from utils.behaviors import list_behaviors
from utils.errors import UserError
from utils.evaluation.chosen import load_chosen
from utils.files.reading import sha256_of
from utils.model.checkpoints import ModelChoice
from utils.paths import DataPaths, neutral_prompts_path
from utils.saes.formats import WEIGHTS_NAME
from utils.saes.requests import is_done
from utils.settings import VectorKind
from utils.vectors.files import find_vectors, generate_command, layer_ranges, normalize_command


class Place(NamedTuple):
    """One behavior's vector at one layer."""

    behavior: str
    layer: int


@dataclass(frozen=True)
class TraceRequest:
    """Which vectors to trace, and how."""

    paths: DataPaths
    choice: ModelChoice
    behaviors: tuple[str, ...]
    layers: tuple[int, ...]
    """Where they are added; empty for each behavior's validated one, else the middle one."""
    n_layers: int
    """Of the model."""
    kind: VectorKind
    multiplier: float
    """More than 0; the opposite is traced beside it."""
    n_texts: int
    n_random: int
    saes: tuple[Path, ...]
    seed: int
    overwrite: bool
    command: str

    def places(self) -> list[Place]:
        """What is asked for, behavior by behavior.

        Raises:
            UserError: If vectors are missing.
        """
        found = [Place(behavior, layer) for behavior in self.behaviors for layer in self._layers_of(behavior)]
        lacking = [place for place in found if not self.vector(*place).exists()]
        if lacking:
            behaviors, layers = (list(dict.fromkeys(column)) for column in zip(*lacking, strict=True))
            make = generate_command(self.paths, behaviors, layers, self.choice, kind=self.kind)
            then = normalize_command(self.paths, behaviors, self.choice, kind=self.kind)
            raise UserError(f"{self.vector(*lacking[0])} not found; run: {make}, then: {then}")
        return found

    def _layers_of(self, behavior: str) -> tuple[int, ...]:
        if self.layers:
            return self.layers
        if self.paths.chosen_steering(behavior, self.choice.label, self.kind).exists():
            return (load_chosen(self.paths, behavior, self.choice.label, self.kind).layer,)
        return (self.n_layers // 2,)

    def vector(self, behavior: str, layer: int) -> Path:
        """The normalised vector, as steering takes it."""
        return self.paths.vector(behavior, layer, self.choice.label, normalized=True, kind=self.kind)

    def compared(self) -> dict[str, set[int]]:
        """All behaviors that have vectors of this model and kind, and at which layers."""
        found = {
            behavior: find_vectors(self.paths, behavior, normalized=True, kind=self.kind).get(self.choice.label, set())
            for behavior in list_behaviors(self.paths)
        }
        return {behavior: layers for behavior, layers in found.items() if layers}

    def result_path(self, place: Place) -> Path:
        name = f"trace_layer={place.layer}_{self.choice.label}{self.kind.suffix}.json"
        return self.paths.research(place.behavior, name)

    def describe(self, place: Place) -> dict[str, Any]:
        """What the numbers depend on."""
        compared = {
            behavior: layer_ranges(above)
            for behavior, layers in self.compared().items()
            if (above := [layer for layer in layers if layer >= place.layer])
        }
        return {
            "model": self.choice.label,
            "behavior": place.behavior,
            "layer": place.layer,
            "read": self.kind.reading,
            "method": self.kind.method,
            "from": self.kind.origin,
            "vector_sha256": sha256_of(self.vector(*place)),
            "compared": compared,
            "multiplier": self.multiplier,
            "n_texts": self.n_texts,
            "prompts_sha256": sha256_of(neutral_prompts_path(self.paths)),
            "n_random": self.n_random,
            "saes": {folder.resolve().name: sha256_of(folder / WEIGHTS_NAME) for folder in self.saes},
            "seed": self.seed,
        }

    def is_done(self, place: Place) -> bool:
        """
        Raises:
            UserError: If it was traced with other settings.
        """
        return is_done(self.result_path(place), self.describe(place), overwrite=self.overwrite)
