"""Figures that can be read: ticks and legends do not cover each other or the data; files are whole."""

from itertools import pairwise
from pathlib import Path

import pytest

from utils.evaluation.metrics import Estimate
from utils.figures.lines import (
    PALETTE,
    draw_line,
    layer_axis,
    legend_below,
    multiplier_axis,
    multiplier_styles,
    nth_style,
)
from utils.figures.style import figure_style, new_figure, save_figure, set_title
from utils.files.tables import Table, read_table


def estimate(value: float) -> Estimate:
    return Estimate(value, value - 0.1, value + 0.1, 50, 50)


@pytest.mark.parametrize("n_layers", [1, 2, 8, 9, 30, 32, 40, 80])
def test_layer_ticks_do_not_overlap_and_stand_at_whole_layers(n_layers: int) -> None:
    with figure_style():
        figure, ax = new_figure()
        layer_axis(ax, list(range(n_layers)))
        figure.draw_without_rendering()
        low, high = ax.get_xlim()
        shown = [label for label in ax.get_xticklabels() if low <= label.get_position()[0] <= high]
        boxes = [label.get_window_extent() for label in shown]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
    assert all(float(label.get_text()).is_integer() for label in shown)
    assert len(shown) >= min(n_layers, 5)


@pytest.mark.parametrize(
    "multipliers", [[-1.0, 0.0, 1.0], [-2 + 0.5 * i for i in range(9)], [i / 4 for i in range(-8, 9)]]
)
def test_multiplier_ticks_do_not_overlap(multipliers: list[float]) -> None:
    with figure_style():
        figure, ax = new_figure()
        multiplier_axis(ax, multipliers)
        figure.draw_without_rendering()
        boxes = [label.get_window_extent() for label in ax.get_xticklabels() if label.get_text()]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


def test_legend_and_title_lie_inside_the_figure_and_off_the_axes() -> None:
    with figure_style():
        figure, ax = new_figure()
        for index in range(7):
            draw_line(
                ax, [0, 1, 2], [estimate(0.1 * index)] * 3, f"A rather long label ({index} of 50)", nth_style(index)
            )
        layer_axis(ax, [0, 1, 2])
        set_title(figure, "A title that is far too long for one line of a column of a paper, so it wraps", "a note", "")
        legend_below(figure, ax, "Title of the legend")
        figure.draw_without_rendering()
        (legend,) = figure.legends
        boxes = [legend.get_window_extent(), figure._suptitle.get_window_extent()]  # type: ignore[attr-defined]
        axes_box = ax.get_tightbbox()
        assert axes_box is not None
        for box in boxes:
            assert not box.overlaps(axes_box)
            assert 0 <= box.x0 < box.x1 <= figure.bbox.width
            assert 0 <= box.y0 < box.y1 <= figure.bbox.height


def test_the_palette_is_one_colour_each_and_signs_of_multipliers_differ_in_colour_and_marker() -> None:
    assert len({nth_style(index) for index in range(28)}) == 28
    assert len(set(PALETTE)) == 7
    styles = multiplier_styles([-1.0, -0.5, 0.0, 0.5, 1.0])
    assert len({style.color for style in styles.values()}) == 5
    assert (styles[-1.0].marker, styles[0.0].marker, styles[1.0].marker) == ("v", "none", "^")


def test_a_point_without_a_value_is_left_out_of_the_line() -> None:
    gone = Estimate(float("nan"), float("nan"), float("nan"), 0, 50)
    with figure_style():
        _, ax = new_figure()
        draw_line(ax, [0, 1, 2], [estimate(0.1), gone, estimate(0.3)], "x", nth_style(0))
        assert list(ax.lines[0].get_xdata()) == [0, 2]


def test_a_saved_figure_has_its_data_beside_it_and_the_same_bytes_again(tmp_path: Path) -> None:
    stem = tmp_path / "sub" / "multiplier=1.0"
    contents = []
    for _ in range(2):
        with figure_style():
            figure, ax = new_figure()
            ax.plot([0, 1], [0, 1])
            paths = save_figure(figure, stem, Table(("x", "y"), [(0, 0.0), (1, 1.0)], ("a note",)))
        contents.append([path.read_bytes() for path in paths])
    assert [path.name for path in paths] == ["multiplier=1.0.png", "multiplier=1.0.pdf", "multiplier=1.0.txt"]
    assert contents[0] == contents[1]
    assert read_table(paths[2]) == [{"x": "0", "y": "0.0"}, {"x": "1", "y": "1.0"}]
    assert sorted(stem.parent.iterdir()) == sorted(paths)


def test_the_style_ends_with_its_block() -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    with figure_style():
        assert mpl.rcParams["pdf.fonttype"] == 42
    assert dict(mpl.rcParams) == before
