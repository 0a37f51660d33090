"""The saved activations that a vector was made from, pair by pair, and whether they are that."""

from typing import TYPE_CHECKING

from utils.errors import UserError
from utils.files.provenance import read_provenance
from utils.files.reading import load_activations, load_vector
from utils.model.checkpoints import ModelChoice
from utils.paths import DataPaths
from utils.settings import VectorKind
from utils.vectors.estimators import MEAN
from utils.vectors.files import generate_command

if TYPE_CHECKING:
    from torch import Tensor

MIN_PAIRS = 8
"""Below that nothing can be said of how a vector depends on its pairs."""


def load_halves(
    paths: DataPaths, choice: ModelChoice, behavior: str, layer: int, kind: VectorKind
) -> "tuple[Tensor, Tensor]":
    """A layer's activations of both halves of the pairs, each [n_pairs, d_model] float32.

    Raises:
        UserError: If they were not saved, are not those of the vector that is there, or are fewer than MIN_PAIRS.
    """
    from utils.vectors.extraction import SAME_VECTOR

    make = generate_command(paths, [behavior], [layer], choice, activations=True, kind=kind)
    hint = f"run: {make}"
    again = f"make both again: {make} --overwrite"
    files = [paths.activations(behavior, side, layer, choice.label, kind) for side in ("pos", "neg")]
    positive, negative = (load_activations(path, hint) for path in files)
    if positive.shape != negative.shape:
        raise UserError(f"{files[0]} is {list(positive.shape)}, but {files[1].name} {list(negative.shape)}; {again}")
    vector_path = paths.vector(behavior, layer, choice.label, normalized=False, kind=kind)
    vector = load_vector(vector_path, hint=hint)
    if vector.shape[0] != positive.shape[1]:
        raise UserError(
            f"{files[0]} has width {positive.shape[1]}, but the vector {vector_path.name} has {vector.shape[0]}; "
            f"{again}"
        )
    made_from = (read_provenance(vector_path) or {}).get("n_pairs", len(positive))
    if made_from != len(positive):
        raise UserError(
            f"{files[0]} has {len(positive)} pairs, but {vector_path.name} was made of {made_from}; {again}"
        )
    if len(positive) < MIN_PAIRS:
        raise UserError(
            f"{behavior}: {len(positive)} pairs are too few to say what its vector owes to them; "
            f"it takes at least {MIN_PAIRS}"
        )
    if kind.method == MEAN:
        mean = (positive.double() - negative.double()).mean(dim=0)
        if float((mean - vector.double()).norm()) > SAME_VECTOR * float(vector.double().norm()):
            raise UserError(
                f"{files[0]} and {files[1].name} do not give {vector_path}: it is not the mean difference of the "
                f"activations beside it; {again}"
            )
    return positive, negative
