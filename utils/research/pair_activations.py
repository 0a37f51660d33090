"""Saved activations of contrast pairs beside the vector that was made from them, checked against each other."""

from dataclasses import dataclass

from torch import Tensor

from utils.errors import UserError
from utils.files.reading import load_vector
from utils.research.decompose_request import DecomposeRequest
from utils.research.svd_components import FloatArray
from utils.vectors.differences import load_halves


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
    vector = load_vector(request.vector(behavior, layer), d_model, hint)
    positive, negative = load_halves(request.paths, request.choice, behavior, layer, request.kind)
    return PairActivations(positive, negative, vector)


def check_inputs(request: DecomposeRequest, d_model: int) -> None:
    """Refuse what cannot be taken apart, of all jobs, before anything is computed or written.

    Raises:
        UserError: If the inputs of a job do not belong together, or a rank is above its number of pairs.
    """
    for behavior, layer in request.jobs:
        n_pairs = len(load_pair_activations(request, behavior, layer, d_model).positive)
        if beyond := [rank for rank in request.ranks or () if rank > min(n_pairs, d_model)]:
            raise UserError(f"--ranks {beyond[0]}: {n_pairs} pairs have at most {min(n_pairs, d_model)} components")
