"""The layer figures show changes with their intervals; the level is a line without one."""

import itertools
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection

from tests.figures.conftest import Drawn
from tests.points import make_point, make_points
from utils.figures.by_layer import Panel, plot_by_layer, plot_sweep
from utils.figures.by_multiplier import Series
from utils.figures.lines import nth_style
from utils.figures.results import multiplier_series, size_panels

LAYERS = range(12)
STEM = Path("nowhere")


def plot(multipliers: list[float], n_layers: int = 12, with_change: bool = True) -> None:
    found = [
        make_point(layer, m, 0.5 + 0.01 * m * layer, with_change=with_change)
        for layer in range(n_layers)
        for m in multipliers
    ]
    series = multiplier_series(found)
    plot_by_layer(STEM, "title", series, size_panels(series), "ab", "note")


def bands(ax: Axes) -> int:
    return sum(isinstance(part, PolyCollection) for part in ax.collections)


def heights(ax: Axes) -> float:
    return float(ax.get_window_extent().height)


def test_the_change_has_its_interval_and_the_level_is_thin_and_has_none(drawn: Drawn) -> None:
    plot([-1.0, 0.0, 1.0])
    level, change = drawn[0].axes
    assert (bands(level), bands(change)) == (0, 2)
    lines = [line for line in level.lines if len(line.get_xdata())]
    assert len(lines) == 3 and all(line.get_linewidth() < 1 and line.get_marker() == "None" for line in lines)
    assert heights(level) < 0.6 * heights(change)
    assert "p(answer" in level.get_ylabel() and change.get_ylabel() == "change from multiplier 0"
    assert "n=4; thin: level" in drawn[0].get_suptitle()


def test_multiplier_0_has_no_change_and_every_multiplier_stands_in_the_legend(drawn: Drawn) -> None:
    plot([-1.0, 0.0, 1.0])
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["1", "0", "-1"]
    shown = [line.get_ydata() for line in drawn[0].axes[1].lines if len(line.get_xdata()) == 12]
    assert not any(all(y == 0 for y in ys) for ys in shown)


def test_each_size_of_the_multiplier_has_a_panel_so_that_a_strong_one_does_not_flatten_the_others(
    drawn: Drawn,
) -> None:
    plot([-40.0, -1.0, 0.0, 1.0, 40.0])
    _, small, large = drawn[0].axes
    assert [ax.get_title(loc="left") for ax in (small, large)] == ["multiplier 1 and -1", "multiplier 40 and -40"]
    assert [bands(ax) for ax in (small, large)] == [2, 2]
    assert max(large.get_ylim()) > 20 * max(small.get_ylim())


def test_without_multiplier_0_the_level_is_shown_with_its_interval(drawn: Drawn) -> None:
    plot([-1.0, 1.0], with_change=False)
    (level,) = drawn[0].axes
    assert bands(level) == 2
    assert "mean with 95% interval" in drawn[0].get_suptitle() and "thin" not in drawn[0].get_suptitle()


@pytest.mark.parametrize("n_layers", [3, 12])
def test_no_interval_leaves_the_axes(drawn: Drawn, n_layers: int) -> None:
    plot([-1.0, 0.0, 1.0], n_layers)
    low, high = drawn[0].axes[1].get_ylim()
    ends = 0.01 * (n_layers - 1) + 0.05
    assert low <= -ends and high >= ends


def test_a_sweep_shows_each_behavior_in_a_panel_of_its_own(drawn: Drawn) -> None:
    behaviors = ("refusal", "sycophancy", "hallucination")
    panels = [
        Panel(
            f"{behavior}\nn=4",
            [Series("1", nth_style(0), make_points(*((n, [1.0]) for n in LAYERS), behavior=behavior))],
        )
        for behavior in behaviors
    ]
    plot_sweep(STEM, "title", panels, "ab", "note")
    shown = [ax for ax in drawn[0].axes if ax.axison]
    assert [ax.get_title(loc="left").splitlines()[0] for ax in shown] == list(behaviors)
    assert [bands(ax) for ax in shown] == [1, 1, 1]
    assert len({ax.get_ylim() for ax in shown}) == 1
    boxes = [ax._left_title.get_window_extent() for ax in shown]
    assert not any(one.overlaps(other) for one, other in itertools.pairwise(boxes))
