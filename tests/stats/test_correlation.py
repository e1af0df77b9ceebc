"""Correlations against SciPy's, their intervals, permutations and degenerate input."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from quantvane.errors import SpecError
from quantvane.stats.correlation import (
    METHODS,
    MINIMUM,
    Draws,
    check_method,
    correlate,
    correlate_rows,
    correlation_interval,
    permutation_p,
    ranks,
    resampled,
)

THEIRS = {"spearman": stats.spearmanr, "kendall": stats.kendalltau, "pearson": stats.pearsonr}
VALUES = st.lists(st.integers(-4, 4).map(float), min_size=5, max_size=12)  # few values: many ties


@settings(max_examples=60, deadline=None)
@given(x=VALUES, data=st.data())
@pytest.mark.parametrize("method", METHODS)
def test_scipy_says_the_same_ties_included(method, x, data):
    y = data.draw(st.lists(st.integers(-4, 4).map(float), min_size=len(x), max_size=len(x)))
    found = correlate(np.array(x), np.array(y), method)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert math.isnan(found.value)
        assert "the same for all" in found.reason
        return
    assert found.value == pytest.approx(THEIRS[method](x, y)[0], abs=1e-12)
    assert -1 <= found.low <= found.value + 1e-12
    assert found.value - 1e-12 <= found.high <= 1


def test_ranks_by_counting_and_by_sorting_agree():
    values = np.random.default_rng(0).integers(0, 9, (40, 30)).astype(float)
    assert np.array_equal(ranks(values), stats.rankdata(values, axis=-1))
    wide = np.random.default_rng(0).integers(0, 99, (2, 3000)).astype(float)
    assert np.array_equal(ranks(wide), stats.rankdata(wide, axis=-1))


@pytest.mark.parametrize("method", METHODS)
def test_a_resample_is_correlated_as_if_it_were_written_out(method):
    rng = np.random.default_rng(3)
    x, y = rng.integers(0, 6, 14).astype(float), rng.normal(size=14)
    drawn = Draws(5, 200).drawn(14)
    assert np.allclose(resampled(x, y, drawn, method), correlate_rows(x[drawn], y[drawn], method), equal_nan=True)


@pytest.mark.parametrize("method", METHODS)
def test_permutations_give_the_exact_p(method):
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=6), rng.normal(size=6)
    orders = np.array(list(itertools.permutations(range(6))))

    def statistic(one, other):
        if method == "kendall":
            return np.abs(correlate_rows(one, other, method))
        a, b = (v if method == "pearson" else stats.rankdata(v, axis=-1) for v in (one, other))
        a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
        return np.abs((a * b).sum(-1)) / np.sqrt((a * a * b * b).sum(-1))

    exact = np.mean(statistic(x[None], y[orders]) >= statistic(x, y) - 1e-12)
    assert permutation_p(x, y, method, Draws(0, permutations=20000)) == pytest.approx(exact, abs=0.012)


def test_missing_values_are_left_out_and_too_few_have_a_reason():
    x = np.array([1.0, 2, 3, 4, 5, math.nan])
    y = np.array([2.0, 1, 4, 3, 5, 9])
    found = correlate(x, y, draws=Draws(0, 100, 100))
    assert (found.n, found.value) == (5, pytest.approx(0.8))
    assert found.to_dict()["value"] == found.value
    few = correlate(x[:3], y[:3])
    assert math.isnan(few.value)
    assert few.reason == f"only 3 candidates with both values; at least {MINIMUM} are needed"
    assert few.to_dict() == {"value": None, "n": 3, "ci": None, "ci_bootstrap": None, "p": None, "reason": few.reason}


def test_a_perfect_order_has_an_interval_short_of_nothing():
    low, high = correlation_interval(-1.0, 10)
    assert low == -1
    assert -1 < high < -0.8
    assert all(map(math.isnan, correlation_interval(0.5, 3)))


def test_equal_seeds_equal_draws():
    assert np.array_equal(Draws(7).orders(9), Draws(7).orders(9))
    assert not np.array_equal(Draws(7).orders(9), Draws(8).orders(9))
    with pytest.raises(SpecError):
        check_method("cosine")
