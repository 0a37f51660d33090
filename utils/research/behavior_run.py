"""A run of behavior_geometry.py: pair differences, their statistics, and two knobs tried on held-out items."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from utils.cli.progress import progress
from utils.data.estimates import Estimate
from utils.data.records import load_text_pairs
from utils.errors import UserError
from utils.evaluation.metrics import mean_estimates
from utils.evaluation.preferences import answer_pair, preferences
from utils.model.steering import Steering, Steerings
from utils.research.behavior_request import BehaviorsRequest, BehaviorTree, Estimator
from utils.research.behavior_statistics import CONTROLS, STATISTICS, Compared, compare, layout_of
from utils.research.concept_layout import Layout
from utils.research.concept_run import unembedding_of
from utils.research.concept_space import ConceptSpace, FloatArray, whiten
from utils.research.concept_statistics import Vectors
from utils.research.concept_summary import estimate_json, interval
from utils.saes.requests import write_result
from utils.vectors.norms import layer_norms
from utils.vectors.plan import load_pairs_for

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

log = logging.getLogger(__name__)

RANDOM = "random vector"
FEWEST_PAIRS = 8
GRID = (-1, 0, 1)


@dataclass(frozen=True)
class Found:
    """What a run found out."""

    statistics: dict[str, Compared]
    effects: dict[str, dict[str, Estimate]]
    """Knob -> behavior -> preference at +strength minus at -strength, in the parent's sense, nats per token."""
    grids: dict[str, dict[tuple[int, int], Estimate]]
    """Behavior -> (steps of the parent's knob, of its own) -> change of its preference, in the parent's sense."""


def run_behaviors(request: BehaviorsRequest, tree: BehaviorTree, model: "LlamaWrapper") -> list[str]:
    """Read, measure, steer, draw, write; the lines of the summary.

    Raises:
        UserError: If pairs are missing, or too few.
    """
    space = whiten(unembedding_of(model)) if request.inner_product == "causal" else None
    x, counts = pair_differences(request, tree, model)
    if space is not None:
        x = x @ space.root
    parent_of = [parent for parent, children in tree.parents.items() for _ in children]
    layout = layout_of(parent_of, list(tree.signs), counts, request.seed)
    statistics = compare(x, layout, request.n_draws, np.random.default_rng(request.seed))
    knobs = make_knobs(x, layout, space, request.seed, request.estimator)
    effects, grids = try_knobs(request, tree, model, layout, knobs)
    found = Found(statistics, effects, grids)
    from utils.research.behavior_figures import plot_behaviors

    plot_behaviors(found, tree, request)
    made = {**model.provenance(), "command": request.command}
    write_result(request.result_path, request.describe(tree), made, as_json(found, counts, tree))
    return summary_lines(found, tree)


def pair_differences(
    request: BehaviorsRequest, tree: BehaviorTree, model: "LlamaWrapper"
) -> tuple[FloatArray, list[int]]:
    """Matching minus other answer, mean over the answer's tokens, times the behavior's sign; [n_rows, d_model].

    And how many rows each behavior has.
    """
    rows, counts = [], []
    for behavior, sign in tree.signs.items():
        pairs = load_pairs_for(request.paths, behavior, "answer").pairs[: request.n_pairs]
        if len(pairs) < FEWEST_PAIRS:
            raise UserError(f"{behavior}: {len(pairs)} pairs, but its vector needs {FEWEST_PAIRS}")
        found = torch.empty(len(pairs), model.d_model, dtype=torch.float64)
        with progress(total=len(pairs), desc=f"{behavior}: pairs", unit="pair") as bar:
            for indices, positive, negative in model.answer_activations(pairs, [request.layer], read="answer"):
                found[list(indices)] = (positive[:, 0].double() - negative[:, 0].double()) * sign
                bar.update(len(indices))
        rows.append(found.numpy())
        counts.append(len(pairs))
    return np.concatenate(rows), counts


# --- knobs -----------------------------------------------------------------------------------------


