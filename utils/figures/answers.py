"""The figure of free answers: the behavior's metric, fluency below it, and where text falls apart."""

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from utils.behaviors import load_behavior
from utils.data.estimates import Estimate
from utils.evaluation.answer_effects import (
    DISTINCT_2_RATIO,
    EMPTY_SHARE,
    PERPLEXITY_FLOOR,
    PERPLEXITY_RATIO,
    AnswerPoint,
    FluencyRange,
    MeasuredEffect,
    by_condition,
    measure_answers,
)
from utils.evaluation.answer_metrics import measures_of
from utils.evaluation.answer_table import answers_text, heading
from utils.evaluation.effects import ALPHA
from utils.evaluation.metric_files import load_measured
from utils.evaluation.metric_run import MetricPlan
from utils.evaluation.words import (
    FAMILY,
    HOLDS,
    INTERVAL_METHOD,
    SHARE_INTERVAL_METHOD,
    TEST,
    behaviors_of,
    condition_label,
)
from utils.figures.lines import (
    LineStyle,
    draw_line,
    layer_axis,
    legend_below,
    multiplier_axis,
    multiplier_styles,
    nth_style,
)
from utils.figures.style import COLUMN_WIDTH, VERMILLION, figure_style, log_written, new_figure, save_figure, set_title
from utils.files.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_LAYERS = 6
"""As lines over the multiplier; more are the x axis themselves."""


@dataclass(frozen=True)
class _Line:
    label: str
    style: LineStyle
    points: Sequence[AnswerPoint]
    place: Callable[[AnswerPoint], float]
    """Where a point stands on the x axis."""


@dataclass(frozen=True)
class _FluencyPanel:
    label: str
    of: Callable[[AnswerPoint], float]
    bound: Callable[[FluencyRange], float]
    is_share: bool


_FLUENCY = (
    _FluencyPanel(
        "perplexity", lambda point: point.fluency.perplexity, lambda limits: limits.highest_perplexity, is_share=False
    ),
    _FluencyPanel(
        "distinct-2", lambda point: point.fluency.distinct_2, lambda limits: limits.lowest_distinct_2, is_share=True
    ),
)


def report_metrics(plan: MetricPlan, seed: int) -> list[str]:
    """Draw what a plan has measured, a figure for each behavior, model and condition; returns their tables as text."""
    paths = plan.request.paths
    texts = []
    with behaviors_of(paths):
        for behavior in plan.request.behaviors:
            about = load_behavior(paths, behavior)
            measured = [load_measured(file) for file in (*plan.done, *plan.written) if file.about.id == behavior]
            for group in by_condition(measured):
                points = measure_answers(group, measures_of(about.metric), seed, measured)
                stem = paths.analysis(behavior, f"answers_{points[0].settings.describe('layer', 'multiplier')}")
                log_written(plot_answers(stem, heading(about, points), points, f"matching = {about.matching}"))
                texts.append(answers_text(about, points))
    return texts


def answers_table(points: Sequence[AnswerPoint]) -> Table:
    """A row for each layer, multiplier and measure; the fluency of the answers stands in each."""
    rows = []
    for point in points:
        fluency, limits = point.fluency, point.range
        at = (
            point.settings.behavior,
            condition_label(point.settings),
            point.settings.layer,
            point.settings.knob,
            point.settings.multiplier,
        )
        beside = (
            fluency.perplexity,
            limits.highest_perplexity if limits else math.nan,
            fluency.distinct_2,
            limits.lowest_distinct_2 if limits else math.nan,
            fluency.n_empty,
            ", ".join(point.faults) if limits else "unknown",
        )
        rows += [(*at, *_cells(effect), *beside) for effect in (*point.effects, point.lengths, point.repetition)]
    return Table(_COLUMNS, rows, _NOTES)


_COLUMNS = (
    *("behavior", "condition", "layer", "knob", "multiplier", "measure"),
    *("mean", "ci_low", "ci_high", "n", "n_total"),
    *("change", "change_low", "change_high", "n_paired", "p", "p_family", "holds"),
    *("perplexity", "highest_perplexity", "distinct_2", "lowest_distinct_2", "n_empty", "falls_apart"),
)
_NOTES = (
    "mean: over the n answers for which the measure is defined, of n_total; ci: "
    f"{INTERVAL_METHOD}, of shares (has_match, begins_with) {SHARE_INTERVAL_METHOD}",
    "change: mean difference to multiplier 0 on the same n_paired questions, with its bootstrap interval",
    f"p: {TEST}; p_family: {FAMILY}; holds: p_family < {ALPHA:g}",
    "perplexity: median over answers, under the model without steering; distinct_2: mean over answers; n_empty: "
    "answers without text, for which nothing but their length is defined",
    f"falls_apart: perplexity above {PERPLEXITY_RATIO:g} times that of multiplier 0 and above {PERPLEXITY_FLOOR:g}, "
    f"distinct-2 below {DISTINCT_2_RATIO:g} times that of multiplier 0, or more than {EMPTY_SHARE:.0%} empty",
)


def _cells(effect: MeasuredEffect) -> tuple[object, ...]:
    mean, change = effect.mean, effect.change
    return (
        effect.measure.name,
        *(mean.value, mean.low, mean.high, mean.n, mean.n_total),
        *(change.value, change.low, change.high, change.n, effect.p_value, effect.p_family, effect.holds),
    )


