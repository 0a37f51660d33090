"""Statistics over items, against formulas, scipy's own tests and simulated data with known effects."""

import numpy as np
import pytest
from scipy import stats

from utils.data.estimates import share_estimate
from utils.evaluation.metrics import (
    item_slopes,
    letter_bias,
    mean_estimates,
    steerabilities,
)

N_RUNS, N_ITEMS = 1000, 50


def covered(samples: np.ndarray, truth: float) -> float:
    estimates = mean_estimates(samples, seed=0)
    return float(np.mean([one.low <= truth <= one.high for one in estimates]))


def test_the_interval_of_a_mean_covers_the_truth_in_93_to_97_percent_of_simulated_test_sets() -> None:
    probabilities = np.random.default_rng(1).beta(0.3, 0.7, (N_RUNS, N_ITEMS))
    assert 0.93 <= covered(probabilities, 0.3) <= 0.97


def test_the_interval_of_a_paired_change_covers_a_known_effect_in_93_to_97_percent() -> None:
    rng = np.random.default_rng(2)
    unsteered = rng.normal(0.0, 2.0, (N_RUNS, N_ITEMS))
    steered = unsteered + rng.normal(0.25, 0.5, (N_RUNS, N_ITEMS))
    assert 0.93 <= covered(steered - unsteered, 0.25) <= 0.97


def test_pairing_makes_the_interval_of_the_change_narrower_than_that_of_either_mean() -> None:
    rng = np.random.default_rng(3)
    unsteered = rng.normal(0.0, 2.0, N_ITEMS)
    steered = unsteered + rng.normal(0.25, 0.1, N_ITEMS)
    change, mean = mean_estimates(np.stack([steered - unsteered, steered]), seed=0)
    assert change.high - change.low < 0.2 * (mean.high - mean.low)


def test_the_interval_of_a_share_covers_the_truth_in_93_to_97_percent_of_simulated_test_sets() -> None:
    counts = np.random.default_rng(4).binomial(N_ITEMS, 0.2, N_RUNS)
    interval = {int(k): share_estimate(int(k), N_ITEMS, N_ITEMS) for k in set(counts)}
    hits = [interval[int(k)].low <= 0.2 <= interval[int(k)].high for k in counts]
    assert 0.93 <= np.mean(hits) <= 0.97


def test_an_item_without_a_value_is_left_out_and_counted_and_never_read_as_zero() -> None:
    values = np.array([[1.0, np.nan, 3.0, 5.0], [1.0, 2.0, 3.0, 5.0], [np.nan] * 4])
    partial, whole, nothing = mean_estimates(values, seed=0)
    assert (partial.value, partial.n, partial.n_total) == (3.0, 3, 4)
    assert (whole.value, whole.n, whole.n_total) == (2.75, 4, 4)
    assert not nothing.exists
    assert nothing.n == 0


def test_a_single_item_has_a_mean_but_no_interval() -> None:
    (single,) = mean_estimates(np.array([[0.4]]), seed=0, bounds=(0.0, 1.0))
    assert single.value == 0.4
    assert np.isnan(single.low)
    assert np.isnan(single.high)


def test_nearly_equal_items_have_the_interval_that_values_not_seen_allow_and_none_without_bounds() -> None:
    values = np.zeros((4, 50))
    values[1, :2] = 0.1, 0.3
    values[2] = 0.7
    values[3] = 0.3 * 3 + np.tile([-1e-16, 1e-16], 25)  # rounding is not a difference
    found = mean_estimates(values, seed=0, bounds=(0.0, 1.0))
    none_of_50, two_of_50 = (stats.binomtest(k, 50).proportion_ci(0.95, method="exact").high for k in (0, 2))
    expected = [
        (0, none_of_50),
        (0, two_of_50),
        (0.7 * (1 - none_of_50), 0.7 + 0.3 * none_of_50),
        (0.9 * (1 - none_of_50), 0.9 + 0.1 * none_of_50),
    ]
    for one, row, interval in zip(found, values, expected, strict=True):
        assert one.value == pytest.approx(row.mean())
        assert (one.low, one.high) == pytest.approx(interval)
    for one in mean_estimates(values, seed=0):
        assert one.exists and np.isnan(one.low) and np.isnan(one.high)


@pytest.mark.parametrize("others", ["ones", "any", "both signs"])
def test_the_interval_covers_the_truth_where_95_percent_of_the_values_are_zero(others: str) -> None:
    rng = np.random.default_rng(13)
    drawn = {
        "ones": np.ones((N_RUNS, N_ITEMS)),
        "any": rng.beta(2, 2, (N_RUNS, N_ITEMS)),
        "both signs": rng.choice([-1.0, 1.0], (N_RUNS, N_ITEMS)),
    }[others]
    values = np.where(rng.random((N_RUNS, N_ITEMS)) < 0.05, drawn, 0.0)
    truth = 0.05 * {"ones": 1.0, "any": 0.5, "both signs": 0.0}[others]
    bounds = (-1.0, 1.0) if others == "both signs" else (0.0, 1.0)
    estimates = mean_estimates(values, seed=0, bounds=bounds, n_resamples=2000)
    assert np.mean([one.low <= truth <= one.high for one in estimates]) >= 0.95


