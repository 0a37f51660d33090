"""Statistics over items, against formulas, scipy's own tests and simulated data with known effects."""

import numpy as np
import pytest
from scipy import stats

from utils.data.estimates import share_estimate
from utils.evaluation.metrics import (
    holm,
    item_slopes,
    letter_bias,
    mean_estimates,
    paired_p_values,
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


def test_a_single_item_has_a_mean_but_no_interval_and_equal_items_an_interval_of_no_width() -> None:
    (single,) = mean_estimates(np.array([[0.4]]), seed=0)
    assert single.value == 0.4
    assert np.isnan(single.low)
    assert np.isnan(single.high)
    (equal,) = mean_estimates(np.full((1, 5), 0.7), seed=0)
    assert equal.low == equal.high == pytest.approx(0.7)
    (almost,) = mean_estimates(np.array([[0.9, 0.9 - 1e-16, 0.9, 0.9 + 1e-16, 0.3 * 3]]), seed=0)
    assert almost.low == almost.high == pytest.approx(0.9)


def test_an_interval_is_there_for_items_of_very_few_different_values() -> None:
    values = np.zeros((3, 50))
    values[0, 0] = values[1, :25] = values[2, :49] = 1.0
    for row, one in zip(values, mean_estimates(values, seed=0), strict=True):
        assert one.low <= row.mean() <= one.high
    (pair,) = mean_estimates(np.array([[0.0, 1.0]]), seed=0)
    assert (pair.low, pair.high) == (0.0, 1.0)


def test_the_interval_is_that_of_scipy_and_the_same_for_the_same_seed() -> None:
    values = np.random.default_rng(5).beta(2, 3, (1, 30))
    (ours,) = mean_estimates(values, seed=7, n_resamples=500)
    theirs = stats.bootstrap((values[0],), np.mean, method="BCa", n_resamples=500, rng=np.random.default_rng(7))
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval), abs=1e-12)
    assert mean_estimates(values, seed=7, n_resamples=500) == [ours]
    assert mean_estimates(values, seed=8, n_resamples=500) != [ours]


def test_the_paired_test_agrees_with_scipys_exact_permutation_test() -> None:
    differences = np.random.default_rng(6).normal(0.5, 1.0, (3, 9))
    ours = paired_p_values(differences, seed=0)
    for row, p_value in zip(differences, ours, strict=True):
        exact = stats.permutation_test((row,), np.mean, permutation_type="samples", n_resamples=np.inf)
        assert p_value == pytest.approx(exact.pvalue, abs=0.01)


def test_the_paired_test_rejects_a_true_hypothesis_in_about_5_percent_of_runs_and_never_gives_zero() -> None:
    rng = np.random.default_rng(7)
    nothing = rng.standard_t(4, (N_RUNS, N_ITEMS))
    assert np.mean(paired_p_values(nothing, seed=0, n_flips=4000) < 0.05) == pytest.approx(0.05, abs=0.02)
    (certain,) = paired_p_values(np.ones((1, N_ITEMS)), seed=0, n_flips=4000)
    assert certain == pytest.approx(1 / 4001)


def test_the_paired_test_leaves_missing_items_out() -> None:
    row = np.random.default_rng(8).normal(0.4, 1.0, 12)
    with_gaps = np.concatenate([row, [np.nan] * 30])[None, :]
    whole, gaps = paired_p_values(row[None, :], seed=0)[0], paired_p_values(with_gaps, seed=0)[0]
    assert gaps == pytest.approx(whole, abs=0.01)
    assert np.isnan(paired_p_values(np.array([[1.0, np.nan]]), seed=0)[0])


def test_holm_multiplies_the_smallest_p_by_the_number_of_tests_and_never_reverses_the_order() -> None:
    adjusted = holm([0.01, 0.04, np.nan, 0.03, 0.005])
    np.testing.assert_allclose(adjusted, [0.03, 0.06, np.nan, 0.06, 0.02])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []


def test_holm_keeps_the_chance_of_any_false_alarm_over_many_layers_at_5_percent() -> None:
    p_values = np.random.default_rng(9).uniform(size=(2000, 64))
    assert np.mean([holm(row).min() < 0.05 for row in p_values]) == pytest.approx(0.05, abs=0.015)
    assert np.mean(p_values.min(axis=1) < 0.05) > 0.9  # what no correction would give


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
