"""What a method makes its vectors from: a behavior's contrast pairs, read once, and those of them that may be used."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from utils.behaviors import Behavior, load_behavior
from utils.data.records import AnyPair, TextPair, load_contrast_pairs, load_text_pairs, text_pairs_path
from utils.errors import UserError
from utils.evaluation.choice import validation_items
from utils.model import processes
from utils.model.pairs import encode_pair
from utils.model.reading import read_pairs
from utils.research.benchmark_methods import NotRun
from utils.settings import Reading, Side
from utils.vectors.estimators import ESTIMATORS, Estimator

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper
    from utils.research.benchmark_request import BenchmarkRequest

Tables = tuple[Tensor, Tensor]
"""Activations of the matching and of the other halves, each [n_pairs, n_layers, d_model] float32."""


@dataclass
class PairStore:
    """A behavior's generate set with the activations that were read of it so far."""

    request: "BenchmarkRequest"
    model: "LlamaWrapper"
    behavior: str
    _read: dict[tuple[Reading, Side | None], Tables] = field(default_factory=dict)

    def __post_init__(self) -> None:
        paths = self.request.paths
        self.known: Behavior = load_behavior(paths, self.behavior)
        self.texts: list[TextPair] = load_text_pairs(text_pairs_path(paths, self.behavior))
        self.validation = validation_items(len(self.texts), self.request.seed, self.behavior)

    @property
    def training(self) -> list[int]:
        """The pairs that vectors are made from while layer and strength are chosen."""
        chosen = set(self.validation)
        return [i for i in range(len(self.texts)) if i not in chosen]

    def tables(self, reading: Reading, side: Side | None = None) -> Tables:
        """Activations of all pairs; `side`: under the system prompt for or against the behavior.

        Raises:
            NotRun: If the set has no such form.
        """
        if (reading, side) not in self._read:
            self._read[reading, side] = self._tables(self._pairs(reading), reading, side)
        return self._read[reading, side]

    def _pairs(self, reading: Reading) -> Sequence[AnyPair]:
        if reading != "letter":
            return self.texts
        try:
            return load_contrast_pairs(self.request.paths.generate_dataset(self.behavior))
        except UserError as err:
            raise NotRun("its pairs have no letters", "write an A/B set for it") from err

    def _tables(self, pairs: Sequence[AnyPair], reading: Reading, side: Side | None) -> Tables:
        prompt = self.known.system_prompt(side)
        tokens = [encode_pair(self.model.chat_format, pair, reading, prompt) for pair in pairs]
        layers = list(self.request.layers)
        halves = torch.empty(2, len(pairs), len(layers), self.model.d_model)
        mine = list(read_pairs(self.model.runtime, tokens, layers, self.request.batch_size, ()))
        for batches in processes.gather(mine):
            for indices, positive, negative in batches:
                halves[0, indices], halves[1, indices] = positive, negative
        return halves[0], halves[1]


@dataclass(frozen=True)
class Material:
    """What a method is handed: some pairs of a behavior, and the model."""

    store: PairStore
    indices: Sequence[int]
    """Of the pairs that may be used."""
    side: Side | None = None
    """The system prompt under which activations are read."""

    @property
    def request(self) -> "BenchmarkRequest":
        return self.store.request

    @property
    def model(self) -> "LlamaWrapper":
        return self.store.model

    @property
    def behavior(self) -> str:
        return self.store.behavior

    @property
    def known(self) -> Behavior:
        return self.store.known

    @property
    def layers(self) -> tuple[int, ...]:
        """That vectors are wanted for."""
        return self.request.layers

    @property
    def d_model(self) -> int:
        return self.model.d_model

    @property
    def n_pairs(self) -> int:
        return len(self.indices)

    @property
    def texts(self) -> list[TextPair]:
        return [self.store.texts[i] for i in self.indices]

    def tables(self, reading: Reading, layer: int) -> tuple[Tensor, Tensor]:
        """Activations at a layer, matching and other, each [n_pairs, d_model]."""
        positive, negative = self.store.tables(reading, self.side)
        row, indices = self.layers.index(layer), list(self.indices)
        return positive[indices, row], negative[indices, row]

    def by_layer(self, reading: Reading, estimate: Callable[[Tensor, Tensor], Tensor]) -> dict[int, Tensor]:
        """A vector of every layer by an estimator."""
        return {layer: estimate(*self.tables(reading, layer)) for layer in self.layers}

    def estimated(self, reading: Reading, name: str) -> dict[int, Tensor]:
        """By one of the suite's estimators."""
        estimate: Estimator = ESTIMATORS[name]
        return self.by_layer(reading, estimate)
