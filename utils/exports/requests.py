"""What to export or import. Light: nothing heavy is imported here."""

from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError
from utils.exports.numbering import NUMBERINGS
from utils.model.checkpoints import ModelChoice
from utils.paths import DataPaths
from utils.settings import VectorKind

FORMATS = tuple(NUMBERINGS)
ONE_LAYER_A_FILE = ("gguf", "lm_eval", "neuronpedia")
"""llama.cpp adds all vectors of a file; of several layers lm-evaluation-harness adds the last one's everywhere; an
upload to Neuronpedia is one vector."""
EXTENSIONS = {
    "gguf": ".gguf",
    "safetensors": ".safetensors",
    "svec": ".svec",
    "lm_eval": ".pt",
    "easysteer": ".gguf",
    "persona": ".pt",
    "neuronpedia": ".json",
}


@dataclass(frozen=True)
class ExportRequest:
    """Which vectors to write as files of another tool.

    Raises:
        UserError: If the flags do not belong together.
    """

    paths: DataPaths
    choice: ModelChoice | None
    """None: the one model that has vectors."""
    behaviors: tuple[str, ...]
    format_name: str
    layers: tuple[int, ...] | None
    """None with `chosen`."""
    kind: VectorKind
    multiplier: float = 1.0
    chosen: bool = False
    """Layer and strength that `choose_steering.py` found."""
    raw: bool = False
    """As they were read, from vectors/ instead of normalized_vectors/."""
    one_file: bool = False
    """All layers in one file, also where a file has one by default."""
    licence: str | None = None
    overwrite: bool = False
    command: str = ""

    def __post_init__(self) -> None:
        if self.chosen and (self.layers or self.multiplier != 1.0 or self.raw):
            raise UserError(
                "--chosen is a layer and a strength of normalised vectors: leave out --layers, --multiplier, --raw"
            )
        if not self.chosen and not self.layers:
            raise UserError(
                "name the layer with --layers N (several only where the tool is to add them all), or take what "
                "./choose_steering.py chose with --chosen"
            )
        if self.multiplier == 0.0:
            raise UserError("--multiplier 0 leaves nothing to export; leave it out for the vector as it is")

    @property
    def is_layer_a_file(self) -> bool:
        return self.format_name in ONE_LAYER_A_FILE and not self.one_file

    @property
    def exports_dir(self) -> Path:
        return self.paths.root / "exports" / self.format_name


@dataclass(frozen=True)
class ImportRequest:
    """A file whose vectors are to be used here."""

    paths: DataPaths
    file: Path
    choice: ModelChoice | None
    """None: the model that the file names."""
    behavior: str | None
    """Under which they are kept; None for the one that the file names."""
    kind: VectorKind
    """Of vectors whose file does not say it."""
    overwrite: bool = False
    command: str = ""
