"""The paired test and its family, against loops over the same draws and simulated data with known effects."""

import numpy as np
import pytest
from scipy import stats

from benchmarks import family_errors
from benchmarks.shapes import CORRELATION, SHAPES, draw_family, score_correlation
from utils.evaluation.paired_tests import FEWEST_DRAWN, SHARE_DRAWN, paired_tests
from utils.evaluation.resampling import drawn_counts

N_ITEMS = 50


def hall(items: np.ndarray, center: float) -> float:
    """Hall's transformed statistic of a sample around a center, by the formula."""
    t = (items.mean() - center) / items.std()
    skew = stats.skew(items)
    return abs(np.sqrt(len(items)) * (t + skew * t**2 / 3 + skew**2 * t**3 / 27 + skew / (6 * len(items))))


def by_loops(differences: np.ndarray, seed: int, n_resamples: int) -> tuple[np.ndarray, np.ndarray]:
    n_series, n_items = differences.shape
    n_drawn = min(n_items, max(FEWEST_DRAWN, round(SHARE_DRAWN * n_items)))
    table = np.empty((1 + n_resamples, n_series))
    rows = np.concatenate(list(drawn_counts(n_items, n_drawn, n_resamples, seed))).astype(int)
    for series, items in enumerate(differences):
        there = items[np.isfinite(items)]
        freedom = len(there) * n_drawn / n_items - 1
        observed = stats.t(len(there) - 1).sf(hall(there, 0.0))
        table[0, series] = stats.t(freedom).isf(observed)
        for row, counts in enumerate(rows, start=1):
            drawn = np.repeat(items, counts)
            drawn = drawn[np.isfinite(drawn)]
            table[row, series] = hall(drawn, there.mean())
    p = np.array([[np.mean(column >= value) for value in column] for column in table.T]).T  # as of every row
    order, p_family, reached = np.argsort(p[0], kind="stable"), np.empty(n_series), 0.0
    for place, series in enumerate(order):
        smallest = p[:, order[place:]].min(axis=1)
        reached = max(reached, np.mean(smallest <= p[0, series]))
        p_family[series] = reached
    return p[0], p_family


def test_the_p_values_are_those_of_a_loop_over_resamples_series_and_steps() -> None:
    rng = np.random.default_rng(0)
    differences = rng.exponential(1.0, (4, 1)) * rng.normal(0.3, 1.0, (4, 30)) + rng.exponential(0.5, (4, 30)) - 0.5
    differences[1, ::3] = differences[2, 1::4] = np.nan  # series with different missing items
    tests = paired_tests(differences, seed=3, n_resamples=300)
    p_value, p_family = by_loops(differences, seed=3, n_resamples=300)
    np.testing.assert_allclose(tests.p_value, p_value, atol=1e-12)
    np.testing.assert_allclose(tests.p_family, p_family, atol=1e-12)
    again = paired_tests(differences, seed=3, n_resamples=300)
    assert again.p_family.tolist() == tests.p_family.tolist()


def test_p_values_are_never_zero_and_the_family_s_never_below_the_single_one() -> None:
    differences = np.random.default_rng(1).normal(0.0, 1.0, (20, N_ITEMS)) + np.linspace(0, 2, 20)[:, None]
    tests = paired_tests(differences, seed=0, n_resamples=2000)
    assert tests.p_value.min() == pytest.approx(1 / 2001)
    assert (tests.p_family >= tests.p_value).all() and tests.p_family.max() <= 1
    assert (np.diff(tests.p_family[np.argsort(tests.p_value, kind="stable")]) >= 0).all()


@pytest.mark.parametrize("scale", [1e-6, -1.0, 1e6])
def test_unit_and_sign_do_not_matter(scale: float) -> None:
    differences = np.random.default_rng(2).exponential(1.0, (3, 40)) - 0.8
    tests, scaled = paired_tests(differences, 0, 500), paired_tests(scale * differences, 0, 500)
    np.testing.assert_allclose(scaled.p_family, tests.p_family, atol=0.003)


def test_a_series_without_a_test_is_nan_and_does_not_count_in_the_family() -> None:
    rng = np.random.default_rng(3)
    tested = rng.normal(0.35, 1.0, (3, N_ITEMS))
    few = np.full(N_ITEMS, np.nan)
    few[7] = 1.0
    nearly_zero = np.zeros(N_ITEMS)
    nearly_zero[:4] = 0.2, 0.3, -0.1, 0.8
    untested = np.stack([few, np.full(N_ITEMS, np.nan), np.zeros(N_ITEMS), np.full(N_ITEMS, 0.3), nearly_zero])
    tests = paired_tests(np.concatenate([untested, tested]), seed=0, n_resamples=1000)
    assert np.isnan(tests.p_value[:5]).all() and np.isnan(tests.p_family[:5]).all()
    np.testing.assert_array_equal(tests.p_family[5:], paired_tests(tested, 0, 1000).p_family)
    assert paired_tests(np.empty((0, 4)), 0).p_value.shape == (0,)
    assert np.isnan(paired_tests(untested, 0).p_family).all()


def test_series_with_outliers_do_not_keep_a_clear_change_from_holding() -> None:
    """Against the largest t of all series it would not: that is the outliers'."""
    rng = np.random.default_rng(4)
    differences = rng.normal(0.0, 1e-3, (30, N_ITEMS))
    differences[np.arange(29), rng.integers(0, N_ITEMS, 29)] += rng.choice([-0.3, 0.3], 29)
    differences[29] = rng.normal(-0.3, 0.35, N_ITEMS)
    assert paired_tests(differences, seed=0).p_family[29] < 0.01
    assert family_errors.bootstrap_t_with_max_t(differences, 0, 2000)[29] > 0.05


@pytest.mark.parametrize("shape", list(SHAPES))
def test_the_shapes_of_the_simulation_are_centred_scaled_and_correlate_as_said(shape: str) -> None:
    correlation = score_correlation(SHAPES[shape])
    values = draw_family(np.random.default_rng(5), SHAPES[shape], correlation, 2, 400_000)
    assert values.mean() == pytest.approx(0.0, abs=0.01)
    if shape != "t, 3 degrees":  # whose variance a sample hardly shows
        assert values.std() == pytest.approx(1.0, abs=0.03)
        assert np.corrcoef(values)[0, 1] == pytest.approx(CORRELATION, abs=0.03)


def test_skewed_families_without_an_effect_give_far_fewer_false_positives_than_sign_flips() -> None:
    rng = np.random.default_rng(6)
    shape = SHAPES["log-normal"]
    correlation = score_correlation(shape)
    ours, flips = 0, 0
    for index in range(120):
        differences = draw_family(rng, shape, correlation, 30, N_ITEMS)
        ours += bool((paired_tests(differences, index, 1000).p_family < 0.05).any())
        flips += bool((family_errors.sign_flips_with_holm(differences, index, 2000) < 0.05).any())
    assert ours <= 12 and flips >= 2 * ours  # 5% are 6; the benchmark has the exact figures


def test_the_benchmark_runs(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data_sets", "2", "--resamples", "200", "--effects", "0.7", "--shapes", "normal", "mixed"]
    assert family_errors.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.strip().startswith(("normal", "mixed"))] == [
        "normal",
        "mixed",
    ] * 3
