"""A run of function_vectors.py: for each task means, indirect effects, vectors, and what they do to test items."""

import logging
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from utils.behaviors import list_behaviors, load_behavior
from utils.cli.progress import progress
from utils.data.estimates import Estimate, share_estimate
from utils.data.records import load_contrast_pairs
from utils.evaluation.metrics import mean_estimates
from utils.files.reading import load_vector, read_json
from utils.files.writing import save_tensor
from utils.model.steering import Steering
from utils.research.function_behaviors import side_by_side
from utils.research.function_request import FunctionRequest
from utils.research.function_vectors import (
    EncodedPrompt,
    HeadPlace,
    Means,
    answers_right,
    encode_prompt,
    function_vector,
    indirect_effects,
    mean_over,
    random_heads_vector,
    top_heads,
)
from utils.research.head_rows import NO_EDIT, Heads, LastTokenEdit
from utils.research.task_lists import Pair, Task, behavior_task, draw_prompts, load_task, sample_pairs
from utils.saes.requests import write_result
from utils.settings import VectorKind
from utils.vectors.files import find_vectors

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

log = logging.getLogger(__name__)

N_RANDOM = 3
"""Draws of the control."""
VECTORS = ("function vector", "right - shuffled", "right - none", "random heads")
"""The second and third are contrast vectors: right examples against shuffled ones, and against no examples."""
CONDITIONS = ("zero-shot", "shuffled")
KINDS = {"letter": VectorKind(), "answer": VectorKind("answer")}


@dataclass(frozen=True)
class Accuracy:
    """Share of test items whose most likely next token is the answer's first."""

    condition: str
    """zero-shot, shuffled, or few-shot (right examples)."""
    vector: str
    """One of VECTORS, or none."""
    layer: int | None
    """None without a vector, and where each item's is the best layer of the other half of the items."""
    share: Estimate


@dataclass(frozen=True, eq=False)
class TaskVectors:
    """What was made of a task's training pairs."""

    effects: Tensor
    """Indirect effects, [n_trials, n_layers, n_heads]."""
    places: list[HeadPlace]
    """The heads of the function vector."""
    function: Tensor
    """[d_model]"""
    contrasts: dict[str, Tensor]
    """Right minus shuffled, and minus no examples, at the last token of every layer, each [n_layers, d_model]."""
    random: list[Tensor]


@dataclass(frozen=True, eq=False)
class TaskResult:
    """A task's numbers."""

    task: Task
    vectors: TaskVectors
    accuracies: list[Accuracy]
    gains: dict[str, Estimate]
    """By condition: accuracy with the function vector minus with random heads', layers chosen on other items."""
    cosines: dict[str, list[float]]
    """Of the function vector with others, by their names: one number a layer; NaN where there is no vector."""
    effects: dict[str, Estimate]
    """Of a behavior: what its vectors do to the preference for the answer's text; empty for other tasks."""


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


# --- vectors ---------------------------------------------------------------------------------------


def make_vectors(
    request: FunctionRequest, model: "LlamaWrapper", heads: Heads, task: Task, rng: random.Random
) -> TaskVectors:
    """The function vector, the contrast vector, and the control."""
    n_shots = shots_of(request, task)
    asked = sample_pairs(task.training, request.n_prompts, rng)
    draw = rng.random()
    right, wrong = (
        _encoded(model, task, asked, n_shots, random.Random(draw), shuffled=shuffled) for shuffled in (False, True)
    )
    means = _mean(heads, right, f"{task.name}: right examples")
    shuffled = _mean(heads, wrong, f"{task.name}: shuffled examples")
    none = _mean(heads, _encoded(model, task, asked, 0, rng, shuffled=False), f"{task.name}: no examples")
    trials = _encoded(model, task, sample_pairs(task.training, request.n_trials, rng), n_shots, rng, shuffled=True)
    bar = progress(trials, desc=f"{task.name}: every head", unit="trial")
    effects = indirect_effects(heads, bar, means)
    places = top_heads(effects, request.n_heads)
    function = function_vector(heads, means, places)
    generator = torch.Generator().manual_seed(request.seed)
    norm = float(function.norm())
    controls = [random_heads_vector(heads, means, len(places), norm, generator, places) for _ in range(N_RANDOM)]
    contrasts = {VECTORS[1]: means.outputs - shuffled.outputs, VECTORS[2]: means.outputs - none.outputs}
    return TaskVectors(effects, places, function, contrasts, controls)


