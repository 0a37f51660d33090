"""From contrast pairs to vector files: read the activations, estimate, write."""

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from utils.cli.progress import progress
from utils.errors import UserError
from utils.files.provenance import record_provenance
from utils.files.reading import load_vector
from utils.files.writing import save_tensor
from utils.model import processes
from utils.paths import vector_name
from utils.vectors.estimators import ESTIMATORS, MEAN
from utils.vectors.plan import BehaviorPlan, ExtractionRequest
from utils.vectors.sums import PairSums, forget_finished, sums_path

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

log = logging.getLogger(__name__)

SAME_VECTOR = 1e-3
"""Largest difference, relative to the vector's norm, that is put down to rounding: activations are summed in another
order in other batches, and a letter vector is about 1% of the activations whose difference it is."""


def extract_behavior(model: "LlamaWrapper", plan: BehaviorPlan, request: ExtractionRequest) -> None:
    """Write one behavior's vectors (and activations).

    Raises:
        UserError: If activations leave the range of the model's dtype.
    """
    run_record = _run_record(model, plan, request)
    depends_on = {**run_record, "command": None, "packed": not request.plainly, "batch_size": request.batch_size}
    vectors_dir = request.paths.vectors_dir(plan.behavior, normalized=False)
    keep_all = request.save_activations or request.kind.method != MEAN
    sums = PairSums(
        sums_path(vectors_dir, model.label, depends_on), plan.layers, len(plan.pairs), model.d_model, keep_all=keep_all
    )
    sums.restore()
    _read_all(model, plan, request, sums)
    sums.gather()
    if broken := processes.from_main(sums.broken_layers() if processes.is_main() else None):
        sums.forget()
        raise UserError(
            f"{plan.behavior}: the activations of {model.label} are not finite in {model.dtype} at layers "
            f"{', '.join(map(str, broken))}; use --dtype float32 or bfloat16"
        )
    if processes.is_main():
        n_written = _write(plan, request, sums, run_record)
        log.info("wrote %s: %d vectors from %d pairs", vectors_dir, n_written, len(plan.pairs))
    processes.gather(None)  # nobody forgets before all is written
    sums.forget()


def _read_all(model: "LlamaWrapper", plan: BehaviorPlan, request: ExtractionRequest, sums: PairSums) -> None:
    done = frozenset(sums.done)
    if request.plainly:
        batches = model.answer_activations_plainly(plan.pairs, plan.layers, done, request.kind.reading)
    else:
        batches = model.answer_activations(plan.pairs, plan.layers, request.batch_size, done, request.kind.reading)
    total, what = len(plan.pairs), f"{plan.behavior}: contrast pairs"
    with progress(total=total, initial=len(done), desc=what, unit="pair") as bar:
        for indices, positive, negative in batches:
            n_before = len(sums.done)
            sums.add(indices, positive, negative)
            sums.save_if_due()
            bar.update(len(sums.done) - n_before)  # pairs that were read before come again in others' company


def _write(plan: BehaviorPlan, request: ExtractionRequest, sums: PairSums, run_record: dict[str, Any]) -> int:
    """Write activations, where they are asked for, and vectors; returns how many vectors are new.

    A layer's vector comes last: it says that all of its files are there. One that is there and equal stays.
    """
    vectors = {layer: _estimate(request, sums, row) for row, layer in enumerate(plan.layers)}
    if not request.overwrite:
        vectors = {layer: vector for layer, vector in vectors.items() if not _is_there(plan, request, layer, vector)}
    names = [vector_name(layer, request.choice.label, request.kind) for layer in vectors]
    record_provenance(request.paths.vectors_dir(plan.behavior, normalized=False), names, run_record)
    for row, layer in enumerate(plan.layers):
        vector_path, *activation_paths = request.outputs(plan.behavior, layer)
        for path, side in zip(activation_paths, sums.sides or (), strict=False):
            save_tensor(path, (sums.sides or {})[side][row].clone())
        if layer in vectors:
            save_tensor(vector_path, vectors[layer])
    return len(vectors)


def _estimate(request: ExtractionRequest, sums: PairSums, row: int) -> Tensor:
    if request.kind.method == MEAN:
        return sums.mean.vector[row].clone()
    assert sums.sides is not None, "other estimators take whole tables"
    return ESTIMATORS[request.kind.method](sums.sides["pos"][row], sums.sides["neg"][row])


def _is_there(plan: BehaviorPlan, request: ExtractionRequest, layer: int, vector: Tensor) -> bool:
    """Whether the layer's file holds this vector, up to rounding."""
    path = request.outputs(plan.behavior, layer)[0]
    try:
        there = load_vector(path, len(vector)) if path.exists() else None
    except UserError:  # damaged: made again
        return False
    return there is not None and float((there - vector).norm()) <= SAME_VECTOR * float(vector.norm())


def forget_finished_sums(request: ExtractionRequest) -> None:
    """Remove what runs left behind that were killed when all their vectors were written."""
    for behavior in () if request.overwrite else request.behaviors:
        folder = request.paths.vectors_dir(behavior, normalized=False)
        forget_finished(folder, request.choice.label, partial(_are_made, request, behavior))


def _are_made(request: ExtractionRequest, behavior: str, layers: list[int]) -> bool:
    return not request.missing_layers(behavior, layers)


def _run_record(model: "LlamaWrapper", plan: BehaviorPlan, request: ExtractionRequest) -> dict[str, Any]:
    return {
        **model.provenance(),
        "command": request.command,
        **plan.dataset.record(request.kind),
    }