def make_knobs(
    x: FloatArray, layout: Layout, space: ConceptSpace | None, seed: int, estimator: Estimator = "concept"
) -> dict[str, FloatArray]:
    """Each parent's vector, each child's minus its parent's, and a random one; [d_model] of length 1."""
    if estimator == "mean":
        parents = np.stack([x[layout.of_parent(parent)].mean(axis=0) for parent in range(len(layout.parents))])
        children = np.stack([x[layout.of_child(child)].mean(axis=0) for child in range(len(layout.children))])
    else:
        vectors = Vectors(x, layout, np.ones(len(x), dtype=bool))
        parents, children = vectors.parents, vectors.children
    knobs = dict(zip(layout.parents, parents, strict=True))
    for child, name in enumerate(layout.children):
        knobs[name] = children[child] - parents[layout.parent_of[child]]
    if space is not None:
        knobs = {name: space.inverse_root @ vector for name, vector in knobs.items()}
    knobs[RANDOM] = np.random.default_rng(seed).standard_normal(x.shape[1])
    return {name: vector / np.linalg.norm(vector) for name, vector in knobs.items()}


def try_knobs(
    request: BehaviorsRequest,
    tree: BehaviorTree,
    model: "LlamaWrapper",
    layout: Layout,
    knobs: Mapping[str, FloatArray],
) -> tuple[dict[str, dict[str, Estimate]], dict[str, dict[tuple[int, int], Estimate]]]:
    """Effects of every knob on every behavior, and for every behavior the grid of its parent's knob and its own."""
    unit = request.strength * layer_norms(model, request.paths)[request.layer]
    effects: dict[str, dict[str, Estimate]] = {name: {} for name in knobs}
    grids = {}
    for child, (behavior, sign) in enumerate(tree.signs.items()):
        parent = layout.parents[layout.parent_of[child]]

        def turned(steps: Mapping[str, int]) -> Steerings:
            return tuple(
                Steering(request.layer, unit * step, torch.from_numpy(knobs[name]))
                for name, step in steps.items()
                if step
            )

        cells = [(a, b) for a in GRID for b in GRID]
        settings = [{name: step} for name in knobs for step in (1, -1)] + [{parent: a, behavior: b} for a, b in cells]
        items = load_text_pairs(request.paths.test_dataset(behavior, "answer_text"))[: request.n_items]
        pairs = [answer_pair(model.chat_format, item) for item in items]
        found = sign * preferences(model, pairs, [turned(one) for one in settings], label=f"{behavior}: held-out items")
        both = found[0 : 2 * len(knobs) : 2] - found[1 : 2 * len(knobs) : 2]
        for name, estimate in zip(knobs, mean_estimates(both, request.seed), strict=True):
            effects[name][behavior] = estimate
        grid = found[2 * len(knobs) :]
        changes = mean_estimates(grid - grid[cells.index((0, 0))], request.seed)
        grids[behavior] = dict(zip(cells, changes, strict=True))
    return effects, grids


# --- files -----------------------------------------------------------------------------------------


def as_json(found: Found, counts: Sequence[int], tree: BehaviorTree) -> dict[str, Any]:
    return {
        "n_pairs_of": dict(zip(tree.signs, counts, strict=True)),
        "statistics": {
            name: {
                "value": one.value,
                **{control: estimate_json(estimate) for control, estimate in one.controls.items()},
            }
            for name, one in found.statistics.items()
        },
        "effects": {
            knob: {behavior: estimate_json(estimate) for behavior, estimate in row.items()}
            for knob, row in found.effects.items()
        },
        "grids": {
            behavior: [{"parent": a, "own": b, **estimate_json(estimate)} for (a, b), estimate in grid.items()]
            for behavior, grid in found.grids.items()
        },
    }


def summary_lines(found: Found, tree: BehaviorTree) -> list[str]:
    """The summary for the terminal."""
    lines = []
    for name, what in STATISTICS.items():
        one = found.statistics[name]
        beside = "; ".join(f"{control} {interval(one.controls[control])}" for control in CONTROLS)
        lines.append(f"{what:64} {one.value:+.3f}   {beside}")
    lines.append("effect of a knob on held-out items, + minus -, nats per token:")
    for knob, row in found.effects.items():
        cells = "  ".join(f"{behavior} {interval(estimate)}" for behavior, estimate in row.items())
        parent = next((p for p, children in tree.parents.items() if knob in children), None)
        lines.append(f"  {knob if parent is None else f'{knob} - {parent}'}: {cells}")
    return lines
