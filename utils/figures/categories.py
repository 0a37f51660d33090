"""The knowledge tests by category."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, nan
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from utils.data.estimates import Estimate
from utils.evaluation.effects import Point
from utils.evaluation.metrics import FloatArray, mean_estimates
from utils.evaluation.words import EFFECT_NOTES, INTERVAL, VALUE_LABELS
from utils.figures.lines import LineStyle, draw_row_items, draw_row_marks, legend_below, multiplier_styles
from utils.figures.style import COLUMN_WIDTH, PAGE_WIDTH, figure_style, new_figure, save_figure, set_title
from utils.figures.tables import bounds
from utils.files.tables import Table

LEAST_FOR_INTERVAL = 5
"""Items; an interval over fewer would pretend to know more than they say."""
_MOST_ROWS = 30  # of one column of categories
_ROW_HEIGHT, _MARK_HEIGHT = 0.08, 0.035  # inches: a row, and each of its marks


@dataclass(frozen=True)
class CategoryMeans:
    """One multiplier's means by category."""

    point: Point
    means: Sequence[Estimate]
    """One a category; without an interval where there are few items."""
    items: Sequence[FloatArray]
    """The values of each category's items that could be scored."""


def category_means(point: Point, categories: Sequence[str], seed: int) -> CategoryMeans:
    found = np.array(point.items.categories)
    of_category = np.where(found[None, :] == np.array(categories)[:, None], point.items.values, np.nan)
    totals = [int((found == category).sum()) for category in categories]
    means = [
        replace(mean, n_total=n) if mean.n >= LEAST_FOR_INTERVAL else Estimate(mean.value, nan, nan, mean.n, n)
        for mean, n in zip(mean_estimates(of_category, seed), totals, strict=True)
    ]
    return CategoryMeans(point, means, [row[np.isfinite(row)] for row in of_category])


def plot_categories(stem: Path, title: str, points: Sequence[Point], seed: int) -> list[Path]:
    """Mean by category: a row for each category, a mark for each multiplier; few items are shown one by one."""
    categories = sorted({category for point in points for category in point.items.categories if category})
    styles = multiplier_styles([point.multiplier for point in points])
    measured = [category_means(point, categories, seed) for point in points]
    n_columns = ceil(len(categories) / _MOST_ROWS)
    n_rows = ceil(len(categories) / n_columns)
    height = 1.3 + n_rows * (_ROW_HEIGHT + _MARK_HEIGHT * len(points))
    with figure_style():
        width = COLUMN_WIDTH if n_columns == 1 else PAGE_WIDTH
        figure, axes = new_figure(width, height, ncols=n_columns, squeeze=False)
        for column, ax in enumerate(axes[0]):
            rows = slice(column * n_rows, (column + 1) * n_rows)
            _draw_rows(ax, categories[rows], [(one, rows) for one in measured], styles)
            ax.set_ylim(n_rows - 0.4, -0.6)
        few = sorted({mean.n for one in measured for mean in one.means if 0 < mean.n < LEAST_FOR_INTERVAL})
        several = any(mean.n >= LEAST_FOR_INTERVAL for one in measured for mean in one.means)
        notes = [f"mean with {INTERVAL} of the category" if several else "mean over the items of the category"]
        if few:
            notes.append(f"fewer than {LEAST_FOR_INTERVAL} items: no interval; small dots are the items themselves")
        set_title(figure, title, *notes)
        legend_below(figure, axes[0, 0], "multiplier")
        return save_figure(figure, stem, categories_table(categories, measured))


def _draw_rows(
    ax: Axes,
    categories: Sequence[str],
    measured: Sequence[tuple[CategoryMeans, slice]],
    styles: dict[float, LineStyle],
) -> None:
    for row in range(0, len(categories), 2):
        ax.axhspan(row - 0.5, row + 0.5, color="#f4f4f4", zorder=0, linewidth=0)
    for place, (one, rows) in enumerate(measured):
        shift = (place - (len(measured) - 1) / 2) * 0.75 / len(measured)
        style = styles[one.point.multiplier]
        few = [items if len(items) < LEAST_FOR_INTERVAL else items[:0] for items in one.items[rows]]
        draw_row_items(ax, few, shift, style)
        draw_row_marks(ax, one.means[rows], shift, f"{one.point.multiplier:g}", style)
    ax.set_yticks(range(len(categories)), [category.replace("_", " ") for category in categories])
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False, axis="y")
    ax.set_xlim(-0.02, 1.02)
    ax.set_xlabel(VALUE_LABELS["mmlu"])


def categories_table(categories: Sequence[str], measured: Sequence[CategoryMeans]) -> Table:
    rows = [
        (one.point.behavior, one.point.layer, one.point.multiplier, category, *bounds(mean), mean.n, mean.n_total)
        for one in measured
        for category, mean in zip(categories, one.means, strict=True)
    ]
    columns = ("behavior", "layer", "multiplier", "category", "mean", "ci_low", "ci_high", "n", "n_total")
    return Table(columns, rows, (EFFECT_NOTES[0], f"no interval over fewer than {LEAST_FOR_INTERVAL} items: nan"))
