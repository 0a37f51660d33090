"""Scaling the vectors of a layer to one norm, so that a multiplier means the same for every behavior.

The norm is the mean over all behaviors that have a vector of the layer, model and kind, whatever is to be
written. What is there and was made from the vectors of today is known by sha256, without loading anything.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.behaviors import list_behaviors
from utils.errors import UserError
from utils.files.provenance import read_folder_provenance, record_provenance
from utils.files.reading import load_vector, sha256_of
from utils.files.writing import tensor_bytes, write_bytes
from utils.paths import DataPaths, VectorFile
from utils.settings import Origin, Reading, VectorKind
from utils.vectors.files import layer_ranges

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NormalizeRequest:
    """Which normalised vectors to write."""

    paths: DataPaths
    behaviors: tuple[str, ...]
    layers: tuple[int, ...] | None
    """None for those that are there."""
    label: str | None
    """The model's; None for every model."""
    reading: Reading | None
    """None for every reading."""
    method: str | None
    """None for every method."""
    origin: Origin | None
    """None for every origin."""
    overwrite: bool
    command: str
    """The command line, for the provenance records."""

    def wants(self, file: VectorFile) -> bool:
        """Whether a vector is of a model and kind that was asked for."""
        return (
            self.label in (None, file.model_label)
            and self.reading in (None, file.kind.reading)
            and self.method in (None, file.kind.method)
            and self.origin in (None, file.kind.origin)
        )


@dataclass(frozen=True)
class VectorSet:
    """The vectors of one model and kind."""

    label: str
    kind: VectorKind
    layers_of: Mapping[str, frozenset[int]]
    """By behavior; all that have any."""

    def __str__(self) -> str:
        return f"{self.label}{self.kind.suffix}"

    def missing(self, behaviors: Sequence[str], layers: Sequence[int]) -> str:
        """What these behaviors lack, in words; empty where nothing is missing."""
        parts = []
        for behavior in behaviors:
            found = self.layers_of.get(behavior, frozenset())
            if not found or not layers:
                parts.append(behavior)
            elif lacking := sorted(set(layers) - found):
                parts.append(f"{behavior} (layers {layer_ranges(lacking)})")
        return ", ".join(parts)


def find_sets(request: NormalizeRequest) -> list[VectorSet]:
    """The models and kinds of which a behavior that was asked for has vectors, by the alphabet."""
    found: dict[tuple[str, VectorKind], dict[str, set[int]]] = {}
    for behavior in list_behaviors(request.paths):
        for file in request.paths.vector_files(behavior, normalized=False):
            if request.wants(file):
                layers_of = found.setdefault((file.model_label, file.kind), {})
                layers_of.setdefault(behavior, set()).add(file.layer)
    sets = [
        VectorSet(label, kind, {behavior: frozenset(layers) for behavior, layers in layers_of.items()})
        for (label, kind), layers_of in found.items()
        if layers_of.keys() & set(request.behaviors)
    ]
    return sorted(sets, key=str)


class Normalizer:
    """Writes one set's normalised vectors, layer by layer."""

    def __init__(self, request: NormalizeRequest, vectors: VectorSet) -> None:
        self.request, self.vectors = request, vectors
        folders = {behavior: request.paths.vectors_dir(behavior, normalized=True) for behavior in request.behaviors}
        self._runs = {behavior: read_folder_provenance(folder) for behavior, folder in folders.items()}

    def normalize(self, layer: int) -> Counter[str]:
        """Write a layer's; counts those that it "wrote", "skipped" and (kept, unequal) "differ".

        Raises:
            UserError: If a vector is broken, or they do not fit each other.
        """
        sources = {
            behavior: self._path(behavior, layer, normalized=False)
            for behavior, layers in self.vectors.layers_of.items()
            if layer in layers
        }
        made_from = _digest(sources)
        behaviors = self.request.behaviors
        if not self.request.overwrite:
            behaviors = tuple(each for each in behaviors if not self._is_current(each, layer, made_from))
        counts = Counter(skipped=len(self.request.behaviors) - len(behaviors))
        normalized = _load_normalized(sources, layer, self.vectors) if behaviors else {}
        for behavior in behaviors:
            path, vector = self._path(behavior, layer, normalized=True), normalized[behavior]
            if path.exists() and not self.request.overwrite:
                counts["skipped" if _is_same(load_vector(path), vector) else "differ"] += 1
                continue
            content = tensor_bytes(vector)
            run = {
                "command": self.request.command,
                "behaviors": list(sources),
                "scaled_to": "mean norm over the behaviors",
                "vectors_sha256": made_from,
                "sha256": hashlib.sha256(content).hexdigest(),
            }
            record_provenance(path.parent, [path.name], run)
            write_bytes(path, content)
            counts["wrote"] += 1
        return counts

    def _path(self, behavior: str, layer: int, *, normalized: bool) -> Path:
        vectors = self.vectors
        return self.request.paths.vector(behavior, layer, vectors.label, normalized=normalized, kind=vectors.kind)

    def _is_current(self, behavior: str, layer: int, made_from: str) -> bool:
        """Whether the file is there as it was written, and was made from today's vectors."""
        path = self._path(behavior, layer, normalized=True)
        run: dict[str, Any] = self._runs[behavior].get(path.name, {})
        return run.get("vectors_sha256") == made_from and path.exists() and run.get("sha256") == sha256_of(path)


def _digest(sources: Mapping[str, Path]) -> str:
    """Tells the vectors of a layer from others."""
    lines = sorted(f"{behavior} {sha256_of(path)}" for behavior, path in sources.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _load_normalized(sources: Mapping[str, Path], layer: int, of: VectorSet) -> "dict[str, Tensor]":
    from utils.vectors.estimators import normalize_to_mean_norm

    vectors = {behavior: load_vector(path) for behavior, path in sources.items()}
    widths = {behavior: len(vector) for behavior, vector in vectors.items()}
    if len(set(widths.values())) > 1:
        raise UserError(f"the layer-{layer} vectors of {of} have different widths: {widths}; make them again")
    return normalize_to_mean_norm(vectors)


def _is_same(kept: "Tensor", computed: "Tensor") -> bool:
    """Whether two vectors differ by no more than the rounding of the extraction, whose differences carry over."""
    from utils.vectors.extraction import SAME_VECTOR

    return kept.shape == computed.shape and float((kept - computed).norm()) <= SAME_VECTOR * float(computed.norm())
