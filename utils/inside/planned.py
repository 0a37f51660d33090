"""Reports that a run plans before it loads a model, and the vectors that they are about."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from utils.files.reading import load_vector
from utils.files.tables import Table, with_suffix
from utils.paths import DataPaths
from utils.settings import VectorKind

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

LayerVectors = Mapping[int, Tensor]
"""One behavior's vectors, by layer."""


@dataclass(frozen=True, eq=False)
class PlannedReading:
    """Files whose text says what they were made from; they are there when it says the same again."""

    stem: Path
    suffixes: tuple[str, ...]
    notes: tuple[str, ...]
    """What they depend on, in one line each: the head of the text file."""
    make: "Callable[[LlamaWrapper], list[Path]]"
    """Write the files, the text last."""
    beside: tuple[Path, ...] = ()
    """Further files that belong to it, written before its text."""

    def is_there(self) -> bool:
        files = [*self.beside, *(with_suffix(self.stem, suffix) for suffix in (*self.suffixes, ".txt"))]
        if not all(path.exists() for path in files):
            return False
        head = Table((), (), self.notes).to_text().rstrip("\n") + "\n"
        return files[-1].read_bytes().startswith(head.encode())


def load_layer_vectors(
    paths: DataPaths,
    label: str,
    behavior: str,
    layers: Iterable[int],
    *,
    normalized: bool,
    kind: VectorKind = VectorKind(),
) -> LayerVectors:
    return {
        layer: load_vector(paths.vector(behavior, layer, label, normalized=normalized, kind=kind)) for layer in layers
    }


def fingerprint(vectors: Iterable[LayerVectors]) -> str:
    digest = hashlib.sha256()
    for of_behavior in vectors:
        for layer, vector in sorted(of_behavior.items()):
            digest.update(f"{layer}:".encode() + vector.numpy().tobytes())
    return digest.hexdigest()[:16]
