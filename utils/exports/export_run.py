"""From the vectors that are there to another tool's files."""

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.exports.requests import EXTENSIONS, ExportRequest
from utils.files.provenance import differences, read_provenance, record_provenance
from utils.files.reading import load_vector, read_json, sha256_of
from utils.files.writing import write_bytes
from utils.model.checkpoints import ModelChoice, check_layers
from utils.model.shapes import ModelShape, known_shape
from utils.paths import REPOSITORY, DataPaths
from utils.vectors.files import choice_of_label, find_vectors, generate_command, layer_ranges, normalize_command
from utils.vectors.plan import pairs_path

log = logging.getLogger(__name__)

_FACTS = ("model", "revision", "weights_fingerprint", "dtype", "prompt_format", "n_pairs", "dataset_sha256")
BUNDLED_LICENCE = "MIT"
"""Of vectors made from the pairs that come with this suite."""


@dataclass(frozen=True)
class PlannedFile:
    """One file to write."""

    path: Path
    behavior: str
    sources: dict[int, Path]
    """The vectors, by layer."""
    multiplier: float


def export_vectors(request: ExportRequest) -> Counter[str]:
    """Write the files that are not there yet; counts those "wrote", "skipped" and (kept, made otherwise) "differ".

    Raises:
        UserError: If vectors are missing, or the format cannot hold them.
    """
    choice = request.choice or _only_model(request)
    shape = known_shape(choice)
    if shape and request.layers:
        check_layers(request.layers, shape.n_layers, choice.label)
    planned = [file for behavior in request.behaviors for file in _plan(request, choice, behavior)]
    counts: Counter[str] = Counter()
    for file in planned:
        counts[_write(request, file, shape)] += 1
    return counts


def _only_model(request: ExportRequest) -> ModelChoice:
    """The one model that has vectors of these behaviors.

    Raises:
        UserError: If there are several, or none.
    """
    found = [find_vectors(request.paths, b, normalized=not request.raw, kind=request.kind) for b in request.behaviors]
    labels = sorted(set().union(*found))
    if len(labels) != 1:
        raise UserError(
            f"name the model whose vectors are exported, with --model_size or --model (models with vectors: "
            f"{', '.join(labels) or 'none yet'})"
        )
    return choice_of_label(labels[0])


def _plan(request: ExportRequest, choice: ModelChoice, behavior: str) -> list[PlannedFile]:
    layers, multiplier = _layers_and_multiplier(request, choice, behavior)
    sources = {
        layer: request.paths.vector(behavior, layer, choice.label, normalized=not request.raw, kind=request.kind)
        for layer in layers
    }
    if missing := [layer for layer, path in sources.items() if not path.exists()]:
        make = generate_command(request.paths, [behavior], missing, choice, kind=request.kind)
        then = "" if request.raw else f", then: {normalize_command(request.paths, [], choice, kind=request.kind)}"
        raise UserError(
            f"{sources[missing[0]].parent}: no vectors of layers {layer_ranges(missing)} of {choice.label}"
            f"{request.kind.suffix and f' ({request.kind.suffix[1:]})'}; run: {make}{then}"
        )
    groups = [[layer] for layer in layers] if request.is_layer_a_file else [layers]
    return [
        PlannedFile(
            _path(request, choice.label, behavior, group, multiplier),
            behavior,
            {layer: sources[layer] for layer in group},
            multiplier,
        )
        for group in groups
    ]


def _layers_and_multiplier(request: ExportRequest, choice: ModelChoice, behavior: str) -> tuple[list[int], float]:
    if not request.chosen:
        return sorted(set(request.layers or ())), request.multiplier
    path = request.paths.chosen_steering(behavior, choice.label, request.kind)
    words = ["--behaviors", behavior, *request.kind.command_words, *choice.command_words]
    content = read_json(path, f"nothing was chosen; run: {request.paths.command('choose_steering', *words)}")
    layer, multiplier = (content.get(key) if isinstance(content, dict) else None for key in ("layer", "multiplier"))
    if type(layer) is not int or not isinstance(multiplier, float):
        raise UserError(f"{path} is not a choice as the suite writes it; choose again with --overwrite")
    return [layer], multiplier


