"""Figures against the multiplier: every point stands at its multiplier."""

import itertools
from pathlib import Path

import pytest
from matplotlib.axes import Axes

from tests.figures.conftest import Drawn
from tests.points import make_points
from utils.behaviors import published_behaviors
from utils.figures.by_multiplier import Series, plot_behaviors, plot_by_multiplier
from utils.figures.lines import multiplier_label, nth_style

STEM = Path("nowhere")
MULTIPLIERS = [-1.0, -0.5, 0.0, 0.5, 1.0]


def series(multipliers: list[float], *behaviors: str) -> list[Series]:
    return [
        Series(behavior, nth_style(place), make_points((13, multipliers), behavior=behavior))
        for place, behavior in enumerate(behaviors)
    ]


def places(ax: Axes) -> set[float]:
    """Where markers are drawn, in multipliers."""
    to_data = ax.transData.inverted()
    found = set()
    for line in ax.lines:
        if line.get_marker() not in ("None", "none", "_") and len(line.get_xdata()):
            drawn_at = line.get_transform().transform(line.get_xydata())
            found |= {round(float(x), 6) for x, _ in to_data.transform(drawn_at)}
    return found


def test_every_behavior_has_a_panel_in_which_points_stand_at_their_multipliers(drawn: Drawn) -> None:
    behaviors = published_behaviors()
    plot_behaviors(STEM, "title", series(MULTIPLIERS, *behaviors), "ab", "note")
    shown = [ax for ax in drawn[0].axes if ax.axison]
    assert [ax.get_title(loc="left") for ax in shown] == behaviors
    assert all(places(ax) == set(MULTIPLIERS) for ax in shown)
    assert len({(ax.get_xlim(), ax.get_ylim()) for ax in shown}) == 1


def test_a_few_conditions_of_one_behavior_stand_within_a_few_points_of_theirs(drawn: Drawn) -> None:
    plot_by_multiplier(STEM, "title", series(MULTIPLIERS, "refusal", "sycophancy", "hallucination"), "ab")
    (ax,) = drawn[0].axes
    step = 0.5
    assert all(min(abs(place - m) for m in MULTIPLIERS) < 0.1 * step for place in places(ax))
    assert len(places(ax)) == 3 * len(MULTIPLIERS)


@pytest.mark.parametrize("multipliers", [MULTIPLIERS, [-40.0, -10.0, -1.0, 0.0, 1.0, 10.0, 40.0]])
def test_a_probe_with_strong_multipliers_leaves_the_small_ones_apart_and_all_in_sight(
    drawn: Drawn, multipliers: list[float]
) -> None:
    plot_by_multiplier(STEM, "title", series(multipliers, "refusal", "sycophancy"), "ab")
    (ax,) = drawn[0].axes
    boxes = [label.get_window_extent() for label in ax.get_xticklabels() if label.get_text()]
    assert len(boxes) == len(multipliers)
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
    low, high = ax.get_ylim()
    ends = 0.13 * max(multipliers) + 0.1
    assert low <= 0.5 - ends and high >= 0.5 + ends
    width = drawn[0].bbox.width
    assert ax.xaxis.label.get_window_extent().x1 <= width


def test_a_logarithmic_axis_says_so() -> None:
    assert multiplier_label([-40.0, -1.0, 0.0, 1.0, 40.0]).endswith("(log scale beyond 1)")
    assert multiplier_label([-2.0, -1.0, 0.0, 1.0, 2.0]).endswith("(0: no steering)")
