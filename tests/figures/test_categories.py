"""The figure by category: an interval where there are enough items, the items themselves where not."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes

from tests.figures.conftest import Drawn
from tests.points import make_point
from utils.evaluation.effects import Point
from utils.evaluation.results import ItemValues
from utils.figures.categories import category_means, plot_categories

STEM = Path("nowhere")


def point_of(sizes: dict[str, int], multiplier: float = 0.0) -> Point:
    categories = tuple(name for name, n in sizes.items() for _ in range(n))
    values = np.linspace(0.1, 0.9, len(categories))
    letters = tuple("A" for _ in categories)
    keys = tuple(map(str, range(len(categories))))
    items = ItemValues(keys, values, values, 1 - values, letters, letters, categories)
    return replace(make_point(3, multiplier), items=items)


def dots(ax: Axes) -> list[tuple[float, float]]:
    """The small dots, as (value, row)."""
    return [
        (float(x), float(y)) for line in ax.lines if line.get_marker() == "." for x, y in line.get_xydata().tolist()
    ]


def intervals(ax: Axes) -> list[float]:
    """The rows that have a line."""
    return [
        float(line.get_ydata()[0]) for line in ax.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 2
    ]


def test_fewer_than_five_items_have_no_interval() -> None:
    point = point_of({"few": 4, "enough": 5, "one": 1})
    few, enough, one = category_means(point, ["few", "enough", "one"], seed=0).means
    assert np.isnan([few.low, few.high, one.low, one.high]).all()
    assert enough.low < enough.value < enough.high
    assert few.value == pytest.approx(point.items.values[:4].mean())
    assert [mean.n for mean in (few, enough, one)] == [4, 5, 1]


def test_few_items_are_drawn_one_by_one_and_said(drawn: Drawn) -> None:
    plot_categories(STEM, "title", [point_of({"enough": 6, "few": 2})], seed=0)
    (ax,) = drawn[0].axes
    assert dots(ax) == [(pytest.approx(0.1 + 0.8 * 6 / 7), 1.0), (pytest.approx(0.9), 1.0)]
    assert intervals(ax) == [0.0]
    assert "fewer than 5 items: no interval" in drawn[0].get_suptitle()
    rows = {row[3]: row for row in drawn.tables[0].rows}
    assert np.isnan(rows["few"][5:7]).all() and np.isfinite(rows["enough"][5:7]).all()


def test_where_every_category_has_enough_items_nothing_is_said_of_few(drawn: Drawn) -> None:
    plot_categories(STEM, "title", [point_of({"a": 5, "b": 9})], seed=0)
    assert "fewer" not in drawn[0].get_suptitle() and dots(drawn[0].axes[0]) == []
    assert "mean with 95% interval" in drawn[0].get_suptitle()


def test_where_no_category_has_enough_items_no_interval_is_promised(drawn: Drawn) -> None:
    plot_categories(STEM, "title", [point_of({"a": 2, "b": 2})], seed=0)
    assert "interval over" not in drawn[0].get_suptitle() and intervals(drawn[0].axes[0]) == []


def test_many_categories_stand_in_two_columns_and_every_one_is_there(drawn: Drawn) -> None:
    names = [f"subject_{index:02}" for index in range(57)]
    found = [point_of(dict.fromkeys(names, 2), multiplier) for multiplier in (-1.0, 0.0, 1.0)]
    plot_categories(STEM, "title", found, seed=0)
    left, right = drawn[0].axes
    shown = [label.get_text() for ax in (left, right) for label in ax.get_yticklabels()]
    assert shown == [name.replace("_", " ") for name in names]
    boxes = [label.get_window_extent() for label in left.get_yticklabels()]
    assert all(upper.y0 >= lower.y1 - 1 for upper, lower in itertools.pairwise(boxes))
    assert len(dots(left)) + len(dots(right)) == 57 * 2 * 3