def plot_answers(stem: Path, title: str, points: Sequence[AnswerPoint], note: str = "") -> list[Path]:
    """One behavior under one condition: a panel for each measure of its metric, then perplexity and distinct-2.

    Args:
        stem: Path without suffix.
        title: Of the figure.
        points: Of one condition, by layer and multiplier.
        note: What a high value means.
    """
    measures = [effect.measure for effect in points[0].effects]
    fluency = [one for one in _FLUENCY if any(math.isfinite(one.of(point)) for point in points)]
    heights = [*[1.5] * len(measures), *[0.9] * len(fluency)]
    with figure_style():
        figure, axes = new_figure(
            COLUMN_WIDTH, 1.1 + sum(heights), nrows=len(heights), sharex=True, height_ratios=heights, squeeze=False
        )
        panels, lines = list(axes[:, 0]), _lines(points)
        for place, measure in enumerate(measures):
            for line in lines:
                _draw_effect(panels[place], line, [point.effects[place] for point in line.points], len(lines))
            panels[place].set_ylabel(_wrapped(measure.label))
        for ax, one in zip(panels[len(measures) :], fluency, strict=True):
            _draw_fluency(ax, lines, one, points)
        _label_x(panels[-1], points)
        set_title(figure, title, note, _reading_note(points))
        if len(lines) > 1:
            legend_below(figure, panels[0])
        return save_figure(figure, stem, answers_table(points))


def _lines(points: Sequence[AnswerPoint]) -> list[_Line]:
    """A line for each layer over the multipliers; where there are many layers, for each multiplier over the layers."""
    layers = sorted({point.settings.layer for point in points})
    if len(layers) <= _MOST_LAYERS:
        return [
            _Line(
                f"layer {layer}",
                nth_style(index),
                [point for point in points if point.settings.layer == layer],
                lambda point: point.settings.multiplier,
            )
            for index, layer in enumerate(layers)
        ]
    styles = multiplier_styles(point.settings.multiplier for point in points)
    return [
        _Line(
            f"{multiplier:g}",
            styles[multiplier],
            [point for point in points if point.settings.multiplier == multiplier],
            lambda point: point.settings.layer,
        )
        for multiplier in sorted(styles, reverse=True)
    ]


def _label_x(ax: "Axes", points: Sequence[AnswerPoint]) -> None:
    layers = [point.settings.layer for point in points]
    if len(set(layers)) <= _MOST_LAYERS:
        multiplier_axis(ax, [point.settings.multiplier for point in points])
        if points[0].settings.knob == "strength":
            ax.set_xlabel("strength (share of the layer's residual norm)")
    else:
        layer_axis(ax, layers)


def _draw_effect(ax: "Axes", line: _Line, effects: Sequence[MeasuredEffect], n_lines: int) -> None:
    xs = [line.place(point) for point in line.points]
    estimates = [effect.mean for effect in effects]
    filled = [effect.holds for effect in effects]
    draw_line(ax, xs, estimates, line.label, line.style, filled, shift=0.0 if n_lines == 1 else None)
    _mark_faults(ax, line, [estimate.value for estimate in estimates])


def _draw_fluency(ax: "Axes", lines: Sequence[_Line], shown: _FluencyPanel, points: Sequence[AnswerPoint]) -> None:
    """With a dotted line at the bound, which is the same for all layers: so are their unsteered answers."""
    for line in lines:
        values = [shown.of(point) for point in line.points]
        estimates = [Estimate(value, math.nan, math.nan, 0, 0) for value in values]
        draw_line(ax, [line.place(point) for point in line.points], estimates, line.label, line.style)
        _mark_faults(ax, line, values)
    bounds = [shown.bound(point.range) for point in points if point.range]
    if bounds and math.isfinite(bounds[0]):
        ax.axhline(bounds[0], color=VERMILLION, linestyle=":", linewidth=0.8, zorder=1)
    ax.set_ylabel(shown.label)
    if shown.is_share:
        ax.set_ylim(0, 1.05)
    else:
        ax.set_yscale("log")
        _plain_ticks(ax)


def _mark_faults(ax: "Axes", line: _Line, values: Sequence[float]) -> None:
    """A cross over each point whose text falls apart."""
    broken = [index for index, point in enumerate(line.points) if point.faults]
    ax.plot(
        [line.place(line.points[index]) for index in broken],
        [values[index] for index in broken],
        linestyle="none",
        marker="x",
        color=VERMILLION,
        markersize=6,
        markeredgewidth=1.2,
        zorder=5,
    )


def _plain_ticks(ax: "Axes") -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    ax.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _wrapped(label: str) -> str:
    return "\n".join(textwrap.wrap(label, 26))


def _reading_note(points: Sequence[AnswerPoint]) -> str:
    counts = sorted({point.fluency.n_answers for point in points})
    n = f"n={counts[0]}" if len(counts) == 1 else f"n={counts[0]}-{counts[-1]}"
    means = f"mean with 95% interval over answers, {n}; " if points[0].effects else f"{n}; "
    filled = f"filled: {HOLDS}; " if points[0].effects else ""
    marked = "x: text falls apart" if any(point.range for point in points) else "no multiplier 0 to compare with"
    return f"{means}{filled}{marked}"
