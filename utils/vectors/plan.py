"""Which vectors are to be made: what was asked for, less what is there. Needs no model."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from utils.data.records import (
    AnyPair,
    load_contrast_pairs,
    load_prompt_pairs,
    load_text_pairs,
    text_pairs_path,
)
from utils.files.provenance import describe_differences, differences, read_folder_provenance
from utils.files.reading import sha256_of
from utils.model.checkpoints import ModelChoice
from utils.paths import DataPaths, vector_name
from utils.settings import Reading, Side, VectorKind

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExtractionRequest:
    """Which vectors to make, and how."""

    paths: DataPaths
    choice: ModelChoice
    behaviors: tuple[str, ...]
    layers: tuple[int, ...]
    command: str
    """The command line, for the provenance records."""
    kind: VectorKind = VectorKind()
    save_activations: bool = False
    overwrite: bool = False
    plainly: bool = False
    """One full sequence for each half of each pair."""
    batch_size: int | None = None
    """Pairs in one pass; None for as many as fit."""

    def outputs(self, behavior: str, layer: int) -> list[Path]:
        """The files of one layer."""
        vector = self.paths.vector(behavior, layer, self.choice.label, normalized=False, kind=self.kind)
        if not self.save_activations:
            return [vector]
        sides: tuple[Side, ...] = ("pos", "neg")
        label = self.choice.label
        return [vector, *(self.paths.activations(behavior, side, layer, label, self.kind) for side in sides)]

    def missing_layers(self, behavior: str, layers: Sequence[int]) -> list[int]:
        """The layers that lack a file."""
        return [layer for layer in layers if not all(path.exists() for path in self.outputs(behavior, layer))]

    def has_kept_sums(self) -> bool:
        """Whether an interrupted run has left sums, of these layers or others."""
        folders = (self.paths.vectors_dir(behavior, normalized=False) for behavior in self.behaviors)
        return any(any(folder.glob(".sums_*")) for folder in folders)


@dataclass(frozen=True)
class GenerateSet:
    """What vectors are made from."""

    path: Path
    pairs: Sequence[AnyPair]
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else it depends on, for the provenance record."""

    def record(self, kind: VectorKind) -> dict[str, Any]:
        """What the vectors' provenance says of it."""
        return {
            "dataset_sha256": sha256_of(self.path),
            "n_pairs": len(self.pairs),
            "read": kind.reading,
            "method": kind.method,
            **self.facts,
        }


@dataclass(frozen=True)
class BehaviorPlan:
    """What is to be made of one behavior."""

    behavior: str
    dataset: GenerateSet
    layers: tuple[int, ...]
    """Whose files are to be written; none where all are there."""

    @property
    def pairs(self) -> Sequence[AnyPair]:
        return self.dataset.pairs


_LOADERS: dict[Reading, Callable[[Path, str], Sequence[AnyPair]]] = {
    "letter": partial(load_contrast_pairs, for_text="--read answer reads such pairs"),
    "answer": load_text_pairs,
    "last": load_text_pairs,
    "prompt": load_prompt_pairs,
    "prompt_mean": load_prompt_pairs,
}


def pairs_path(paths: DataPaths, behavior: str, reading: Reading) -> Path:
    """The generate set that a reading takes."""
    match reading:
        case "letter":
            return paths.generate_dataset(behavior)
        case "prompt" | "prompt_mean":
            return paths.generate_prompts(behavior)
        case _:
            return text_pairs_path(paths, behavior)


def load_pairs_for(paths: DataPaths, behavior: str, reading: Reading) -> GenerateSet:
    """The generate set that a reading takes.

    Raises:
        UserError: If it is missing or broken, or of another form.
    """
    dataset = pairs_path(paths, behavior, reading)
    hint = f"run: {paths.command('process_raw_datasets', '--behaviors', behavior)}"
    return GenerateSet(dataset, _LOADERS[reading](dataset, hint))


def plan_extraction(
    request: ExtractionRequest, load: Callable[[DataPaths, str, Reading], GenerateSet] = load_pairs_for
) -> list[BehaviorPlan]:
    """Read the contrast pairs and see what is there.

    Args:
        request: What to make.
        load: From root, behavior and reading to what vectors are made from.

    Raises:
        UserError: If a behavior's pairs are missing or broken.
    """
    plans = []
    for behavior in request.behaviors:
        dataset = load(request.paths, behavior, request.kind.reading)
        layers = request.layers if request.overwrite else request.missing_layers(behavior, request.layers)
        plans.append(BehaviorPlan(behavior, dataset, tuple(layers)))
    for plan in plans:
        _warn_of_another_dataset(request, plan)
    return plans


def _warn_of_another_dataset(request: ExtractionRequest, plan: BehaviorPlan) -> None:
    runs = read_folder_provenance(request.paths.vectors_dir(plan.behavior, normalized=False))
    now = plan.dataset.record(request.kind)
    kept = [layer for layer in request.layers if layer not in plan.layers]
    made_by = [runs.get(vector_name(layer, request.choice.label, request.kind), {}) for layer in kept]
    if stale := [differing for then in made_by if (differing := differences(now, then))]:
        log.warning(
            "%s: %d vectors were made from another %s: %s; --overwrite makes them again",
            plan.behavior,
            len(stale),
            plan.dataset.path,
            describe_differences(stale),
        )
