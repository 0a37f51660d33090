"""A task's vectors, and what they do to its test items."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from utils.cli.progress import progress
from utils.data.estimates import Estimate, share_estimate
from utils.evaluation.metrics import mean_estimates
from utils.model.steering import Steering
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
from utils.research.task_lists import Pair, Task, draw_prompts, sample_pairs

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

N_RANDOM = 3
"""Draws of the control."""
VECTORS = ("function vector", "right - shuffled", "right - none", "random heads")
"""The second and third are contrast vectors: right examples against shuffled ones, and against no examples."""
CONDITIONS = ("zero-shot", "shuffled")


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