def shots_of(request: FunctionRequest, task: Task) -> int:
    return request.behavior_shots if task.name in request.behaviors else request.n_shots


def _encoded(
    model: "LlamaWrapper", task: Task, pairs: Sequence[Pair], n_shots: int, rng: random.Random, *, shuffled: bool
) -> list[EncodedPrompt]:
    prompts = draw_prompts(task, pairs, n_shots, rng, shuffled=shuffled)
    return [encode_prompt(model, prompt) for prompt in prompts]


def _mean(heads: Heads, prompts: Sequence[EncodedPrompt], label: str) -> Means:
    return mean_over(heads, progress(prompts, desc=label, unit="prompt"))


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


# --- what they do ----------------------------------------------------------------------------------


def measure_task(
    request: FunctionRequest,
    model: "LlamaWrapper",
    heads: Heads,
    task: Task,
    vectors: TaskVectors,
    rng: random.Random,
) -> tuple[list[Accuracy], dict[str, Estimate]]:
    """Accuracy on test items without examples and with shuffled ones, under each vector at each layer."""
    asked = task.test[: request.n_test]
    edits = [NO_EDIT, *_edits(request, vectors)]
    sets = {
        "few-shot": (_encoded(model, task, asked, shots_of(request, task), rng, shuffled=False), [NO_EDIT]),
        "zero-shot": (_encoded(model, task, asked, 0, rng, shuffled=False), edits),
        "shuffled": (_encoded(model, task, asked, shots_of(request, task), rng, shuffled=True), edits),
    }
    accuracies, gains = [], {}
    with progress(total=len(sets) * len(asked), desc=f"{task.name}: test items", unit="item") as bar:
        for condition, (prompts, done) in sets.items():
            right = answers_right(heads, prompts, done, bar.update).numpy()  # [n_edits, n_items]
            accuracies.append(Accuracy(condition, "none", None, _share(right[0])))
            if condition in CONDITIONS:
                by_layer = right[1:].reshape(len(request.layers), 3 + N_RANDOM, -1).astype(float)
                found, gains[condition] = _by_layer(request, condition, by_layer)
                accuracies += found
    return accuracies, gains


def _edits(request: FunctionRequest, vectors: TaskVectors) -> list[LastTokenEdit]:
    """For each layer the function vector, the contrast vectors of that layer, and the controls."""
    return [
        LastTokenEdit({}, Steering(layer, request.multiplier, vector))
        for layer in request.layers
        for vector in (vectors.function, *(one[layer] for one in vectors.contrasts.values()), *vectors.random)
    ]


def _by_layer(
    request: FunctionRequest, condition: str, right: "np.ndarray[Any, Any]"
) -> tuple[list[Accuracy], Estimate]:
    """Accuracies of each layer and of chosen layers, and the function vector's gain; from [n_layers, n, n_items]."""
    of_vectors = [*right[:, :3].swapaxes(0, 1), right[:, 3:].mean(axis=1)]  # each [n_layers, n_items]
    chosen = np.stack([best_of_other_half(one) for one in of_vectors])  # [n_vectors, n_items]
    found = []
    for name, by_layer, best in zip(VECTORS, of_vectors, chosen, strict=True):
        for layer, values in (*zip(request.layers, by_layer, strict=True), (None, best)):
            share = _mean_share(values, request.seed) if name == VECTORS[-1] else _share(values)
            found.append(Accuracy(condition, name, layer, share))
    return found, mean_estimates((chosen[0] - chosen[-1])[None], request.seed, (-1.0, 1.0))[0]


def best_of_other_half(values: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Each item's value at the layer that is best for the items of the other half, [n_items] from [n_layers, n_items].

    So that no item has a say in the layer at which it counts. Halves are the items at even and at odd places.
    """
    chosen = np.empty(values.shape[1])
    for half in (0, 1):
        chosen[half::2] = values[values[:, 1 - half :: 2].mean(axis=1).argmax(), half::2]
    return chosen


def _mean_share(values: "np.ndarray[Any, Any]", seed: int) -> Estimate:
    return mean_estimates(values[None], seed, (0.0, 1.0))[0]


def _share(right: "np.ndarray[Any, Any]") -> Estimate:
    return share_estimate(int(right.sum()), len(right), len(right))


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
