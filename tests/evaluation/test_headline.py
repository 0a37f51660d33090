"""The numbers to cite: which multipliers, which layer, and that no multiplier with results is left out."""

from collections.abc import Iterable

import pytest

from tests.points import make_point, make_points
from utils.evaluation.effects import Point
from utils.evaluation.headline import BehaviorHeadline, Headline, build_headline, headline_ends, headline_lines


def headline(found: list[Point]) -> BehaviorHeadline:
    (one,) = build_headline("m", "ab", "", {"refusal": found}, seed=0).behaviors
    return one


def shown(found: Iterable[Point]) -> list[tuple[int, float]]:
    return [(one.layer, one.multiplier) for one in found]


@pytest.mark.parametrize(
    ("multipliers", "ends"),
    [
        ([-40, -1, 0, 1, 40], (-1, 1)),
        ([-40, -0.5, 0.5, 40], (-0.5, 0.5)),
        ([-2, -1, 0, 2], (-2, 2)),
        ([0, 1, 3], (0, 3)),
        ([-4, -2, 0, 1], (-4, 1)),
        ([2], (2, 2)),
    ],
)
def test_the_ends_are_one_either_side_of_0_or_else_the_closest_pair_or_else_the_outermost(
    multipliers: list[float], ends: tuple[float, float]
) -> None:
    assert headline_ends(make_points((3, multipliers))) == ends


def test_a_pair_whose_halves_lie_at_different_layers_is_none() -> None:
    assert headline_ends(make_points((3, [-2, 1, 2]), (4, [-1]))) == (-2, 2)


def test_the_layer_is_that_of_the_largest_difference_between_the_ends() -> None:
    one = headline(make_points(*((layer, [-2.0, -1.0, 0.0, 2.0]) for layer in (1, 5, 2))))
    assert shown(one.chosen) == [(5, -2), (5, 0), (5, 2)]
    assert (one.layer, one.n_layers, one.choice) == (5, 3, "of 3 layers, where 2 and -2 differ most")


def test_after_a_probe_with_strong_multipliers_the_sweep_is_still_there_and_so_is_the_probe() -> None:
    sweep = make_points(*((layer, [-1.0, 0.0, 1.0]) for layer in range(1, 10)))
    one = headline([*sweep, *make_points((4, [-40.0, 40.0]))])
    assert shown(one.chosen) == [(9, -1), (9, 0), (9, 1)]
    assert shown(one.others) == [(4, -40), (4, 40)]
    at_the_best_layer = headline([*sweep, *make_points((9, [-40.0, 40.0]))])
    assert shown(at_the_best_layer.points) == [(9, -40), (9, -1), (9, 0), (9, 1), (9, 40)]
    assert shown(at_the_best_layer.chosen) == [(9, -1), (9, 0), (9, 1)]


def test_a_multiplier_of_other_layers_only_is_shown_where_it_moves_the_mean_furthest_its_way() -> None:
    sweep = make_points((5, [-1.0, 0.0, 1.0]), (9, [-1.0, 0.0, 1.0]))
    probes = [make_point(2, 40.0, 0.6), make_point(5, 40.0, 0.9), make_point(2, -40.0, 0.3), make_point(5, -40.0, 0.4)]
    assert shown(headline([*sweep, *probes]).others) == [(2, -40), (5, 40)]


def test_the_terminal_shows_every_multiplier_and_says_how_the_layer_was_chosen() -> None:
    found = [*make_points((3, [-1.0, 0.0, 1.0]), (9, [-1.0, 0.0, 1.0])), *make_points((9, [40.0]), (3, [-40.0]))]
    lines = headline_lines(build_headline("m", "ab", "", {"refusal": found}, seed=0))
    assert lines[0].startswith("m, ab: p(answer matching behavior)")
    assert lines[1].startswith("  Refusal, layer 9 (of 2 layers, where 1 and -1 differ most), n=4 of 4: -1: 0.410 [")
    assert [line.split(": ")[0] for line in lines[3:7:2]] == ["    also, layer 9", "    also, layer 3"]
    assert "-40: " in lines[5] and "40: " in lines[3]
    assert "optimistic" in lines[-2] and "furthest its way" in lines[-1]


def test_where_there_is_one_layer_nothing_was_chosen() -> None:
    whole: Headline = build_headline(
        "m", "ab", "temperature 1", {"refusal": make_points((3, [-1.0, 0.0, 1.0]))}, seed=0
    )
    assert whole.notes == [] and whole.behaviors[0].choice == ""
    assert headline_lines(whole)[0].startswith("m, ab, temperature 1: ")


def test_steerability_is_that_between_the_ends() -> None:
    with_probe = headline(make_points((3, [-40.0, -1.0, 0.0, 1.0, 40.0])))
    without = headline(make_points((3, [-1.0, 0.0, 1.0])))
    assert with_probe.steerability is not None
    assert repr(with_probe.steerability) == repr(without.steerability)  # without intervals, which 4 items do not have