def _path(request: ExportRequest, label: str, behavior: str, layers: Sequence[int], multiplier: float) -> Path:
    scaled = "" if multiplier == 1.0 else f"_multiplier={multiplier:.6g}"
    raw = "_raw" if request.raw else ""
    numbers = layer_ranges(layers).replace(",", "+")  # tools take a comma for the end of a path
    name = f"vec_layer_{numbers}_{label}{request.kind.suffix}{raw}{scaled}"
    return request.exports_dir / behavior / f"{name}{EXTENSIONS[request.format_name]}"


# --- one file --------------------------------------------------------------------------------------


def _write(request: ExportRequest, file: PlannedFile, shape: ModelShape | None) -> str:
    """Returns what became of it: "wrote", "skipped" or "differ"."""
    from utils.exports.formats import beside, encode, how_to_use

    made_from = {
        "format": request.format_name,
        "vectors_sha256": _digest(file.sources),
        "multiplier": file.multiplier,
        "licence": request.licence,
    }
    paths = beside(request.format_name, file.path)
    if all(path.exists() for path in paths) and not request.overwrite:
        then = read_provenance(file.path) or {}
        if then.get("sha256") == sha256_of(file.path) and not differences(made_from, then):
            return "skipped"
        log.warning("%s was made from other vectors or changed since; --overwrite makes it again", file.path)
        return "differ"
    bundle = _bundle(request, file, shape)
    shown = request.paths.shown(file.path)
    contents = encode(bundle, request.format_name, file.path, shown)
    digest = hashlib.sha256(contents[file.path]).hexdigest()
    run = {"command": request.command, **made_from, "sha256": digest}
    record_provenance(file.path.parent, [path.name for path in contents], run)
    for path, content in contents.items():
        write_bytes(path, content)
    log.info("wrote %s; to use it: %s", file.path, how_to_use(request.format_name, shown, bundle))
    return "wrote"


def _bundle(request: ExportRequest, file: PlannedFile, shape: ModelShape | None) -> "Any":
    from utils.exports.bundle import VectorBundle

    d_model = shape.d_model if shape else None
    vectors = {layer: load_vector(path, d_model) for layer, path in file.sources.items()}
    if len({len(vector) for vector in vectors.values()}) != 1:
        raise UserError(f"{file.behavior}: vectors of layers {layer_ranges(vectors)} differ in width; make them again")
    if empty := [layer for layer, vector in vectors.items() if not bool(vector.any())]:
        raise UserError(f"{file.sources[empty[0]]} is all zeros and steers nothing; make it again")
    return VectorBundle(
        vectors,
        file.multiplier,
        _facts(request, file),
        shape.model_type if shape else "",
        shape.n_layers if shape else None,
    )


def _facts(request: ExportRequest, file: PlannedFile) -> dict[str, str]:
    """What is recorded of the vectors; what differs between layers, or is not known, is left out."""
    label = next(iter(file.sources.values())).name
    records = []
    for layer in file.sources:
        raw = request.paths.vectors_dir(file.behavior, normalized=False) / file.sources[layer].name
        records.append(read_provenance(raw) or {})
    common = {key: records[0].get(key) for key in _FACTS}
    facts = {
        key: str(value)
        for key, value in common.items()
        if value is not None and all(record.get(key) == value for record in records)
    }
    facts.setdefault("model", _label_of(label))
    kind = request.kind
    facts |= {"behavior": file.behavior, "read": kind.reading, "method": kind.method, "from": kind.origin}
    facts["normalized"] = "no" if request.raw else "yes"
    if licence := request.licence or _licence_of_bundled(request, file.behavior, facts.get("dataset_sha256")):
        facts["licence"] = licence
    return facts


def _label_of(name: str) -> str:
    from utils.paths import parse_vector_name

    found = parse_vector_name(name)
    assert found is not None, "the suite's own name"
    return found.model_label


def _licence_of_bundled(request: ExportRequest, behavior: str, dataset_sha256: str | None) -> str | None:
    """The licence of vectors that are known to be made from bundled pairs; None of all others."""
    bundled = pairs_path(DataPaths(REPOSITORY), behavior, request.kind.reading)
    if dataset_sha256 is None or not bundled.exists() or sha256_of(bundled) != dataset_sha256:
        return None
    return BUNDLED_LICENCE


def _digest(sources: dict[int, Path]) -> str:
    lines = [f"{layer} {sha256_of(path)}" for layer, path in sorted(sources.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
