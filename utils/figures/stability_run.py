"""A run of analyze_vectors.py --stability: from saved activations to figures, tables and results."""

import itertools
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from utils.cli.progress import progress
from utils.errors import UserError
from utils.evaluation.words import behavior_label, of_its_root
from utils.figures.entries import ENTRY, report_entry
from utils.figures.requests import FigureCounts, VectorsRequest, product_suffix
from utils.figures.stability import (
    PairKey,
    curve_rows,
    similarity_figure,
    similarity_table,
    stability_figure,
    stability_line,
    stability_table,
)
from utils.figures.vector_run import RootOf, make_figure, scope, shows_these_numbers
from utils.figures.vector_sets import PlannedFigure
from utils.files.tables import with_suffix
from utils.files.writing import write_json
from utils.model.checkpoints import ModelChoice
from utils.settings import VectorKind
from utils.vectors.differences import load_halves
from utils.vectors.estimators import MEAN
from utils.vectors.files import choice_of_label, find_activations, find_vectors, generate_command
from utils.vectors.similarity import FloatArray
from utils.vectors.stability import PairSimilarity, Stability, pair_similarity, stability_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Planned:
    """A figure, and the result beside it."""

    figure: PlannedFigure
    result: Mapping[str, Any]

    def make(self, overwrite: bool) -> bool:
        path = with_suffix(self.figure.stem, ".json")
        if not overwrite and path.exists() and shows_these_numbers(self.figure):
            return False
        path.unlink(missing_ok=True)
        make_figure(self.figure, overwrite=True)
        write_json(path, dict(self.result))
        return True


@of_its_root
def plot_stability(request: VectorsRequest, seed: int, root_of: RootOf | None = None) -> tuple[list[str], FigureCounts]:
    """Say how much each vector depends on its pairs, and how alike behaviors are beyond that.

    Args:
        request: Which vectors.
        seed: Of everything random.
        root_of: As for `plot_vectors`.

    Returns:
        Lines for the terminal, and how many figures were written and skipped.

    Raises:
        UserError: If activations were not saved, or are not those of the vectors.
    """
    if request.kind.method != MEAN:
        raise UserError(f"--stability is of mean-difference vectors, not of --method {request.kind.method}")
    choice = request.choice or _only_model(request)
    layers_of = _layers_asked_for(request, choice)
    root = None if root_of is None else root_of(choice.label)
    jobs = [(behavior, layer) for behavior, layers in layers_of.items() for layer in layers]
    differences = {job: _differences(request, choice, *job, root) for job in jobs}
    found: dict[str, dict[int, Stability]] = {}
    for behavior, layer in progress(jobs, desc="stability"):
        found.setdefault(behavior, {})[layer] = stability_of(differences[behavior, layer], seed)
    planned = [_plan_behavior(request, choice, behavior, of_layers, seed) for behavior, of_layers in found.items()]
    if len(layers_of) > 1 and (similar := _similarities(layers_of, differences, seed)):
        planned.append(_plan_similarities(request, choice, similar, seed))
    n_written = sum(one.make(request.overwrite) for one in planned)
    lines = [
        stability_line(behavior, layer, one) for behavior, of in found.items() for layer, one in sorted(of.items())
    ]
    return lines, FigureCounts(n_written, len(planned) - n_written)


def _only_model(request: VectorsRequest) -> ModelChoice:
    """
    Raises:
        UserError: If there are vectors of none, or of several.
    """
    labels = {
        label for behavior in request.behaviors for label in find_vectors(request.paths, behavior, kind=request.kind)
    }
    if len(labels) != 1:
        there = ", ".join(sorted(labels)) or "none yet"
        raise UserError(f"name the model with --model_size or --model (models with vectors: {there})")
    return choice_of_label(next(iter(labels)))


