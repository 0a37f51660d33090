"""A run of function_vectors.py: for each task means, indirect effects, vectors, and what they do to test items."""

import logging
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from utils.behaviors import list_behaviors, load_behavior
from utils.data.estimates import Estimate
from utils.data.records import load_contrast_pairs
from utils.files.reading import load_vector, read_json
from utils.files.writing import save_tensor
from utils.research.function_behaviors import side_by_side
from utils.research.function_measures import CONDITIONS, VECTORS, TaskResult, make_vectors, measure_task
from utils.research.function_request import FunctionRequest
from utils.research.head_rows import Heads
from utils.research.task_lists import Task, behavior_task, load_task
from utils.saes.requests import write_result
from utils.settings import VectorKind
from utils.vectors.files import find_vectors

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

log = logging.getLogger(__name__)

KINDS = {"letter": VectorKind(), "answer": VectorKind("answer")}


def run_tasks(request: FunctionRequest, model: "LlamaWrapper", waiting: Sequence[str]) -> None:
    """Run the tasks that wait; each one's files are written when it is done.

    Raises:
        UserError: If a task is broken, or the model's heads cannot be told apart.
    """
    from utils.research.function_figures import plot_task

    heads = Heads(model.runtime)
    for name in waiting:
        result = run_task(request, model, heads, load_any(request, name))
        save_tensor(request.vector_path(name), result.vectors.function)
        log.info("wrote %s", request.vector_path(name))
        plot_task(result, request)
        made = {**model.provenance(), "command": request.command}
        write_result(request.result_path(name), request.describe(name), made, as_json(result))


def load_any(request: FunctionRequest, name: str) -> Task:
    """A task's file, or a behavior's lettered questions."""
    data = request.data_of(name)
    if name not in request.behaviors:
        return load_task(data[0], request.seed)
    label = load_behavior(request.paths, name).label
    return behavior_task(name, label, *(load_contrast_pairs(path) for path in data))


def run_task(request: FunctionRequest, model: "LlamaWrapper", heads: Heads, task: Task) -> TaskResult:
    """Make a task's vectors and measure them."""
    rng = random.Random(f"{request.seed} {task.name}")
    vectors = make_vectors(request, model, heads, task, rng)
    accuracies, gains = measure_task(request, model, heads, task, vectors, rng)
    steering = {
        (behavior, read): found
        for behavior in list_behaviors(request.paths)
        for read, kind in KINDS.items()
        if (found := behavior_vectors(request, model, behavior, kind)) is not None
    }
    cosines = {name: _cosines(vectors.function, contrast) for name, contrast in vectors.contrasts.items()}
    cosines |= {
        f"{behavior} ({read})": _cosines(vectors.function, found) for (behavior, read), found in steering.items()
    }
    effects = {}
    if task.name in request.behaviors:
        compared = {"function vector": vectors.function}
        compared |= {name: contrast[request.layer] for name, contrast in vectors.contrasts.items()}
        for read in KINDS:
            if (found := steering.get((task.name, read))) is not None and bool(found[request.layer].isfinite().all()):
                compared[f"steering vector ({read})"] = found[request.layer]
        effects = side_by_side(request, model, task.name, compared)
    return TaskResult(task, vectors, accuracies, gains, cosines, effects)


def behavior_vectors(request: FunctionRequest, model: "LlamaWrapper", behavior: str, kind: VectorKind) -> Tensor | None:
    """A behavior's steering vectors, [n_layers, d_model], NaN where there is none; None where there is none at all."""
    layers = find_vectors(request.paths, behavior, kind=kind).get(model.label, set())
    found = torch.full((model.n_layers, model.d_model), torch.nan)
    for layer in sorted(layers & set(range(model.n_layers))):
        path = request.paths.vector(behavior, layer, model.label, normalized=False, kind=kind)
        found[layer] = load_vector(path, model.d_model)
    return found if layers else None


def _cosines(vector: Tensor, others: Tensor) -> list[float]:
    return torch.nn.functional.cosine_similarity(vector[None].double(), others.double(), dim=1).tolist()


# --- files -----------------------------------------------------------------------------------------


def as_json(result: TaskResult) -> dict[str, Any]:
    vectors = result.vectors
    mean = vectors.effects.double().mean(dim=0)
    spread = vectors.effects.double().std(dim=0) / max(1, len(vectors.effects)) ** 0.5
    return {
        "label": result.task.label,
        "n_training": len(result.task.training),
        "heads": [
            {
                "layer": layer,
                "head": head,
                "effect": float(mean[layer, head]),
                "standard_error": _number(spread[layer, head]),
            }
            for layer, head in vectors.places
        ],
        "norm": float(vectors.function.norm()),
        "contrast_norms": {name: contrast.norm(dim=1).tolist() for name, contrast in vectors.contrasts.items()},
        "accuracy": [
            {**{key: value for key, value in asdict(one).items() if key != "share"}, **_estimate(one.share)}
            for one in result.accuracies
        ],
        "gain_over_random_heads": {condition: _estimate(gain) for condition, gain in result.gains.items()},
        "answer_text_effects": {name: _estimate(effect) for name, effect in result.effects.items()},
        "cosines": {name: [_number(value) for value in values] for name, values in result.cosines.items()},
    }


def _estimate(estimate: Estimate) -> dict[str, float | int | None]:
    return {
        "value": _number(estimate.value),
        "low": _number(estimate.low),
        "high": _number(estimate.high),
        "n": estimate.n,
    }


def _number(value: float | Tensor) -> float | None:
    return float(value) if np.isfinite(float(value)) else None


# --- all tasks -------------------------------------------------------------------------------------


def finish(request: FunctionRequest) -> list[str]:
    """Draw all of the request's tasks together, and sum them up; from their result files."""
    from utils.research.function_figures import plot_tasks

    found = {name: read_json(request.result_path(name)) for name in request.names}
    plot_tasks(found, request)
    lines = []
    for name, content in found.items():
        lines.append(f"{name}: {content['accuracy'][0]['n']} test items, each at the best layer of the other half")
        few = _accuracy(content, "few-shot", "none", None)
        for condition in CONDITIONS:
            cells = [f"no vector {_accuracy(content, condition, 'none', None)}"]
            cells += [f"{vector} {_accuracy(content, condition, vector, None)}" for vector in VECTORS]
            lines.append(f"  {condition:9}  {'  '.join(cells)}  right examples {few}")
            lines.append(
                f"             function vector minus random heads {_span(content['gain_over_random_heads'][condition])}"
            )
        lines += [f"  answer text, + minus -: {what} {_span(e)}" for what, e in content["answer_text_effects"].items()]
    return lines


def _accuracy(content: Mapping[str, Any], condition: str, vector: str, layer: int | None) -> str:
    return _span(
        next(a for a in content["accuracy"] if (a["condition"], a["vector"], a["layer"]) == (condition, vector, layer))
    )


def _span(entry: Mapping[str, Any]) -> str:
    low, high = (math.nan if entry[end] is None else entry[end] for end in ("low", "high"))
    return f"{entry['value']:.2f} [{low:.2f}, {high:.2f}]"
