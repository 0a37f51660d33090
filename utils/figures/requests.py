"""What figures are asked for: built once, from the command line or by hand. Light: nothing heavy is imported here.

What is empty or None is left to what there is.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from utils.errors import UserError
from utils.model.checkpoints import ModelChoice
from utils.paths import DataPaths
from utils.settings import RESULT_TYPES, Knob, ResultType, StartPosition, VectorKind

InnerProduct = Literal["euclidean", "causal"]
"""Under which cosines are taken: the usual one, or the causal one (Park et al. 2024), in which directions that the
vocabulary tells apart are orthogonal."""


def product_suffix(product: InnerProduct) -> str:
    """In names of files."""
    return "" if product == "euclidean" else f"_inner_product={product}"


@dataclass(frozen=True)
class PlotRequest:
    """Which results of one model to plot.

    Raises:
        UserError: If the flags do not belong together.
    """

    paths: DataPaths
    choice: ModelChoice
    behaviors: tuple[str, ...]
    type: ResultType | None = None
    """Kind of results."""
    layers: tuple[int, ...] = ()
    multipliers: tuple[float, ...] = ()
    title: str = ""
    override_vector: int | None = None
    """Only the transfer of this layer's vector."""
    override_vector_model: str | None = None
    """Only the transfer of this model's vectors."""
    override_weights: tuple[str, str] | None = None
    """Only these fine-tuned weights (for, against the behavior), as files or as in result names."""
    steer_positions: StartPosition = "end_of_prompt"
    kind: VectorKind = VectorKind()
    """Of the vectors that steered."""
    knob: Knob = "multiplier"
    seed: int = 0
    """Of resampling."""

    def __post_init__(self) -> None:
        if self.override_vector is not None and self.override_vector < 0:
            raise UserError(f"--override_vector {self.override_vector} is negative; layers are counted from 0")
        if self.override_weights and self.is_transfer:
            raise UserError("--override_weights and --override_vector... are different comparisons; give one of them")

    @property
    def types(self) -> tuple[ResultType, ...]:
        return (self.type,) if self.type else RESULT_TYPES

    @property
    def is_transfer(self) -> bool:
        """Whether only the transfer of vectors is asked for."""
        return self.override_vector is not None or self.override_vector_model is not None


@dataclass(frozen=True)
class ActivationsRequest:
    """Which saved activations of one model to plot."""

    paths: DataPaths
    choice: ModelChoice
    behaviors: tuple[str, ...]
    layers: tuple[int, ...] = ()
    overwrite: bool = False
    seed: int = 0
    """Of the solver's start, and of the order in which points are drawn over each other."""


@dataclass(frozen=True)
class VectorsRequest:
    """Which steering vectors to compare."""

    paths: DataPaths
    choice: ModelChoice | None
    """None: every model that has vectors."""
    behaviors: tuple[str, ...]
    layers: tuple[int, ...] = ()
    overwrite: bool = False
    kind: VectorKind = VectorKind()
    inner_product: InnerProduct = "euclidean"


class FigureCounts(NamedTuple):
    """What was done, for the last line of a script."""

    n_written: int
    n_skipped: int
    """Figures that were there already."""
