from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from quantvane.errors import DataError
from quantvane.stats.equivalence import items_needed, tost
from quantvane.stats.paired import paired_interval
from quantvane.stats.pairs import PairCounts, pair_counts


@pytest.mark.parametrize(("n", "drops", "leapfrogs"), [(2000, 30, 25), (500, 4, 2), (300, 30, 40), (400, 0, 0)])
@pytest.mark.parametrize("margin", [0.01, 0.02, 0.05])
def test_equivalent_exactly_where_the_90_percent_interval_lies_within_the_margin(n, drops, leapfrogs, margin):
    pairs = PairCounts(n, drops, leapfrogs)
    within = paired_interval(pairs, 0.90)
    assert (tost(pairs, margin).p <= 0.05) == (-margin < within.low and within.high < margin)


def test_clustered_tost_is_two_t_tests():
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(30), 6)
    ref, cand = rng.random(180) < 0.5, rng.random(180) < 0.5
    pairs = pair_counts(ref, cand, labels)
    t = np.array([pairs.delta + 0.1, pairs.delta - 0.1]) / pairs.robust_error
    assert tost(pairs, 0.1).p == pytest.approx(max(stats.t.sf(t[0], 29), stats.t.cdf(t[1], 29)))


def test_verdicts():
    assert tost(PairCounts(5000, 20, 22), 0.02).verdict == "equivalent"
    assert tost(PairCounts(400, 38, 21), 0.02).verdict == "worse"
    assert tost(PairCounts(400, 21, 38), 0.02).verdict == "better"
    assert tost(PairCounts(200, 21, 23), 0.02).verdict == "undecided"
    # a real difference inside the margin is what the margin says does not matter
    assert tost(PairCounts(20000, 150, 50), 0.02).verdict == "equivalent"


def test_items_needed():
    needed = items_needed(PairCounts(200, 10, 10), 0.02).items
    assert needed is not None
    # Lu and Bean's first-order formula: ψ(z₀.₉₅ + z₀.₉)²/m²
    assert needed == pytest.approx(0.1 * (1.6449 + 1.2816) ** 2 / 0.02**2, rel=0.05)
    assert items_needed(PairCounts(200, 10, 10), 0.01).items > 3.5 * needed
    nothing = items_needed(PairCounts(50, 0, 0), 0.02).items
    assert tost(PairCounts(nothing, 0, 0), 0.02).verdict == "equivalent"
    assert tost(PairCounts(nothing - 2, 0, 0), 0.02).verdict == "undecided"


def test_clusters_need_more_items():
    d = np.repeat([1, -1, 0, 0, 0, 0, 0, 0, 0, 0] * 5, 4)
    alone = items_needed(pair_counts(d < 0, d > 0), 0.05).items
    together = items_needed(pair_counts(d < 0, d > 0, np.repeat(np.arange(50), 4)), 0.05).items
    assert together == pytest.approx(4 * alone, rel=0.05)


def test_degenerate_data_and_margins():
    empty = tost(PairCounts(0, 0, 0), 0.02)
    assert math.isnan(empty.p)
    assert empty.to_dict() == {"margin": 0.02, "p": None, "verdict": "undecided", "reason": "no items"}
    assert items_needed(PairCounts(0, 0, 0), 0.02).items is None
    one = pair_counts(np.ones(4, bool), np.zeros(4, bool), np.zeros(4))
    assert math.isnan(tost(one, 0.02).p)
    assert tost(one, 0.02).verdict == "undecided"
    for margin in (0.0, -0.1, 1.0, math.nan):
        with pytest.raises(DataError):
            tost(PairCounts(10, 1, 1), margin)
        with pytest.raises(DataError):
            items_needed(PairCounts(10, 1, 1), margin)
