"""McNemar, Tango's interval, the clustered forms: against statsmodels and against slow twins."""

from __future__ import annotations

import math

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as sm_mcnemar
from statsmodels.stats.proportion import proportion_confint

from quantvane.errors import DataError
from quantvane.stats.paired import direction_interval, mcnemar, paired_interval, tango_z
from quantvane.stats.pairs import PairCounts, pair_counts
from reference.paired_slow import score_z, sign_change_p

tables = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(1, 300)).map(
    lambda t: PairCounts(t[0] + t[1] + t[2], t[0], t[1])
)


@given(tables)
def test_mcnemar_is_statsmodels(pairs):
    table = [[pairs.n - pairs.flips, pairs.drops], [pairs.leapfrogs, 0]]
    expected = sm_mcnemar(table, exact=True).pvalue if pairs.flips else 1.0
    assert mcnemar(pairs).p == pytest.approx(min(expected, 1.0), rel=1e-9)


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9))
def test_sign_changes_of_clusters_are_counted_exactly(totals):
    ref = np.concatenate([np.arange(5) < -t for t in totals])
    cand = np.concatenate([np.arange(5) < t for t in totals])
    pairs = pair_counts(ref, cand, np.repeat(np.arange(len(totals)), 5))
    assert mcnemar(pairs).p == pytest.approx(sign_change_p(totals), rel=1e-12)


@given(tables)
def test_clusters_of_one_flip_give_mcnemar_itself(pairs):
    d = np.array([-1] * pairs.drops + [1] * pairs.leapfrogs + [0] * (pairs.n - pairs.flips))
    two = np.repeat(d, 2) * np.tile([1, 0], len(d))  # the flip and an item that did not flip
    clustered = pair_counts(two < 0, two > 0, np.repeat(np.arange(len(d)), 2))
    assert clustered.sizes is not None
    assert mcnemar(clustered).p == pytest.approx(mcnemar(pairs).p, rel=1e-9)


@settings(max_examples=60)
@given(tables, st.floats(-0.9, 0.9))
def test_the_score_statistic_is_that_of_the_maximised_likelihood(pairs, delta):
    expected = score_z(pairs.drops, pairs.leapfrogs, pairs.n, delta)
    found = tango_z(pairs.drops, pairs.leapfrogs, pairs.n, delta)
    assert found == pytest.approx(expected, rel=2e-4, abs=2e-4)


@given(tables)
def test_the_interval_ends_where_the_score_test_begins_to_reject(pairs):
    found = paired_interval(pairs)
    assert found.low <= found.value <= found.high
    for end, sign in ((found.low, 1), (found.high, -1)):
        if abs(end) < 1:
            assert tango_z(pairs.drops, pairs.leapfrogs, pairs.n, end) == pytest.approx(sign * 1.959964, abs=1e-4)


def test_nothing_flipped_still_has_a_width():
    found = paired_interval(PairCounts(100, 0, 0))
    z2 = stats.norm.ppf(0.975) ** 2
    assert found.value == 0
    assert found.high == pytest.approx(z2 / (100 + z2), rel=1e-9)
    assert found.low == pytest.approx(-found.high, rel=1e-9)


def test_everything_flipped():
    found = paired_interval(PairCounts(10, 10, 0))
    assert found.value == found.low == -1
    assert -1 < found.high < 0


@given(st.integers(0, 2**31), st.integers(3, 40))
def test_clustered_errors_are_those_of_statsmodels(seed, groups):
    rng = np.random.default_rng(seed)
    labels = np.sort(rng.integers(0, groups, 4 * groups))
    ref, cand = rng.random(len(labels)) < 0.6, rng.random(len(labels)) < 0.5
    pairs = pair_counts(ref, cand, labels)
    d = cand.astype(float) - ref
    fit = sm.OLS(d, np.ones(len(d))).fit(cov_type="cluster", cov_kwds={"groups": labels}, use_t=True)
    low, high = fit.conf_int()[0]
    found = paired_interval(pairs)
    if pairs.robust_error > 0:
        assert pairs.robust_error == pytest.approx(fit.bse[0], rel=1e-9)
        assert found.low == pytest.approx(max(low, -1), rel=1e-7, abs=1e-9)
        assert found.high == pytest.approx(min(high, 1), rel=1e-7, abs=1e-9)


@given(tables)
def test_the_direction_interval_is_that_of_statsmodels(pairs):
    found = direction_interval(pairs)
    if not pairs.flips:
        assert math.isnan(found.value)
        assert found.reason == "no item flipped"
        return
    low, high = proportion_confint(pairs.leapfrogs, pairs.flips, method="beta")
    assert (found.low, found.high) == pytest.approx((2 * low - 1, 2 * high - 1), abs=1e-9)


def test_copies_of_an_item_in_one_cluster_prove_nothing_more():
    d = np.array([1] * 9 + [-1] * 2 + [0] * 39)
    once = pair_counts(d < 0, d > 0)
    copies = np.repeat(d, 5)
    labels = np.repeat(np.arange(50), 5)
    clustered, naive = pair_counts(copies < 0, copies > 0, labels), pair_counts(copies < 0, copies > 0)
    assert mcnemar(clustered).p == pytest.approx(mcnemar(once).p)
    assert mcnemar(naive).p < mcnemar(once).p / 10
    assert clustered.design_effect == pytest.approx(5, rel=0.1)
    wide, narrow = paired_interval(clustered), paired_interval(naive)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_degenerate_data_say_so():
    assert math.isnan(mcnemar(PairCounts(0, 0, 0)).p)
    assert paired_interval(PairCounts(0, 0, 0)).reason == "no items"
    one = pair_counts(np.array([True, True]), np.array([False, True]), np.array([7, 7]))
    found = paired_interval(one)
    assert found.value == -0.5
    assert math.isnan(found.low)
    assert "1 cluster" in found.reason
    same = pair_counts(np.ones(6, bool), np.ones(6, bool), np.array([1, 1, 2, 2, 3, 3]))
    assert paired_interval(same).high > 0.3
    with pytest.raises(DataError):
        PairCounts(3, 2, 2)
    with pytest.raises(DataError):
        pair_counts(np.ones(3, bool), np.ones(4, bool))
