"""The vectors that a chat can steer with: which there are for a model, which are the default, and their tensors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from utils.behaviors import list_behaviors, load_behavior
from utils.errors import UserError
from utils.evaluation.chosen import load_choice
from utils.files.reading import load_vector
from utils.model.checkpoints import ModelChoice, check_layers
from utils.model.steering import Operator, Steering, add
from utils.paths import DataPaths, parse_vector_name
from utils.settings import VectorKind
from utils.vectors.files import generate_command, layer_ranges, normalize_command
from utils.vectors.operator_parts import OperatorMaker

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

PREFERRED_KINDS = (VectorKind("answer"), VectorKind())
"""Of several that a behavior has: those read from whole answers steer small models, those from letters do not."""


@dataclass(frozen=True)
class Chosen:
    """What `choose_steering.py` found for a behavior's vectors."""

    layer: int
    multiplier: float
    """Within the budget of side effects: from minus to plus this much."""
    strengths: Mapping[int, float]
    """The strength that spends the budget, by layer."""


@dataclass(frozen=True)
class ShelfEntry:
    """A behavior's normalised vectors of one kind."""

    behavior: str
    label: str
    meaning: str
    layers: tuple[int, ...]
    kind: VectorKind
    chosen: Chosen | None

    def default_layer(self, n_layers: int) -> int:
        """The chosen one, or else that nearest to the middle of the model."""
        if self.chosen:
            return self.chosen.layer
        return min(self.layers, key=lambda layer: abs(layer - n_layers // 2))

    def default_multiplier(self, layer: int) -> float:
        return round(self.chosen.multiplier, 2) if self.chosen and self.chosen.layer == layer else 1.0


@dataclass(frozen=True)
class Ask:
    """A steering as users ask for it."""

    source: str
    """A behavior's id, or a path that ends in `.pt`."""
    layer: int
    multiplier: float
    operator: str = "add"

    @property
    def is_file(self) -> bool:
        return self.source.endswith(".pt")


class Shelf:
    """The vectors of one model under one root."""

    def __init__(
        self,
        paths: DataPaths,
        choice: ModelChoice,
        n_layers: int,
        d_model: int,
        fits: Callable[[VectorKind], bool] = lambda _: True,
    ) -> None:
        """
        Args:
            paths: Where vectors are.
            choice: The model.
            n_layers: Its layers.
            d_model: Its width.
            fits: Which kinds of vectors are meant.
        """
        self.paths, self.choice, self.n_layers, self.d_model, self._fits = paths, choice, n_layers, d_model, fits
        self.load = cache(self._load)
        self.model: LlamaWrapper | None = None
        """For operators that measure it; set when it is loaded."""
        self._maker = cache(self._make_maker)
        self._operators: dict[tuple[str, int, int], tuple[Tensor, Operator]] = {}

    def entries(self) -> list[ShelfEntry]:
        """Every behavior that has vectors of this model."""
        found = (self._entry(behavior) for behavior in list_behaviors(self.paths))
        return [entry for entry in found if entry]

    def check_not_empty(self) -> None:
        """
        Raises:
            UserError: If there is no vector at all, which is a wrong --root more often than meant.
        """
        if not self.entries():
            make = generate_command(self.paths, [], [], self.choice)
            then = normalize_command(self.paths, [], self.choice)
            where = self.paths.root / "normalized_vectors"
            raise UserError(f"{where} has no vectors of {self.choice.label}; run: {make}, then: {then}")

    def entry(self, behavior: str) -> ShelfEntry:
        """
        Raises:
            UserError: If there is no such behavior, or it has no vectors of this model.
        """
        load_behavior(self.paths, behavior)
        if entry := self._entry(behavior):
            return entry
        make = generate_command(self.paths, [behavior], [], self.choice)
        then = normalize_command(self.paths, [], self.choice)
        raise UserError(f"{behavior} has no vectors of {self.choice.label}; run: {make}, then: {then}")

    def ask(self, source: str, layer: int | None = None, multiplier: float | None = None, operator: str = "add") -> Ask:
        """A steering with what is left out at its default.

        Raises:
            UserError: If there are no such vectors, or the layer is not one of theirs.
        """
        if source.endswith(".pt"):
            named = parse_vector_name(Path(source).name)
            if layer is None and named is None:
                raise UserError(f"{source} does not say its layer; name one with --layer or /layer")
            at = layer if layer is not None else named.layer  # type: ignore[union-attr]
            check_layers([at], self.n_layers, self.choice.label, "layer")
            return Ask(source, at, 1.0 if multiplier is None else multiplier, operator)
        entry = self.entry(source)
        at = entry.default_layer(self.n_layers) if layer is None else layer
        check_layers([at], self.n_layers, self.choice.label, "layer")
        if at not in entry.layers:
            raise UserError(f"{source} has vectors of layers {layer_ranges(entry.layers)}, not of layer {at}")
        return Ask(source, at, entry.default_multiplier(at) if multiplier is None else multiplier, operator)

    def steering(self, ask: Ask) -> Steering:
        """
        Raises:
            UserError: If the vector cannot be read.
        """
        steering = Steering(ask.layer, ask.multiplier, self.load(ask.source, ask.layer))
        return replace(steering, operator=self.operator(ask.operator, steering, None if ask.is_file else ask.source))

    def operator(self, name: str, steering: Steering, behavior: str | None) -> Operator:
        """An operator by its name, for a steering with a behavior's vector or, where it is None, another.

        Raises:
            UserError: If there is no such operator, or what it needs cannot be had.
        """
        if name == "add":
            return add
        key = (name, steering.layer, id(steering.vector))  # kept with its vector: an id is one while that is there
        if key not in self._operators:
            made = self._maker().make(
                name, steering.layer, steering.vector, of_layers=lambda: self._of_layers(behavior)
            )
            self._operators[key] = (steering.vector, made)
        return self._operators[key][1]

    def _of_layers(self, behavior: str | None) -> list[Tensor]:
        return [] if behavior is None else [self.load(behavior, layer) for layer in self.entry(behavior).layers]

    def _make_maker(self) -> OperatorMaker:
        assert self.model is not None, "operators are made when the model is loaded"
        return OperatorMaker(self.model, self.paths)

    def path(self, ask: Ask) -> Path:
        """The vector's file."""
        if ask.is_file:
            return Path(ask.source)
        kind = self.entry(ask.source).kind
        return self.paths.vector(ask.source, ask.layer, self.choice.label, normalized=True, kind=kind)

    def _load(self, source: str, layer: int) -> Tensor:
        return load_vector(self.path(Ask(source, layer, 1.0)), self.d_model)

    def _entry(self, behavior: str) -> ShelfEntry | None:
        layers: dict[VectorKind, set[int]] = {}
        for file in self.paths.vector_files(behavior, normalized=True):
            if file.model_label == self.choice.label and self._fits(file.kind) and file.layer < self.n_layers:
                layers.setdefault(file.kind, set()).add(file.layer)
        if not layers:
            return None
        chosen = {kind: self._chosen(behavior, kind, layers[kind]) for kind in layers}
        kind = min(layers, key=lambda one: (chosen[one] is None, _place(one), one.suffix))
        known = load_behavior(self.paths, behavior)
        return ShelfEntry(behavior, known.label, known.meaning, tuple(sorted(layers[kind])), kind, chosen[kind])

    def _chosen(self, behavior: str, kind: VectorKind, layers: set[int]) -> Chosen | None:
        path = self.paths.chosen_steering(behavior, self.choice.label, kind)
        if not path.exists():
            return None
        choice, _ = load_choice(path)
        strengths: dict[int, float] = {}
        for one in choice.by_layer:
            strengths[one.layer] = max(one.strength, strengths.get(one.layer, 0.0))
        return Chosen(choice.chosen.layer, choice.multiplier, strengths) if choice.chosen.layer in layers else None


def _place(kind: VectorKind) -> int:
    return PREFERRED_KINDS.index(kind) if kind in PREFERRED_KINDS else len(PREFERRED_KINDS)
