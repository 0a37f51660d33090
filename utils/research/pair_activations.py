"""Saved activations of contrast pairs beside the vector that was made from them, checked against each other."""

from dataclasses import dataclass

from torch import Tensor

from utils.errors import UserError
from utils.files.provenance import read_provenance
from utils.files.reading import load_activations, load_vector
from utils.research.decompose_request import DecomposeRequest
from utils.research.svd_components import FEWEST_PAIRS, FloatArray
from utils.vectors.extraction import SAME_VECTOR


@dataclass(frozen=True, eq=False)
class PairActivations:
    """Of one behavior and layer; row i of both tables is pair i."""

    positive: Tensor
    """[n_pairs, d_model] float32"""
    negative: Tensor
    vector: Tensor
    """Their mean difference, [d_model] float32, as it stands in the file."""

    @property
    def differences(self) -> FloatArray:
        """[n_pairs, d_model]"""
        return (self.positive.double() - self.negative.double()).numpy()


def load_pair_activations(request: DecomposeRequest, behavior: str, layer: int, d_model: int) -> PairActivations:
    """
    Raises:
        UserError: If a file is missing or broken, or the three do not belong together.
    """
    hint = f"run: {request.make_command(behavior, layer)}"
    path = request.vector(behavior, layer)
    vector = load_vector(path, d_model, hint)
    paths = request.activations(behavior, layer)
    positive, negative = (load_activations(one, hint) for one in paths)
    if positive.shape != negative.shape:
        raise UserError(f"{paths[0]} is {list(positive.shape)}, but {paths[1].name} {list(negative.shape)}; {hint}")
    n_pairs, width = positive.shape
    if width != d_model:
        raise UserError(f"{paths[0]} has width {width}, but the vector {path.name} has {d_model}; {hint} --overwrite")
    n_of_vector = (read_provenance(path) or {}).get("n_pairs", n_pairs)
    if n_of_vector != n_pairs:
        raise UserError(
            f"{paths[0]} has {n_pairs} pairs, but {path.name} was made of {n_of_vector}; {hint} --overwrite"
        )
    if n_pairs < FEWEST_PAIRS:
        raise UserError(f"{paths[0]}: {n_pairs} pairs are too few to take their differences apart (at least 8)")
    loaded = PairActivations(positive, negative, vector)
    away = float((vector.double() - (positive.double() - negative.double()).mean(dim=0)).norm())
    if not away <= SAME_VECTOR * float(vector.double().norm()):
        raise UserError(f"{path} is not the mean difference of the activations beside it; {hint} --overwrite")
    return loaded


def check_inputs(request: DecomposeRequest, d_model: int) -> None:
    """Refuse what cannot be taken apart, of all jobs, before anything is computed or written.

    Raises:
        UserError: If the inputs of a job do not belong together, or a rank is above its number of pairs.
    """
    for behavior, layer in request.jobs:
        n_pairs = len(load_pair_activations(request, behavior, layer, d_model).positive)
        if beyond := [rank for rank in request.ranks or () if rank > min(n_pairs, d_model)]:
            raise UserError(f"--ranks {beyond[0]}: {n_pairs} pairs have at most {min(n_pairs, d_model)} components")