def test_an_interval_is_there_for_items_of_very_few_different_values() -> None:
    values = np.zeros((3, 50))
    values[0, :5] = values[1, :25] = values[2, :45] = 1.0
    for row, one in zip(values, mean_estimates(values, seed=0), strict=True):
        assert one.low < row.mean() < one.high
    (pair,) = mean_estimates(np.array([[0.0, 1.0]]), seed=0)
    assert (pair.low, pair.high) == (0.0, 1.0)


@pytest.mark.parametrize("draw", ["beta", "lognormal", "integers"])
def test_the_interval_is_scipy_s_but_for_the_resamples(draw: str) -> None:
    rng = np.random.default_rng(5)
    values = {
        "beta": rng.beta(0.3, 0.7, (2, 40)),
        "lognormal": rng.lognormal(size=(2, 40)),
        "integers": rng.integers(0, 11, (2, 40)).astype(float),
    }[draw]
    for row, ours in zip(values, mean_estimates(values, seed=7), strict=True):
        theirs = stats.bootstrap((row,), np.mean, method="BCa", n_resamples=50_000, rng=rng).confidence_interval
        noise = 0.03 * (theirs.high - theirs.low)
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=noise)


def test_the_interval_is_the_same_for_the_same_seed_and_hardly_moves_with_another() -> None:
    values = np.random.default_rng(6).beta(0.3, 0.7, (5, 50))
    assert mean_estimates(values, seed=7) == mean_estimates(values, seed=7)
    ends = np.array([[(one.low, one.high) for one in mean_estimates(values, seed)] for seed in range(6)])
    assert 0 < np.ptp(ends, axis=0).max() < 0.012


def test_item_slopes_are_least_squares_slopes_of_the_items_that_have_every_multiplier() -> None:
    multipliers = [-1.0, -0.5, 0.0, 1.0]
    log_odds = np.random.default_rng(10).normal(size=(4, 6))
    log_odds[2, 3] = np.nan
    slopes = item_slopes(log_odds, multipliers)
    for item in (0, 1, 2, 4, 5):
        assert slopes[item] == pytest.approx(np.polyfit(multipliers, log_odds[:, item], 1)[0])
    assert np.isnan(slopes[3])
    with pytest.raises(ValueError, match="two different multipliers"):
        item_slopes(log_odds[:2], [1.0, 1.0])


def test_steerability_recovers_a_known_slope_and_counts_the_items_that_move_the_wrong_way() -> None:
    multipliers = np.array([-1.0, 0.0, 1.0])
    true_slopes = np.concatenate([np.full(40, 2.0), np.full(10, -1.0)])
    rng = np.random.default_rng(11)
    log_odds = multipliers[:, None] * true_slopes + rng.normal(0, 1.0, 50) + rng.normal(0, 0.01, (3, 50))
    slopes = item_slopes(log_odds, list(multipliers))
    (result,) = steerabilities(slopes[None, :], seed=0)
    assert result.slope.value == pytest.approx(1.4, abs=0.01)
    assert result.slope.low < 1.4 < result.slope.high
    assert (result.anti_share.value, result.anti_share.n) == (0.2, 50)
    z = stats.norm.ppf(0.975)  # Wilson's formula
    center, half = (0.2 + z**2 / 100) / (1 + z**2 / 50), z * np.sqrt(0.2 * 0.8 / 50 + z**2 / 1e4) / (1 + z**2 / 50)
    assert (result.anti_share.low, result.anti_share.high) == pytest.approx((center - half, center + half))


def test_letter_bias_is_1_for_always_a_0_for_the_answer_alone_and_minus_1_for_always_b() -> None:
    a_matches = np.array([True] * 7 + [False] * 3)
    always_a, always_b = np.ones(10), np.zeros(10)
    only_the_answer = np.where(a_matches, 0.8, 0.2)
    biases = letter_bias(np.stack([always_a, only_the_answer, always_b]), a_matches, seed=0)
    assert [one.value for one in biases] == pytest.approx([1.0, 0.0, -1.0])
    assert [one.n for one in biases] == [10, 10, 10]


def test_letter_bias_weighs_both_letters_the_same_and_has_an_interval_around_it() -> None:
    rng = np.random.default_rng(12)
    a_matches = np.array([True] * 40 + [False] * 10)
    share_of_a = np.where(a_matches, 0.7, 0.5) + rng.uniform(-0.1, 0.1, 50)
    share_of_a[0] = np.nan
    (bias,) = letter_bias(share_of_a[None, :], a_matches, seed=0)
    assert bias.value == pytest.approx(share_of_a[1:40].mean() + share_of_a[40:].mean() - 1)
    assert bias.low < bias.value < bias.high
    assert (bias.n, bias.n_total) == (49, 50)
    (one_sided,) = letter_bias(share_of_a[None, :], np.ones(50, dtype=bool), seed=0)
    assert not one_sided.exists
