"""Ranks, paired differences, Holm, ties."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from quantvane.displacement.ranking import compare_candidates
from quantvane.errors import DataError

GROUPS = 40


def candidates(seed=0):
    """Four candidates on common positions: a and b nearly equal, c somewhat, d far worse."""
    rng = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(GROUPS), 50)
    base = np.exp(0.5 * rng.standard_normal(GROUPS)[clusters] + rng.standard_normal(len(clusters)))
    noise = {name: np.exp(0.2 * rng.standard_normal(len(clusters))) for name in "abcd"}
    factor = {"a": 0.1, "b": 0.1, "c": 0.115, "d": 0.3}
    return {name: factor[name] * base * noise[name] for name in "dbca"}, clusters


def cluster_means(x):
    return x.reshape(GROUPS, 50).mean(axis=1)


def test_order_difference_and_ties():
    klds, clusters = candidates()
    ranks = compare_candidates(klds, clusters)
    assert [r.rank for r in ranks] == [1, 2, 3, 4]
    assert {ranks[0].name, ranks[1].name} == {"a", "b"}
    assert [ranks[2].name, ranks[3].name] == ["c", "d"]
    first, second, third, fourth = ranks
    assert first.behind is None
    assert first.tied_with == (second.name,)
    assert second.tied_with == (first.name,)
    assert third.tied_with == fourth.tied_with == ()
    for better, worse in ((first, second), (second, third), (third, fourth)):
        assert worse.mean.value == pytest.approx(klds[worse.name].mean())
        # equal clusters: the paired t-test over cluster means
        d = cluster_means(klds[worse.name] - klds[better.name])
        assert worse.behind.value == pytest.approx(d.mean())
        plain = stats.t.interval(0.95, GROUPS - 1, d.mean(), stats.sem(d))
        assert worse.behind.low <= plain[0] + 1e-12
        assert worse.behind.high >= plain[1] - 1e-12


def test_pairing_is_what_separates():
    klds, clusters = candidates()
    c = next(r for r in compare_candidates(klds, clusters) if r.name == "c")
    a = next(r for r in compare_candidates(klds, clusters) if r.name == "a")
    assert a.mean.high > c.mean.low  # unpaired intervals overlap
    assert "a" not in c.tied_with


def test_holm_is_statsmodels():
    klds, clusters = candidates(3)
    ranks = compare_candidates(klds, clusters)
    order = [r.name for r in ranks]
    pairs = [(x, y) for i, x in enumerate(order) for y in order[i + 1 :]]
    p = [stats.ttest_1samp(cluster_means(klds[y] - klds[x]), 0).pvalue for x, y in pairs]
    adjusted = dict(zip(pairs, multipletests(p, method="holm")[1], strict=True))
    for i, rank in enumerate(ranks[1:], start=1):
        assert rank.p_holm == pytest.approx(adjusted[order[i - 1], rank.name], rel=1e-6)
    assert math.isnan(ranks[0].p_holm)


def test_holm_ties_what_a_single_test_would_not():
    rng = np.random.default_rng(0)
    base = rng.lognormal(0, 1, GROUPS)
    d = stats.norm.ppf((np.arange(GROUPS) + 0.5) / GROUPS)
    d += 2.2 * d.std(ddof=1) / math.sqrt(GROUPS)  # t = 2.2: p = 0.034
    klds = {"a": base + 9, "b": base + 9 + 0.1 * rng.permutation(d)}
    alone = compare_candidates(klds, np.arange(GROUPS))
    assert alone[1].p_holm == pytest.approx(0.034, abs=0.001)
    assert alone[1].tied_with == ()
    klds |= {
        "c": klds["b"] + 0.01 * rng.standard_normal(GROUPS),
        "d": klds["b"] + 0.01 * rng.standard_normal(GROUPS),
    }
    assert {"a", "b"} <= {x for r in compare_candidates(klds, np.arange(GROUPS)) for x in r.tied_with}


def test_floor_ties_significant_differences():
    klds, clusters = candidates()
    gap = klds["c"].mean() - min(klds["a"].mean(), klds["b"].mean())
    within = compare_candidates(klds, clusters, floor=1.01 * gap)
    assert set(within[2].tied_with) == {"a", "b"}
    assert within[3].tied_with == ()
    for unknown in (None, math.nan, 0.0):
        assert compare_candidates(klds, clusters, floor=unknown)[2].tied_with == ()


def test_identical_candidates_are_tied():
    kld = np.random.default_rng(0).lognormal(size=50)
    ranks = compare_candidates({"y": kld, "x": kld.copy()}, np.arange(50) // 5)
    assert [r.name for r in ranks] == ["x", "y"]
    assert ranks[1].behind.value == 0
    assert ranks[1].p_holm == 1
    assert ranks[1].tied_with == ("x",)


def test_one_cluster_separates_nothing():
    klds, clusters = candidates()
    ranks = compare_candidates(klds, np.zeros_like(clusters))
    for rank in ranks:
        assert len(rank.tied_with) == 3
        assert math.isnan(rank.p_holm)
    assert "at least 2" in ranks[1].behind.reason
    json.dumps([rank.to_dict() for rank in ranks], allow_nan=False)


def test_infinite_means_come_last():
    klds, clusters = candidates()
    for name in ("a", "b"):
        klds[name][7] = math.inf
    ranks = compare_candidates(klds, clusters)
    assert [r.name for r in ranks] == ["c", "d", "a", "b"]
    assert ranks[2].tied_with == ("b",)
    assert ranks[3].tied_with == ("a",)
    assert ranks[2].behind.value == math.inf
    assert math.isnan(ranks[3].behind.value)
    document = json.loads(json.dumps([rank.to_dict() for rank in ranks], allow_nan=False))
    assert document[2]["kld_mean"]["value"] is None
    assert "1 of 2000 tokens" in document[2]["kld_mean"]["reason"]
    assert document[0]["behind"] is None


def test_single_candidate_and_refusals():
    klds, clusters = candidates()
    (only,) = compare_candidates({"a": klds["a"]}, clusters)
    assert only.rank == 1
    assert only.tied_with == ()
    with pytest.raises(DataError, match="does not fit"):
        compare_candidates({"a": klds["a"][1:]}, clusters)
    klds["a"][0] = math.nan
    with pytest.raises(DataError, match="'a' holds NaN"):
        compare_candidates(klds, clusters)
