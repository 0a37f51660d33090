"""Figures of the effect by layer: the change from multiplier 0, and the level as a thin reference."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes

from utils.evaluation.effects import Point
from utils.evaluation.words import HOLDS, INTERVAL, VALUE_LABELS, count_note
from utils.figures.by_multiplier import Series
from utils.figures.lines import (
    LAYER_LABEL,
    dodge,
    draw_level,
    draw_line,
    hide_beyond,
    layer_axis,
    legend_below,
    value_axis,
)
from utils.figures.style import PAGE_WIDTH, figure_style, new_figure, panel_grid, save_figure, set_title
from utils.figures.tables import effects_table
from utils.settings import ResultType

CHANGE_LABEL = "change from multiplier 0"
_LAYERS_WITH_ERROR_BARS = 8
_GREY = "#666666"
_LEVEL_HEIGHT, _CHANGE_HEIGHT = 0.8, 1.7  # inches


@dataclass(frozen=True)
class Panel:
    """Lines that share axes."""

    label: str
    """Above it; empty where there is but one."""
    series: Sequence[Series]


def plot_by_layer(
    stem: Path, title: str, series: Sequence[Series], panels: Sequence[Panel], result_type: ResultType, note: str = ""
) -> list[Path]:
    """One behavior over layers: every level as a thin line above, the changes with their intervals below.

    Args:
        stem: Of the files.
        title: Of the figure.
        series: Every line, for the levels and the legend.
        panels: Those with changes, in groups that do not cover each other; empty where there are none: the levels
            are then drawn with their intervals.
        result_type: Of the values.
        note: Below the title.
    """
    points = [point for one in series for point in one.points]
    layers = sorted({point.layer for point in points})
    heights = [_LEVEL_HEIGHT, *[_CHANGE_HEIGHT] * len(panels)] if panels else [2.0]
    with figure_style():
        figure, axes = new_figure(
            height=1.4 + sum(heights),
            nrows=len(heights),
            sharex=True,
            squeeze=False,
            gridspec_kw={"height_ratios": heights},
        )
        top, *below = axes[:, 0]
        for place, one in enumerate(series):
            xs, means = [point.layer for point in one.points], [point.mean for point in one.points]
            if panels:
                draw_level(top, xs, means, one.label, one.style)
            else:
                draw_line(top, xs, means, one.label, one.style, shift=_shift(place, len(series), layers))
        for ax, panel in zip(below, panels, strict=True):
            _draw_changes(ax, panel, layers)
            ax.set_ylabel(CHANGE_LABEL)
        value_axis(top, result_type)
        if panels:
            top.set_ylabel(textwrap.fill(VALUE_LABELS[result_type], 10), fontsize=6)
        layer_axis(axes[-1, 0], layers)
        set_title(figure, title, note, _what_is_shown(points, bool(panels)))
        legend_below(figure, top, f"multiplier (filled: {HOLDS})" if panels else "multiplier")
        return save_figure(figure, stem, effects_table(points, note))


def plot_sweep(stem: Path, title: str, panels: Sequence[Panel], result_type: ResultType, note: str = "") -> list[Path]:
    """Several behaviors over layers at one multiplier, each in a panel of its own on the same axes."""
    points = [point for panel in panels for one in panel.series for point in one.points]
    layers = sorted({point.layer for point in points})
    has_change = any(point.change.exists for point in points)
    n_rows, n_columns = panel_grid(len(panels))
    with figure_style():
        figure, axes = new_figure(
            PAGE_WIDTH, 1.0 + 1.45 * n_rows, nrows=n_rows, ncols=n_columns, sharex=True, sharey=True, squeeze=False
        )
        for ax, panel in zip(axes.flat, panels, strict=False):
            if has_change:
                _draw_changes(ax, panel, layers)
            else:
                for one in panel.series:
                    xs, means = [point.layer for point in one.points], [point.mean for point in one.points]
                    draw_line(ax, xs, means, one.label, one.style, shift=_shift(0, 1, layers))
            ax.set_title(panel.label, loc="left", fontsize=7, pad=3)
            layer_axis(ax, layers)
            ax.set_xlabel("")
        hide_beyond(axes, len(panels))
        figure.supylabel(CHANGE_LABEL if has_change else VALUE_LABELS[result_type], fontsize=7)
        figure.supxlabel(LAYER_LABEL, fontsize=7)
        if has_change:
            what = (f"{CHANGE_LABEL} of {VALUE_LABELS[result_type]}, with {INTERVAL}", f"filled: {HOLDS}")
        else:
            what = (f"mean with {INTERVAL}", "")
        set_title(figure, title, *what, note)
        return save_figure(figure, stem, effects_table(points, note))


def _what_is_shown(points: Sequence[Point], changes: bool) -> str:
    if not changes:
        return f"mean with {INTERVAL}, {count_note([point.mean for point in points])}"
    count = count_note([point.change for point in points if point.change.exists])
    return f"change with {INTERVAL}, {count}; thin: level"


def _draw_changes(ax: Axes, panel: Panel, layers: Sequence[int]) -> None:
    for place, one in enumerate(panel.series):
        xs, filled = [point.layer for point in one.points], [point.holds for point in one.points]
        shift = _shift(place, len(panel.series), layers)
        draw_line(ax, xs, [point.change for point in one.points], one.label, one.style, filled, shift)
    ax.axhline(0, color=_GREY, linewidth=0.6)
    ax.ticklabel_format(axis="y", useOffset=False)
    if panel.label:
        ax.set_title(panel.label, loc="left", fontsize=7, pad=3)


def _shift(place: int, n_series: int, layers: Sequence[int]) -> float | None:
    """Few layers have error bars, side by side; many have bands."""
    return dodge(place, n_series) if len(layers) <= _LAYERS_WITH_ERROR_BARS else None
