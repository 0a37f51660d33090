"""Which steering vectors and activations there are, and a model's vectors as one table."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from utils.errors import UserError
from utils.model.checkpoints import EMBEDDED_SIZE, MODEL_SIZES, ModelChoice, choose_model
from utils.paths import DataPaths
from utils.settings import VectorKind

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

_ACTIVATIONS_NAME = re.compile(r"activations_(pos|neg)_(\d+)_(.+)\.pt")


def find_vectors(
    paths: DataPaths, behavior: str, *, normalized: bool = False, kind: VectorKind = VectorKind()
) -> dict[str, set[int]]:
    """The layers for which a behavior has vectors of one kind, by model label."""
    found: dict[str, set[int]] = {}
    for file in paths.vector_files(behavior, normalized=normalized):
        if file.kind == kind:
            found.setdefault(file.model_label, set()).add(file.layer)
    return found


def find_activations(paths: DataPaths, behavior: str, label: str) -> set[int]:
    """The layers for which a behavior has a model's activations of both halves of the pairs."""
    found: dict[str, set[int]] = {"pos": set(), "neg": set()}
    folder = paths.activations(behavior, "pos", 0, label).parent
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _ACTIVATIONS_NAME.fullmatch(path.name)
        if match and match.group(3) == label:
            found[match.group(1)].add(int(match.group(2)))
    return found["pos"] & found["neg"]


def activation_labels(paths: DataPaths, behavior: str) -> set[str]:
    """The labels of all models of which a behavior has activations."""
    folder = paths.activations(behavior, "pos", 0, "").parent
    matches = [_ACTIVATIONS_NAME.fullmatch(path.name) for path in folder.iterdir()] if folder.is_dir() else []
    return {match.group(3) for match in matches if match}


def choice_of_label(label: str) -> ModelChoice:
    """The model whose files bear a label: a known checkpoint, or else one to be named with --model."""
    for size in MODEL_SIZES:
        for use_base_model in (False,) if size == EMBEDDED_SIZE else (False, True):
            choice = choose_model(size, None, use_base_model)
            if choice.label == label:
                return choice
    return ModelChoice(label, label, None, False)


def generate_command(
    paths: DataPaths,
    behaviors: Sequence[str],
    layers: Iterable[int],
    choice: ModelChoice | None,
    *,
    activations: bool = False,
    kind: VectorKind = VectorKind(),
) -> str:
    """The command that makes vectors (and activations); what is empty or None is left to its defaults."""
    words: list[object] = ["--save_activations"] if activations else []
    if behaviors:
        words += ["--behaviors", *behaviors]
    if numbers := list(layers):
        words += ["--layers", *numbers]
    return paths.command("generate_vectors", *words, *kind.command_words, *(choice.command_words if choice else ()))


def normalize_command(
    paths: DataPaths, behaviors: Sequence[str], choice: ModelChoice | None, *, kind: VectorKind = VectorKind()
) -> str:
    """The command that normalises vectors; what is empty or None is left to its defaults."""
    words = ["--behaviors", *behaviors] if behaviors else []
    return paths.command("normalize_vectors", *words, *kind.command_words, *(choice.name_words if choice else ()))


def parts_command(
    paths: DataPaths, behaviors: Sequence[str], layers: Iterable[int], choice: ModelChoice, kind: VectorKind
) -> str:
    """The command that takes vectors apart and writes the parts."""
    words: list[object] = ["--behaviors", *behaviors]
    if numbers := list(layers):
        words += ["--layers", *numbers]
    whole = replace(kind, part=None).command_words
    return paths.command("research/decompose_vectors", *words, *whole, *choice.command_words)


def layer_ranges(layers: Iterable[int]) -> str:
    """Layers in short, e.g. `0-3,7`."""
    runs: list[list[int]] = []
    for layer in sorted(set(layers)):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1][1:] = [layer]
        else:
            runs.append([layer])
    return ",".join("-".join(map(str, run)) for run in runs)


@dataclass(frozen=True, eq=False)
class VectorTable:
    """One model's steering vectors."""

    label: str
    """The model's, with what tells this kind of vectors from others."""
    behaviors: tuple[str, ...]
    layers: tuple[int, ...]
    values: "NDArray[float64]"
    """[n_behaviors, n_layers, d_model]; NaN where there is no vector."""
    note: str = ""
    """Behind titles, where cosines are not the usual ones."""

    @property
    def d_model(self) -> int:
        return self.values.shape[2]


def load_vector_table(
    paths: DataPaths,
    label: str,
    layers_of: Mapping[str, Iterable[int]],
    *,
    normalized: bool,
    kind: VectorKind = VectorKind(),
) -> VectorTable:
    """Load a model's vectors; behaviors and layers without any are left out.

    Args:
        paths: Where they are.
        label: The model's.
        layers_of: The layers to load, by behavior; the files must be there.
        normalized: Load those of normalized_vectors/ instead of vectors/.
        kind: Of the vectors.

    Raises:
        UserError: If there are none, or they differ in width.
    """
    import numpy as np

    from utils.files.reading import load_vector

    wanted = {behavior: sorted(layers) for behavior, layers in layers_of.items() if layers}
    behaviors = tuple(wanted)
    layers = tuple(sorted(set().union(*wanted.values())))
    if not layers:
        raise UserError(f"{label}: no vectors of these behaviors and layers")
    values: NDArray[float64] | None = None
    for row, behavior in enumerate(behaviors):
        for layer in wanted[behavior]:
            path = paths.vector(behavior, layer, label, normalized=normalized, kind=kind)
            vector = load_vector(path).double().numpy()
            if values is None:
                values = np.full((len(behaviors), len(layers), len(vector)), np.nan)
            if len(vector) != values.shape[2]:
                raise UserError(
                    f"{path} has width {len(vector)}, but other vectors of {label} have {values.shape[2]}; "
                    "make them again with one model"
                )
            values[row, layers.index(layer)] = vector
    assert values is not None
    return VectorTable(f"{label}{kind.suffix}", behaviors, layers, values)
