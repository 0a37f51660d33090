"""Figures of the effect against the multiplier, at one layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes

from utils.evaluation.effects import Point
from utils.evaluation.words import INTERVAL, VALUE_LABELS, count_note
from utils.figures.lines import (
    LineStyle,
    dodge,
    draw_line,
    hide_beyond,
    legend_below,
    multiplier_axis,
    multiplier_label,
    value_axis,
)
from utils.figures.style import PAGE_WIDTH, figure_style, new_figure, panel_grid, save_figure, set_title
from utils.figures.tables import effects_table
from utils.settings import ResultType


@dataclass(frozen=True)
class Series:
    """One line of a figure."""

    label: str
    style: LineStyle
    points: Sequence[Point]


def plot_by_multiplier(
    stem: Path, title: str, series: Sequence[Series], result_type: ResultType, note: str = ""
) -> list[Path]:
    """Mean against multiplier for one behavior, a line with error bars for each series."""
    points = [point for one in series for point in one.points]
    with figure_style():
        figure, ax = new_figure(height=2.8 if len(series) < 4 else 3.2)
        for place, one in enumerate(series):
            _draw(ax, one, dodge(place, len(series)))
        multiplier_axis(ax, [point.multiplier for point in points])
        value_axis(ax, result_type)
        set_title(figure, title, note, f"mean with {INTERVAL}, {count_note([point.mean for point in points])}")
        if len(series) > 1:
            legend_below(figure, ax)
        return save_figure(figure, stem, effects_table(points, note))


def plot_behaviors(
    stem: Path, title: str, series: Sequence[Series], result_type: ResultType, note: str = ""
) -> list[Path]:
    """The same for several behaviors, each in a panel of its own on the same axes."""
    points = [point for one in series for point in one.points]
    n_rows, n_columns = panel_grid(len(series))
    with figure_style():
        figure, axes = new_figure(
            PAGE_WIDTH, 1.0 + 1.45 * n_rows, nrows=n_rows, ncols=n_columns, sharex=True, sharey=True, squeeze=False
        )
        panels = axes.flat[: len(series)]
        for ax, one in zip(panels, series, strict=True):
            _draw(ax, one, 0.0)
            ax.set_title(one.label, loc="left", fontsize=7, pad=3)
            multiplier_axis(ax, [point.multiplier for point in points])
            ax.set_xlabel("")
        hide_beyond(axes, len(series))
        value_axis(panels[0], result_type)
        panels[0].set_ylabel("")
        figure.supylabel(VALUE_LABELS[result_type], fontsize=7)
        figure.supxlabel(multiplier_label([point.multiplier for point in points]), fontsize=7)
        set_title(figure, title, f"mean with {INTERVAL}", note)
        return save_figure(figure, stem, effects_table(points, note))


def _draw(ax: Axes, one: Series, shift: float) -> None:
    xs = [point.multiplier for point in one.points]
    draw_line(ax, xs, [point.mean for point in one.points], one.label, one.style, shift=shift)
