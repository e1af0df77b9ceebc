"""Cluster bootstrap against slow twins, degenerate inputs, determinism."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import special, stats

from quantvane.errors import DataError
from quantvane.stats.quantiles import quantile_intervals, quantile_replicates, quantile_sorted
from quantvane.stats.resampling import (
    Resampling,
    mapped,
    percentile_interval,
    ratio_intervals,
    ratio_standard_error,
    t_interval,
)

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "reference"))

from bootstrap_twin import bootstrap_t, ratio, resample


def clustered(seed, groups, per=6):
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(groups), rng.integers(1, per + 1, groups))
    return rng.lognormal(0, 1.5, len(owner)), rng.permutation(owner)


def sums(values, owner, groups):
    return (
        np.bincount(owner, values, minlength=groups)[None, :],
        np.bincount(owner, minlength=groups).astype(float)[None, :],
    )


def drawn(draws):
    return np.concatenate(list(draws.counts()))


def test_counts_are_multinomial():
    counts = drawn(Resampling(12, seed=3, resamples=20_000))
    assert counts.shape == (20_000, 12)
    assert np.all(counts.sum(axis=1) == 12)
    # each is binomial(12, 1/12); any two have covariance −1/12
    assert counts.mean(axis=0) == pytest.approx(np.ones(12), abs=0.04)
    assert np.cov(counts.T)[0, 0] == pytest.approx(11 / 12, abs=0.05)
    assert np.cov(counts.T)[0, 1] == pytest.approx(-1 / 12, abs=0.03)


def test_counts_depend_on_seed_and_clusters_only():
    assert np.array_equal(drawn(Resampling(9, 5, 300)), drawn(Resampling(9, 5, 300)))
    assert np.array_equal(drawn(Resampling(9, 5, 300))[:130], drawn(Resampling(9, 5, 130)))
    assert not np.array_equal(drawn(Resampling(9, 5, 300)), drawn(Resampling(9, 6, 300)))


@pytest.mark.parametrize(
    "bad", [{"clusters": 0}, {"clusters": 3, "resamples": 10}, {"clusters": 3, "seed": -1}]
)
def test_resampling_refuses(bad):
    with pytest.raises(DataError):
        Resampling(**bad)


@pytest.mark.parametrize("groups", [2, 5, 30])
def test_quantile_replicates_equal_built_resamples(groups):
    values, owner = clustered(groups, groups)
    values = np.round(values, 1)  # ties
    draws = Resampling(groups, 1, 150)
    probs = [0.5, 0.0, 0.999, 0.9, 1.0, 0.25]
    fast = quantile_replicates(values, owner, probs, draws)
    slow = [np.quantile(resample(values, owner, c), probs) for c in drawn(draws)]
    assert fast == pytest.approx(np.array(slow), rel=1e-12)


def test_quantile_replicates_with_infinite_values():
    values, owner = np.array([1.0, np.inf, 2.0, np.inf]), np.array([0, 0, 1, 1])
    found = quantile_replicates(values, owner, [0.0, 1 / 3, 1.0], Resampling(2, 0, 100))
    assert not np.isnan(found).any()
    assert np.all(found[:, 2] == np.inf)
    assert set(found[:, 0]) == {1.0, 2.0}


@pytest.mark.parametrize("p", [0.0, 0.1, 1 / 3, 0.5, 0.9, 1.0])
def test_quantile_sorted_is_numpys(p):
    values = np.sort(np.random.default_rng(0).normal(size=17))
    assert quantile_sorted(values, p) == pytest.approx(float(np.quantile(values, p)), rel=1e-14)


def test_quantile_interval_is_the_stated_formula():
    values, owner = clustered(1, 25)
    draws = Resampling(25, 0, 400)
    (interval,) = quantile_intervals(values, owner, [0.5], draws)
    logs = np.log([np.quantile(resample(values, owner, c), 0.5) for c in drawn(draws)])
    half = stats.t.ppf(0.975, 24) * math.sqrt(25 / 24) * logs.std(ddof=1)
    assert interval.value == pytest.approx(np.quantile(values, 0.5))
    assert interval.low == pytest.approx(interval.value * math.exp(-half))
    assert interval.high == pytest.approx(interval.value * math.exp(half))


def test_quantile_interval_with_zeros_is_the_expanded_percentile():
    values, owner = clustered(2, 25)
    values = np.where(values < 1, 0.0, values)
    draws = Resampling(25, 0, 400)
    (interval,) = quantile_intervals(values, owner, [0.5], draws)
    built = np.sort([np.quantile(resample(values, owner, c), 0.5) for c in drawn(draws)])
    tail = stats.norm.cdf(-math.sqrt(25 / 24) * stats.t.ppf(0.975, 24))
    assert built[0] == 0  # else this is not the case meant
    assert interval.low == pytest.approx(np.quantile(built, tail, method="inverted_cdf"))
    assert interval.high == pytest.approx(np.quantile(built, 1 - tail, method="inverted_cdf"))


def test_quantile_notes():
    values, owner = clustered(3, 30)
    (p999,) = quantile_intervals(values, owner, [0.999], Resampling(30))
    assert "fewer than 10 tokens beyond" in p999.reason
    (same,) = quantile_intervals(np.ones(50), np.arange(50) % 10, [0.5], Resampling(10))
    assert (same.value, same.low, same.high) == (1, 1, 1)
    assert "no variation" in same.reason
    (lone,) = quantile_intervals(values, np.zeros(len(values), int), [0.5], Resampling(1))
    assert math.isnan(lone.low)
    assert "at least 2" in lone.reason


def test_quantiles_refuse_what_does_not_fit():
    with pytest.raises(DataError, match="does not exist"):
        quantile_replicates(np.ones(4), np.arange(4), [99.0], Resampling(4))
    with pytest.raises(DataError, match="do not fit"):
        quantile_replicates(np.ones(4), np.array([0, 0, 2, 2]), [0.5], Resampling(3))


def test_percentile_tail_is_expanded():
    replicates = np.random.default_rng(0).normal(size=100_000)
    plain = np.quantile(replicates, [0.025, 0.975])
    few = percentile_interval(0.0, replicates, 10)
    many = percentile_interval(0.0, replicates, 100_000)
    assert few.low == pytest.approx(-math.sqrt(10 / 9) * stats.t.ppf(0.975, 9), abs=0.06)
    assert [many.low, many.high] == pytest.approx(plain, abs=0.01)


def test_ratio_standard_error_equals_loops():
    values, owner = clustered(4, 12)
    totals, sizes = sums(values, owner, 12)
    mean, error, groups = ratio_standard_error(totals[0], sizes[0])
    assert (mean, error) == pytest.approx(ratio(values, owner), rel=1e-12)
    assert groups == 12


def test_equal_clusters_of_one_give_the_textbook_error():
    values = np.random.default_rng(0).normal(size=40)
    _, error, _ = ratio_standard_error(values, np.ones(40))
    assert error == pytest.approx(stats.sem(values), rel=1e-12)


@pytest.mark.parametrize("scale", ["log", "real"])
def test_bootstrap_t_equals_loops(scale):
    values, owner = clustered(5, 10)
    draws = Resampling(10, 2, 200)
    (interval,) = ratio_intervals(*sums(values, owner, 10), [scale], draws)
    mean, error = ratio(values, owner)
    low_t, high_t = np.quantile(bootstrap_t(values, owner, draws, log=scale == "log"), [0.025, 0.975])
    if scale == "log":
        expected = [mean * math.exp(-high_t * error / mean), mean * math.exp(-low_t * error / mean)]
    else:
        reach = stats.t.ppf(0.975, 9) * error
        expected = [min(mean - high_t * error, mean - reach), max(mean - low_t * error, mean + reach)]
    assert [interval.low, interval.high] == pytest.approx(expected, rel=1e-9)


def test_logit_is_the_stated_formula():
    values, owner = clustered(6, 15)
    values = (values > 2).astype(float)
    (interval,) = ratio_intervals(*sums(values, owner, 15), ["logit"], Resampling(15))
    mean, error = ratio(values, owner)
    reach = stats.t.ppf(0.975, 14) * error / (mean * (1 - mean))
    assert interval.low == pytest.approx(special.expit(special.logit(mean) - reach))
    assert interval.high == pytest.approx(special.expit(special.logit(mean) + reach))


def test_rows_do_not_disturb_each_other():
    a, owner = clustered(7, 10)
    (ta, n), (tb, _) = sums(a, owner, 10), sums(a**2, owner, 10)
    both = ratio_intervals(np.vstack([ta, tb]), np.vstack([n, n]), ["log", "real"], Resampling(10))
    alone = [
        *ratio_intervals(ta, n, ["log"], Resampling(10)),
        *ratio_intervals(tb, n, ["real"], Resampling(10)),
    ]
    for x, y in zip(both, alone, strict=True):
        # not bit for bit: a matrix product may sum in another order
        assert [x.value, x.low, x.high] == pytest.approx([y.value, y.low, y.high], rel=1e-12)


def test_log_interval_is_scale_free_and_real_interval_shifts():
    values, owner = clustered(8, 20)
    draws = Resampling(20)
    (one,) = ratio_intervals(*sums(values, owner, 20), ["log"], draws)
    (tenth,) = ratio_intervals(*sums(values / 10, owner, 20), ["log"], draws)
    assert [10 * tenth.low, 10 * tenth.high] == pytest.approx([one.low, one.high])
    (base,) = ratio_intervals(*sums(values, owner, 20), ["real"], draws)
    (moved,) = ratio_intervals(*sums(values - 7, owner, 20), ["real"], draws)
    assert [moved.low + 7, moved.high + 7] == pytest.approx([base.low, base.high])


def test_one_cluster_gives_nan_with_reason():
    (interval,) = ratio_intervals(np.array([[3.0]]), np.array([[2.0]]), ["log"], Resampling(1))
    assert interval.value == 1.5
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)
    assert "at least 2" in interval.reason
    assert math.isnan(t_interval(1.0, 1.0, 1).low)
    assert "at least 2" in percentile_interval(1.0, np.ones(9), 1).reason


def test_few_clusters_carry_a_note():
    values, owner = clustered(9, 5)
    for scale in ("real", "log", "logit"):
        data = (values > 1).astype(float) if scale == "logit" else values
        (interval,) = ratio_intervals(*sums(data, owner, 5), [scale], Resampling(5))
        assert interval.low < interval.value < interval.high
        assert "few clusters (5)" in interval.reason


def test_empty_and_constant_rows():
    totals = np.array([np.zeros(9), np.zeros(9), np.full(9, 0.3), np.zeros(9), np.full(9, 3.0)])
    sizes = np.array([np.zeros(9), np.ones(9), np.full(9, 3.0), np.full(9, 3.0), np.full(9, 3.0)])
    found = ratio_intervals(totals, sizes, ["log", "log", "real", "logit", "logit"], Resampling(9))
    empty, zero, same, none, every = found
    assert math.isnan(empty.value)
    assert empty.reason == "no tokens"
    assert (zero.value, zero.low, zero.high) == (0, 0, 0)
    assert same.low == same.value == same.high
    assert "no variation" in zero.reason
    assert "no variation" in same.reason
    # nothing seen in 9 clusters is no proof of nothing: 1 − 0.05^(1/9)
    assert (none.low, none.high) == (0, pytest.approx(0.28313, abs=1e-5))
    assert (every.low, every.high) == (pytest.approx(1 - 0.28313, abs=1e-5), 1)


def test_value_in_a_single_cluster_falls_back_with_a_note():
    totals = np.zeros((1, 20))
    totals[0, 4] = 2.0
    (interval,) = ratio_intervals(totals, np.ones((1, 20)), ["log"], Resampling(20))
    # a third of all resamples miss that cluster: bootstrap-t is undefined there
    assert 0 < interval.low < 0.1 < interval.high < math.inf
    assert "concentrated" in interval.reason


def test_shapes_are_checked():
    with pytest.raises(DataError, match="do not fit"):
        ratio_intervals(np.ones((1, 3)), np.ones((1, 3)), ["log"], Resampling(4))


def test_mapped_keeps_level_and_reason():
    interval = mapped(t_interval(1.0, 0.1, 5, level=0.9), math.exp)
    assert interval.value == math.e
    assert interval.level == 0.9
    assert "few clusters" in interval.reason
