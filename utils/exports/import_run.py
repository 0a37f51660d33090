"""From another tool's file to vectors that this suite steers with, checked against the model."""

import logging
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from utils.behaviors import check_id
from utils.errors import UserError
from utils.exports.formats import read_bundle
from utils.exports.requests import ImportRequest
from utils.files.provenance import read_folder_provenance, record_provenance
from utils.files.reading import load_vector, read_json, sha256_of
from utils.files.writing import save_tensor
from utils.model.checkpoints import ModelChoice, check_layers
from utils.model.shapes import model_shape
from utils.paths import DataPaths, parse_vector_name, vector_name
from utils.settings import Origin, Reading, VectorKind
from utils.vectors.files import choice_of_label, layer_ranges

if TYPE_CHECKING:
    from torch import Tensor

    from utils.exports.bundle import ImportedBundle

log = logging.getLogger(__name__)


def import_vectors(request: ImportRequest) -> Counter[str]:
    """Keep a file's vectors as the suite keeps its own; counts those "wrote" and "skipped" (there, bit by bit).

    Raises:
        UserError: If the file is broken, is of another model or width, or other vectors are there already.
    """
    bundle = read_bundle(request.file)
    choice = _model_of(request, bundle)
    vectors = _checked(request, bundle, choice)
    _check_weights(request, bundle, choice)
    behavior = _behavior_of(request, bundle)
    kind = _kind_of(request, bundle)
    normalized = bundle.facts.get("normalized") == "yes"
    paths = {
        layer: request.paths.vector(behavior, layer, choice.label, normalized=normalized, kind=kind)
        for layer in vectors
    }
    waiting = {layer: path for layer, path in paths.items() if not _is_there(request, path, vectors[layer])}
    run = {
        **bundle.facts,
        "model": choice.label,
        "command": request.command,
        "imported_from": request.file.name,
        "imported_sha256": sha256_of(request.file),
        "format": bundle.format_name,
    }
    if waiting:
        folder = request.paths.vectors_dir(behavior, normalized=normalized)
        record_provenance(folder, [path.name for path in waiting.values()], run)
    for layer, path in waiting.items():
        save_tensor(path, vectors[layer])
        log.info("wrote %s", path)
    _say_how_to_steer(request, bundle, choice, paths)
    return Counter(wrote=len(waiting), skipped=len(paths) - len(waiting))


# --- checks ----------------------------------------------------------------------------------------


def _model_of(request: ImportRequest, bundle: "ImportedBundle") -> ModelChoice:
    """The model that was named, or the one that the file names; both where both are, and they agree."""
    named = bundle.facts.get("model")
    if request.choice is None:
        if not named:
            raise UserError(f"{request.file} does not say of which model its vectors are; add --model_size or --model")
        return choice_of_label(named)
    if named and named != request.choice.label:
        raise UserError(
            f"{request.file} holds vectors of {named}, not of {request.choice.label}; the residual streams of two "
            "models have nothing in common. Name that model, or leave the model out"
        )
    return request.choice


def _checked(request: ImportRequest, bundle: "ImportedBundle", choice: ModelChoice) -> "dict[int, Tensor]":
    """The vectors as float32, finite, of the model's width and layers."""
    import torch

    if not bundle.vectors:
        raise UserError(f"{request.file} holds no vector")
    shape = model_shape(choice)
    checked = {}
    for layer, vector in sorted(bundle.vectors.items()):
        where = f"{request.file}, layer {layer}"
        if not isinstance(vector, torch.Tensor) or vector.dim() != 1 or not vector.is_floating_point():
            raise UserError(f"{where}: not one float vector")
        if len(vector) != shape.d_model:
            raise UserError(
                f"{where}: width {len(vector)}, but the residual stream of {choice.label} has {shape.d_model}; "
                "use vectors of this model"
            )
        vector = vector.detach().float().clone()
        if not bool(torch.isfinite(vector).all()) or not bool(vector.any()):
            raise UserError(f"{where}: NaN, infinite values or nothing but zeros; make the file again")
        checked[layer] = vector
    check_layers(list(checked), shape.n_layers, choice.label, f"{request.file}: layers")
    for text in bundle.left_out:
        log.warning("%s: left out %s", request.file, text)
    return checked


def _check_weights(request: ImportRequest, bundle: "ImportedBundle", choice: ModelChoice) -> None:
    """Compare the weights that the vectors were read from with those that are known here."""
    theirs = bundle.facts.get("weights_fingerprint")
    ours = known_fingerprints(request.paths, choice.label)
    if theirs and ours and theirs not in ours:
        raise UserError(
            f"{request.file} was made with other weights called {choice.label} ({theirs}) than the vectors here "
            f"({', '.join(sorted(ours))}); name their checkpoint by a folder of another name (--model DIR)"
        )
    if not (theirs and ours):
        log.info("%s: model and width fit; its weights could not be compared (not recorded)", request.file)


def known_fingerprints(paths: DataPaths, label: str) -> set[str]:
    """The weights of a model that other artifacts under this root were made with."""
    norms = paths.residual_norms(label)
    found: set[Any] = set()
    if norms.exists():
        content = read_json(norms)
        found.add(content.get("weights_fingerprint") if isinstance(content, dict) else None)
    folder = paths.root / "vectors"
    for behavior_dir in sorted(folder.iterdir()) if folder.is_dir() else ():
        for name, run in read_folder_provenance(behavior_dir).items() if behavior_dir.is_dir() else ():
            file = parse_vector_name(name)
            if file and file.model_label == label and "imported_from" not in run:
                found.add(run.get("weights_fingerprint"))
    return {each for each in found if isinstance(each, str)}


def _behavior_of(request: ImportRequest, bundle: "ImportedBundle") -> str:
    behavior = request.behavior or bundle.facts.get("behavior")
    if behavior is None:
        raise UserError(f"{request.file} does not say of which behavior its vectors are; add --behavior ID")
    check_id(behavior)
    return behavior


def _kind_of(request: ImportRequest, bundle: "ImportedBundle") -> VectorKind:
    """Where and how they were read, as the file says, else as the flags say."""
    facts, flags = bundle.facts, request.kind
    told = VectorKind(
        cast(Reading, facts.get("read", flags.reading)),
        facts.get("method", flags.method),
        cast(Origin, facts.get("from", flags.origin)),
    )
    if parse_vector_name(vector_name(0, "model", told)) is None:
        raise UserError(f"{request.file}: read {told.reading!r}, method {told.method!r}: not a kind of vector")
    return told


def _is_there(request: ImportRequest, path: Path, vector: "Tensor") -> bool:
    import torch

    if not path.exists() or request.overwrite:
        return False
    if not torch.equal(load_vector(path), vector):
        raise UserError(
            f"{path} is there and holds another vector; --overwrite replaces it, or keep it under --behavior ID"
        )
    return True


def _say_how_to_steer(
    request: ImportRequest, bundle: "ImportedBundle", choice: ModelChoice, paths: dict[int, Path]
) -> None:
    if bundle.facts.get("multiplier_is_in_the_vectors") == "yes" and bundle.facts.get("multiplier") != "1.0":
        log.info("these vectors are multiplied by %s already", bundle.facts.get("multiplier"))
    layer, path = next(iter(paths.items()))
    words = ["--vector", request.paths.shown(path), "--layers", layer, "--multipliers", bundle.coefficient]
    log.info(
        "layers %s; to steer with one: %s",
        layer_ranges(paths),
        request.paths.command("prompting_with_steering", *words, *choice.command_words),
    )
