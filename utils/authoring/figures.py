"""The figure of the free answers: what steering does to them beside chance and the prompts, and their fluency."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.authoring.demo import PROMPT, RANDOM, VECTOR, DemoPoint
from utils.data.estimates import Estimate
from utils.evaluation.effects import ALPHA
from utils.evaluation.words import FAMILY, INTERVAL_METHOD, TEST
from utils.figures.lines import LineStyle, draw_line, legend_below, multiplier_axis
from utils.figures.style import BLUE, COLUMN_WIDTH, ORANGE, figure_style, new_figure, save_figure, set_title
from utils.files.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS = {VECTOR: "the vector", RANDOM: "random vector of the same norm", PROMPT: "system prompts, no steering"}
_STYLES = {VECTOR: LineStyle(BLUE, "o", "-"), RANDOM: LineStyle("0.55", "s", "None")}


def plot_demo(stem: Path, points: Sequence[DemoPoint], title: str, note: str, value_label: str) -> None:
    """Draw and save the figure with its data."""
    with figure_style():
        figure, axes = new_figure(COLUMN_WIDTH, 3.9, nrows=3, sharex=True, height_ratios=(2.0, 0.9, 0.9))
        _draw_values(axes[0], points)
        axes[0].set_ylabel(value_label)
        _draw_fluency(axes[1], points, "perplexity")
        _draw_fluency(axes[2], points, "distinct-2")
        multiplier_axis(axes[2], [one.multiplier for one in points if one.condition == VECTOR])
        set_title(figure, title, note)
        legend_below(figure, axes[0])
        save_figure(figure, stem, demo_table(points, value_label))


def _draw_values(ax: "Axes", points: Sequence[DemoPoint]) -> None:
    for condition, style in _STYLES.items():
        own = [one for one in points if one.condition == condition]
        xs, filled = [one.multiplier for one in own], [one.p_family < ALPHA for one in own]
        draw_line(ax, xs, [one.value for one in own], LABELS[condition], style, filled, shift=0.0)
    for one in points:
        if one.condition == PROMPT:
            label = LABELS[PROMPT] if one.multiplier > 0 else None
            dashes = "--" if one.multiplier > 0 else "-."
            ax.axhline(one.value.value, color=ORANGE, linewidth=0.8, linestyle=dashes, label=label, zorder=1)
            ax.axhspan(one.value.low, one.value.high, color=ORANGE, alpha=0.12, linewidth=0, zorder=0)


def _draw_fluency(ax: "Axes", points: Sequence[DemoPoint], which: str) -> None:
    for condition, style in _STYLES.items():
        own = [one for one in points if one.condition == condition]
        values = [one.fluency.perplexity if which == "perplexity" else one.fluency.distinct_2 for one in own]
        estimates = [Estimate(value, math.nan, math.nan, 0, 0) for value in values]
        draw_line(ax, [one.multiplier for one in own], estimates, LABELS[condition], style)
    ax.set_ylabel(which)
    ax.set_ylim(bottom=0)


def demo_table(points: Sequence[DemoPoint], value_label: str) -> Table:
    columns = (
        *("condition", "multiplier", "mean", "ci_low", "ci_high", "n", "n_total"),
        *("change", "change_low", "change_high", "p", "p_family", "perplexity", "distinct_2", "n_empty", "falls_apart"),
    )
    rows = [
        (
            *(one.condition, one.multiplier, one.value.value, one.value.low, one.value.high),
            *(one.value.n, one.value.n_total, one.change.value, one.change.low, one.change.high),
            *(one.p_value, one.p_family, one.fluency.perplexity, one.fluency.distinct_2, one.fluency.n_empty),
            ", ".join(one.faults),
        )
        for one in points
    ]
    return Table(
        columns,
        rows,
        (
            f"mean: {' '.join(value_label.split())}; with its {INTERVAL_METHOD}",
            "change: mean difference to no steering on the same questions, with its bootstrap interval",
            f"p: {TEST}; p_family: {FAMILY}",
            "prompt: answers under the system prompt for the behavior (1) and against it (-1), without steering",
        ),
    )
