"""What to monitor. Light: nothing heavy is imported here."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files.provenance import differences, read_provenance
from utils.files.reading import read_json, sha256_of
from utils.model.checkpoints import ModelChoice
from utils.paths import REPOSITORY, DataPaths
from utils.settings import VectorKind
from utils.vectors.files import find_vectors, generate_command, layer_ranges

STANDARD = Path("-")
"""Standard input or output."""
PAGE_TEXTS = 20


@dataclass(frozen=True)
class MonitorRequest:
    """Which texts to measure along which vectors.

    Raises:
        UserError: If the flags do not belong together.
    """

    paths: DataPaths
    choice: ModelChoice
    files: tuple[Path, ...]
    behaviors: tuple[str, ...]
    layers: tuple[int, ...] | None
    """None for the layer that was chosen for each behavior."""
    kind: VectorKind
    tokens: bool = False
    """Write every token's projection too."""
    page_texts: int = 0
    """How many texts the page shows; 0 for no page."""
    reference: Path | None = None
    """Neutral texts instead of the bundled ones."""
    output: Path | None = None
    """Of one file's lines; None for analysis/monitor/."""
    batch_size: int | None = None
    overwrite: bool = False
    command: str = ""

    def __post_init__(self) -> None:
        if self.output is not None and len(self.files) > 1:
            raise UserError("--output is of one file of texts; leave it out, or measure the files one by one")
        if self.page_texts and STANDARD in (*self.files, self.output):
            raise UserError("--page needs files with names; leave out - and --output -")
        stems = [path.stem for path in self.files]
        if len(set(stems)) < len(stems):
            raise UserError("two files of texts have the same name, and so would their results; rename one")
        for path in self.files:
            if path != STANDARD and not path.is_file():
                raise UserError(f"{path} not found; name a file of texts (JSON or JSON Lines)")

    @property
    def neutral_texts(self) -> Path:
        """Of the flag, the root, or else the bundled ones."""
        if self.reference is not None:
            return self.reference
        own = self.paths.neutral_prompts().with_name("texts.json")
        return own if own.exists() else DataPaths(REPOSITORY).neutral_prompts().with_name("texts.json")

    def of_files(self, files: Sequence[Path]) -> "MonitorRequest":
        """The same of some files."""
        return replace(self, files=tuple(files))

    def output_of(self, file: Path) -> Path:
        """The lines of a file of texts."""
        if self.output is not None:
            return self.output
        name = "standard_input" if file == STANDARD else file.stem
        return self.paths.analysis("monitor", f"{name}_{self.choice.label}{self.kind.suffix}.jsonl")

    def stem_of(self, file: Path) -> Path:
        """The page and figure of a file of texts, without their endings."""
        output = self.output_of(file)
        return output.with_name(output.name.removesuffix(".jsonl"))


@dataclass(frozen=True)
class VectorSource:
    """One vector to measure along."""

    behavior: str
    layer: int
    path: Path

    @property
    def key(self) -> tuple[str, int]:
        return self.behavior, self.layer


def find_sources(request: MonitorRequest) -> list[VectorSource]:
    """The vectors, in the order of behaviors and layers. Their length does not matter, so the raw ones will do.

    Raises:
        UserError: If one is missing, or no layer was named nor chosen.
    """
    found = []
    for behavior in request.behaviors:
        for layer in request.layers or (_chosen_layer(request, behavior),):
            found.append(VectorSource(behavior, layer, _vector_path(request, behavior, layer)))
    return found


def _vector_path(request: MonitorRequest, behavior: str, layer: int) -> Path:
    for normalized in (False, True):
        path = request.paths.vector(behavior, layer, request.choice.label, normalized=normalized, kind=request.kind)
        if path.exists():
            return path
    there = find_vectors(request.paths, behavior, kind=request.kind).get(request.choice.label, set())
    known = f" (there are layers {layer_ranges(there)})" if there else ""
    make = generate_command(request.paths, [behavior], [layer], request.choice, kind=request.kind)
    raise UserError(
        f"{behavior}: no vector of layer {layer} of {request.choice.label}"
        f"{request.kind.suffix and f' ({request.kind.suffix[1:]})'}{known}; run: {make}"
    )


def _chosen_layer(request: MonitorRequest, behavior: str) -> int:
    path = request.paths.chosen_steering(behavior, request.choice.label, request.kind)
    words = ["--behaviors", behavior, *request.kind.command_words, *request.choice.command_words]
    choose = request.paths.command("choose_steering", *words)
    content = read_json(path, f"no layer was chosen; name one with --layers, or run: {choose}")
    layer = content.get("layer") if isinstance(content, dict) else None
    if type(layer) is not int or layer < 0:
        raise UserError(f"{path} is not a choice as the suite writes it; choose again with --overwrite")
    return layer


def made_from(request: MonitorRequest, file: Path, sources: list[VectorSource]) -> dict[str, Any]:
    """What the results of a file depend on, as far as it is known without the model."""
    return {
        "texts_sha256": sha256_of(file),
        "vectors": {f"{one.behavior} {one.layer}": sha256_of(one.path) for one in sources},
        "reference_sha256": sha256_of(request.neutral_texts),
        "tokens": request.tokens,
        "model": request.choice.label,
    }


def is_there(request: MonitorRequest, file: Path, sources: list[VectorSource]) -> bool:
    """Whether a file's results are there and were made from the same texts and vectors.

    Raises:
        UserError: If they are there and were made from others.
    """
    output = request.output_of(file)
    if STANDARD in (file, output) or not output.exists():
        return False
    if request.page_texts and not request.stem_of(file).with_name(f"{request.stem_of(file).name}.html").exists():
        return False
    then = read_provenance(output)
    now = made_from(request, file, sources)
    if then is None or (found := differences(now, then)):
        which = "" if then is None else f" ({', '.join(found)})"
        raise UserError(f"{output} is there and was made otherwise{which}; --overwrite measures again")
    return True