def _layers_asked_for(request: VectorsRequest, choice: ModelChoice) -> dict[str, list[int]]:
    """Those that were named, or else those whose activations are there.

    Raises:
        UserError: If a behavior has none.
    """
    if request.layers:
        return {behavior: sorted(set(request.layers)) for behavior in request.behaviors}
    reading = VectorKind(request.kind.reading, MEAN, request.kind.origin)
    found = {
        behavior: sorted(find_activations(request.paths, behavior, f"{choice.label}{reading.suffix}"))
        for behavior in request.behaviors
    }
    if lacking := [behavior for behavior, layers in found.items() if not layers]:
        make = generate_command(request.paths, lacking, [], choice, activations=True, kind=request.kind)
        raise UserError(f"no saved activations of {choice.label} for {', '.join(lacking)}; run: {make}")
    return found


def _differences(
    request: VectorsRequest, choice: ModelChoice, behavior: str, layer: int, root: FloatArray | None
) -> FloatArray:
    positive, negative = load_halves(request.paths, choice, behavior, layer, request.kind)
    found: FloatArray = (positive.double() - negative.double()).numpy()
    if root is None:
        return found
    if root.shape[0] != found.shape[1]:
        raise UserError(f"{choice.label}: activations of width {found.shape[1]}, but the model has {root.shape[0]}")
    return found @ root


def _similarities(
    layers_of: Mapping[str, list[int]], differences: Mapping[tuple[str, int], FloatArray], seed: int
) -> dict[int, dict[PairKey, PairSimilarity]]:
    """Of every two behaviors, at the layers that all of them have."""
    shared = sorted(set.intersection(*(set(layers) for layers in layers_of.values())))
    return {
        layer: {
            (one, other): pair_similarity(differences[one, layer], differences[other, layer], seed)
            for one, other in itertools.combinations(layers_of, 2)
        }
        for layer in progress(shared, desc="similarity")
    }


def _made_by(request: VectorsRequest, choice: ModelChoice) -> str:
    return f"{choice.label}{request.kind.suffix}{product_suffix(request.inner_product)}"


def _settings(request: VectorsRequest, choice: ModelChoice, seed: int) -> dict[str, Any]:
    kind = request.kind
    return {"model": choice.label, "read": kind.reading, "inner_product": request.inner_product, "seed": seed}


def _plan_behavior(
    request: VectorsRequest, choice: ModelChoice, behavior: str, found: Mapping[int, Stability], seed: int
) -> _Planned:
    made_by = _made_by(request, choice)
    stem = request.paths.analysis(behavior, f"stability_{scope(request, with_behaviors=False)}{made_by}")
    title = f"{behavior_label(behavior)}, {made_by}: how much the vector depends on its pairs"
    figure = PlannedFigure(stem, stability_table(title, found), partial(stability_figure, title, found))
    results = [_clean({"layer": layer, **asdict(one)}) for layer, one in sorted(found.items())]
    for one in results:
        one.pop("curve")
    settings = {**_settings(request, choice, seed), "behavior": behavior}
    entry = report_entry(choice.label, behavior, request.kind, "How much the vector depends on its pairs", [stem])
    return _Planned(figure, {"settings": settings, "results": results, "curve": curve_rows(found), ENTRY: entry})


def _plan_similarities(
    request: VectorsRequest, choice: ModelChoice, found: Mapping[int, Mapping[PairKey, PairSimilarity]], seed: int
) -> _Planned:
    made_by = _made_by(request, choice)
    stem = request.paths.analysis(f"similarity_of_behaviors_{scope(request, with_behaviors=True)}{made_by}")
    title = f"{made_by}: how alike the behaviors are"
    figure = PlannedFigure(stem, similarity_table(title, found), partial(similarity_figure, title, found))
    results = [
        _clean({"layer": layer, "behaviors": list(pair), **asdict(one)})
        for layer, of_layer in sorted(found.items())
        for pair, one in of_layer.items()
    ]
    entry = report_entry(choice.label, None, request.kind, "How alike the behaviors are", [stem])
    return _Planned(figure, {"settings": _settings(request, choice, seed), "results": results, ENTRY: entry})


def _clean(value: Any) -> Any:
    """With null for what is not defined or infinite, which JSON does not know."""
    if isinstance(value, dict):
        return {key: _clean(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(one) for one in value]
    return None if isinstance(value, float | np.floating) and not math.isfinite(value) else value
