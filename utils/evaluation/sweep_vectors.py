"""The vectors that a sweep uses: where they are, what makes them, and their tensors."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.behaviors import load_behavior
from utils.errors import UserError
from utils.files.reading import load_vector
from utils.model.checkpoints import ModelChoice, checkpoint_label
from utils.settings import Beside
from utils.vectors.files import choice_of_label, generate_command, normalize_command, parts_command

if TYPE_CHECKING:
    from torch import Tensor

    from utils.evaluation.plan import Sweep, SweepPlan, SweepRequest


def load_vectors(plan: "SweepPlan") -> "dict[str, dict[int, Tensor]]":
    """The steering vector for each layer, by behavior, for every sweep that waits.

    Raises:
        UserError: If one is missing (names the commands that make it), broken, or of another width.
    """
    return {sweep.settings.behavior: _load_vectors(plan, sweep) for sweep in plan.waiting}


def _load_vectors(plan: "SweepPlan", sweep: "Sweep") -> "dict[int, Tensor]":
    request = plan.request
    behavior = sweep.settings.vector_behavior or sweep.settings.behavior
    layers = (request.layers or ()) if request.override_vector is None else (request.override_vector,)
    hint = _making(request, [behavior], layers)
    if request.vector_files:
        hint = "name a vector file with --vector"
    return {
        layer: sum(
            (load_vector(path, plan.shape.d_model, hint) for path in rest), load_vector(first, plan.shape.d_model, hint)
        )
        for layer, (first, *rest) in sweep.vectors.items()
    }


def _making(request: "SweepRequest", behaviors: Sequence[str], layers: Sequence[int]) -> str:
    """What makes the vectors that are used."""
    choice, kind = _choice_of_vectors(request), request.vector_kind
    if kind.part:
        return f"run: {parts_command(request.paths, behaviors, layers, choice, kind)}"
    generate = generate_command(request.paths, behaviors, layers, choice, kind=kind)
    return f"run: {generate}, then: {normalize_command(request.paths, behaviors, choice, kind=kind)}"


def _choice_of_vectors(request: "SweepRequest") -> ModelChoice:
    """The model whose vectors are used."""
    if request.override_vector_model is None:
        return request.choice
    label = checkpoint_label(request.override_vector_model)
    known = choice_of_label(label)
    return known if known.size else ModelChoice(request.override_vector_model, label, None, False)


def condition_files(request: "SweepRequest") -> list[Path]:
    """What a gate is fitted on."""
    return [path for path in (request.condition, request.condition_vector) if path is not None]


def beside_path(request: "SweepRequest", one: Beside, label: str) -> Path:
    """The vector's file.

    Raises:
        UserError: If there is none, or no such behavior or layer.
    """
    load_behavior(request.paths, one.behavior)
    path = request.paths.vector(one.behavior, one.layer, label, normalized=True, kind=request.vector_kind)
    if not path.is_file():
        raise UserError(f"--beside {one}: {path} not found; {_making(request, [one.behavior], [one.layer])}")
    return path


def plane_paths(request: "SweepRequest", behavior: str, label: str) -> tuple[Path, ...]:
    """The behavior's vectors of all layers, where the operator needs them."""
    if not request.operator.startswith("rotate"):
        return ()
    if request.vector_files:
        raise UserError(f"--operator {request.operator} needs a behavior's vectors of all layers: leave out --vector")
    files = request.paths.vector_files(behavior, normalized=True)
    ours = [one for one in files if one.model_label == label and one.kind == request.vector_kind]
    folder = request.paths.vectors_dir(behavior, normalized=True)
    return tuple(folder / one.name for one in sorted(ours, key=lambda one: one.layer))
