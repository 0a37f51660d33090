"""What one behavior's vector does to another behavior's questions: a matrix for each layer."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib import colormaps

from utils.data.estimates import Estimate
from utils.evaluation.metrics import mean_estimates
from utils.evaluation.results import ItemValues, align
from utils.evaluation.words import INTERVAL, INTERVAL_METHOD, against_the_name, behavior_label, in_order
from utils.figures.result_sets import ResultSet
from utils.figures.style import PAGE_WIDTH, figure_style, log_written, new_figure, save_figure, set_title
from utils.files.tables import Table
from utils.settings import SteeringSettings

log = logging.getLogger(__name__)

Cells = Mapping[tuple[str, str], Estimate]
"""(behavior of the vector, behavior evaluated) -> change with its interval; without the missing ones."""


@dataclass(frozen=True)
class CrossMatrix:
    """The changes at one layer."""

    layer: int
    low: float
    """The lowest multiplier, from which the change is measured."""
    high: float
    """The highest one, to which it is measured."""
    sources: tuple[str, ...]
    """Behaviors of the vectors (rows)."""
    targets: tuple[str, ...]
    """Behaviors evaluated (columns)."""
    cells: Cells


def plot_cross_behavior(results: ResultSet) -> int:
    """A heatmap for each layer with results under another behavior's vector; returns how many.

    A cell is the mean change of p(answer matching the evaluated behavior) from the lowest to the highest
    multiplier (asked for, or else found at that layer under another behavior's vector), on the same items,
    with its 95% bootstrap interval. The diagonal is plain steering. Missing cells stay blank and are
    noted in `results.missing`.
    """
    n_written = 0
    found = [(target, at) for target in results.files for at in cross_settings(results, target)]
    asked = set(results.request.layers or {at.layer for _, at in found})
    for layer in sorted(asked & {at.layer for _, at in found}):
        at_layer = [(target, at) for target, at in found if at.layer == layer]
        multipliers = sorted(set(results.request.multipliers or {at.multiplier for _, at in at_layer}))
        if len(multipliers) < 2:
            log.warning("no cross-behavior matrix of layer %d: a change needs results at two multipliers", layer)
            continue
        matrix = measure_matrix(results, layer, multipliers[0], multipliers[-1], at_layer)
        if matrix.cells:
            n_written += draw_matrix(results, matrix)
    return n_written


def cross_settings(results: ResultSet, target: str) -> list[SteeringSettings]:
    """Results of a behavior that were steered with another one's vector and are plain otherwise."""
    plain = results.plain(target)
    return [
        at
        for at in results.files[target].paths
        if at.vector_behavior is not None and replace(at.at(0, 0.0), vector_behavior=None) == plain
    ]


def measure_matrix(
    results: ResultSet, layer: int, low: float, high: float, found: Sequence[tuple[str, SteeringSettings]]
) -> CrossMatrix:
    named = {at.vector_behavior for _, at in found if at.vector_behavior is not None}
    targets = tuple(in_order({target for target, _ in found} | (named & set(results.request.behaviors))))
    sources = tuple(in_order(named))
    cells = {}
    for source in sources:
        for target in targets:
            ends = [_result_at(results, source, target, layer, multiplier) for multiplier in (low, high)]
            if ends[0] is not None and ends[1] is not None:
                before, after = align([ends[0], ends[1]])
                (change,) = mean_estimates((after.values - before.values)[None, :], results.request.seed)
                if change.exists:
                    cells[source, target] = change
    return CrossMatrix(layer, low, high, sources, targets, cells)


def _result_at(results: ResultSet, source: str, target: str, layer: int, multiplier: float) -> ItemValues | None:
    """A cell's results at one multiplier; at 0 nothing is added, so plain results serve as well."""
    plain = results.plain(target).at(layer, multiplier)
    wanted = plain if source == target else replace(plain, vector_behavior=source)
    files = results.files.get(target)
    items = files.get(wanted) if files else None
    if items is None and files and multiplier == 0:
        items = files.get(plain)
    if items is None or not items.n_scored:
        results.missing.add(wanted)
        return None
    return items


def matrix_table(matrix: CrossMatrix) -> Table:
    columns = (
        "vector_behavior",
        "behavior",
        "layer",
        "from_multiplier",
        "to_multiplier",
        "change",
        "ci_low",
        "ci_high",
        "n",
        "n_total",
    )
    rows = [
        (source, target, matrix.layer, matrix.low, matrix.high, at.value, at.low, at.high, at.n, at.n_total)
        for (source, target), at in matrix.cells.items()
    ]
    notes = (
        "change: mean over n of n_total items of p(answer matching `behavior`) at to_multiplier minus that at "
        f"from_multiplier, steered with the vector of `vector_behavior`; ci: {INTERVAL_METHOD}",
    )
    return Table(columns, rows, notes)


def draw_matrix(results: ResultSet, matrix: CrossMatrix) -> int:
    """Orange: more of the matching answer than before, purple: less; white is 0, grey is missing."""
    n_rows, n_columns = len(matrix.sources), len(matrix.targets)
    values = np.full((n_rows, n_columns), np.nan)
    for (source, target), change in matrix.cells.items():
        values[matrix.sources.index(source), matrix.targets.index(target)] = change.value
    limit = float(np.nanmax(np.abs(values))) or 1.0
    stem = results.stem(
        results.plain(matrix.targets[0]).at(matrix.layer, 0.0), "multiplier", "behavior", prefix="cross_behavior_"
    )
    with figure_style():
        figure, ax = new_figure(PAGE_WIDTH, 1.9 + 0.42 * n_rows)
        colors = colormaps["PuOr_r"].with_extremes(bad="#bbbbbb")
        image = ax.imshow(np.ma.masked_invalid(values), cmap=colors, vmin=-limit, vmax=limit, aspect="auto")
        ax.grid(False)
        ax.tick_params(length=0)
        ax.set_xticks(range(n_columns), [behavior_label(b) for b in matrix.targets], rotation=30, ha="right")
        ax.set_yticks(range(n_rows), [behavior_label(b) for b in matrix.sources])
        ax.set_xlabel("behavior evaluated")
        ax.set_ylabel("behavior of the vector")
        for (source, target), change in matrix.cells.items():
            row, column = matrix.sources.index(source), matrix.targets.index(target)
            mark = "*" if change.low > 0 or change.high < 0 else ""
            color = "white" if abs(change.value) > 0.65 * limit else "black"
            ax.text(column, row, f"{change.value:+.3f}{mark}", ha="center", va="center", color=color, fontsize=6)
        bar = figure.colorbar(image, ax=ax, aspect=25, pad=0.02)
        bar.set_label(f"change of p(matching)\nfrom multiplier {matrix.low:g} to {matrix.high:g}")
        missing = "grey: no results" if np.isnan(values).any() else ""
        title = results.title("Vectors on other behaviors", f"layer {matrix.layer}")
        warning = against_the_name(matrix.targets, results.result_type)
        set_title(figure, title, f"*: the {INTERVAL} leaves out 0", missing, warning)
        return log_written(save_figure(figure, stem, matrix_table(matrix)))
