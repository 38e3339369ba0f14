"""Estimates and their intervals: Student's t, shares, rank correlations and means over clusters."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from alignkit.intervals import (
    Estimate,
    as_number,
    as_percent,
    clear_of,
    cluster_bootstrap,
    mean_estimate,
    rank_correlation,
    resampled,
    spearman,
    t_half_width,
    wilson,
)


def test_an_estimate_is_json_and_has_names():
    found = Estimate(0.5, 0.25, 0.75, 8)
    assert json.loads(json.dumps(found)) == {"value": 0.5, "low": 0.25, "high": 0.75, "n": 8} == found
    assert (found.value, found.low, found.high, found.n, found.has_interval) == (0.5, 0.25, 0.75, 8, True)
    assert clear_of(found, 0.2) and not clear_of(found, 0.3) and not clear_of(Estimate(0.5), 0.2)
    assert as_number(found, times=100) == "+50.0 [+25.0, +75.0]"
    assert as_percent(found) == "50% [25%, 75%]" and as_percent(Estimate(None)) == "unknown"


def test_the_t_interval_is_scipys_for_numbers_and_tables():
    values = [0.1, 0.4, 0.2, 0.7]
    found, test = mean_estimate(values), stats.ttest_1samp(values, 0.1, alternative="greater")
    low, high = stats.ttest_1samp(values, 0).confidence_interval()
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.greater(0.1) == pytest.approx(test.pvalue) and found.less(0.1) == pytest.approx(1 - test.pvalue)
    table = pd.DataFrame({"a": values, "b": [1.0, 2.0, np.nan, np.nan]})
    half = t_half_width(table.std(ddof=1), table.notna().sum())
    assert half["a"] == pytest.approx(found.high - found.value)
    assert half["b"] == pytest.approx(stats.t.ppf(0.975, 1) * np.std([1, 2], ddof=1) / np.sqrt(2))


def test_one_unit_has_no_interval_and_equal_ones_have_none_to_speak_of():
    assert not mean_estimate([0.5]).has_interval
    same = mean_estimate([0.5] * 3)
    assert (same.low, same.high) == (0.5, 0.5) and same.greater(0.4) == 0 and same.less(0.4) == 1


@pytest.mark.parametrize(("count", "n"), [(0, 20), (7, 20), (20, 20), (1, 1)])
def test_wilsons_interval_is_that_of_statsmodels(count, n):
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(count, n, method="wilson")
    assert (wilson(count, n).low, wilson(count, n).high) == pytest.approx((low, high), abs=1e-6)
    assert wilson(0, 0).value is None


def test_spearman_with_ties_is_scipys():
    points = np.random.default_rng(0).integers(0, 5, size=(40, 2))
    assert spearman(points) == pytest.approx(stats.spearmanr(points).statistic)
    assert spearman(np.array([[1.0, 2.0]])) == 0


@pytest.mark.parametrize(("rho", "shared"), [(0.0, 0.5), (0.6, 0.0), (0.6, 0.5), (0.85, 0.0)])
def test_the_correlations_interval_covers_the_truth(rho, shared):
    """Ten clusters of 15 points, each with a shift and a correlation of its own."""
    rng = np.random.default_rng(0)

    def cluster() -> np.ndarray:
        own = np.clip(rho + 0.15 * rng.normal(), -0.97, 0.97)
        x, noise = rng.normal(size=(2, 15))
        return np.column_stack([x, own * x + np.sqrt(1 - own**2) * noise]) + shared * rng.normal(size=2)

    truth = spearman(np.concatenate([cluster() for _ in range(3000)]))
    found = [rank_correlation([cluster() for _ in range(10)]) for _ in range(600)]
    assert 0.93 <= np.mean([each.low < truth < each.high for each in found]) <= 0.975
    assert np.mean([each.greater(truth) < 0.025 for each in found]) == pytest.approx(0.025, abs=0.015)


def test_the_correlation_leaves_out_whole_clusters():
    rng = np.random.default_rng(3)
    clusters = [np.repeat(rng.normal(size=(1, 2)), 40, axis=0) + 0.01 * rng.normal(size=(40, 2)) for _ in range(12)]
    by_cluster = rank_correlation(clusters)
    by_point = rank_correlation(np.concatenate(clusters)[:, None])
    assert by_cluster.value == pytest.approx(by_point.value)
    assert by_cluster.high - by_cluster.low > 3 * (by_point.high - by_point.low)
    assert rank_correlation(clusters) == by_cluster  # same evidence, same interval
    assert rank_correlation([[[1, 1], [1, 2]], [[1, 3], [1, 4]]]) == {"value": 0, "low": 0, "high": 0, "n": 2}


def test_clusters_of_equal_values_count_as_one():
    rng = np.random.default_rng(0)
    values = np.repeat(rng.normal(size=30), 10)
    by_cluster = cluster_bootstrap(values, np.repeat(np.arange(30), 10), np.random.default_rng(1))
    by_value = cluster_bootstrap(values, np.arange(300), np.random.default_rng(1))
    assert by_cluster.high - by_cluster.low > 2 * (by_value.high - by_value.low)
    edge = cluster_bootstrap(np.ones(12), np.repeat(np.arange(6), 2), np.random.default_rng(0), share=True)
    assert edge.low == wilson(6, 6).low and edge.n == 12


def test_resampling_draws_units_evenly():
    picks = np.concatenate(list(resampled(5, 2000, np.random.default_rng(0))))
    assert len(picks) == 10_000 and np.abs(np.bincount(picks) / 2000 - 1).max() < 0.1
