"""Aggregates against plain loops and np.quantile; degenerate inputs; shards; the JSON form."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest

from quantvane.displacement.aggregate import CONFIDENCE_CUTS, aggregate
from quantvane.displacement.state import DisplacementState
from quantvane.errors import DataError
from quantvane.types import TOKEN_FIELDS

SIMPLE_MEANS = {
    "kld_rev_mean": "kld_rev",
    "jsd_mean": "jsd",
    "tv_mean": "tv",
    "hellinger_mean": "hellinger",
    "fisher_rao_mean": "fisher_rao",
    "entropy_ref_mean": "entropy_ref",
    "entropy_cand_mean": "entropy_cand",
    "lambda_ref_mean": "lambda_ref",
    "lambda_cand_mean": "lambda_cand",
    "topk_overlap_mean": "topk_overlap",
    "rank_in_cand_mean": "rank_in_cand",
    "delta_p_mean": "delta_p",
    "top1_agreement": "same_top1",
}


def table(tokens=1237, groups=17, seed=0):
    """Random columns; kld has zeros and ties."""
    rng = np.random.default_rng(seed)
    columns = {name: rng.lognormal(-2, 1, tokens) for name in TOKEN_FIELDS}
    columns["kld"] = np.where(rng.random(tokens) < 0.1, 0.0, np.round(columns["kld"], 3))
    columns["delta_p"] = rng.normal(0, 0.1, tokens)
    columns["pmax_ref"] = rng.random(tokens)
    columns["same_top1"] = rng.random(tokens) < 0.9
    columns["topk_overlap"] = rng.integers(0, 11, tokens) / 10
    columns["rank_in_cand"] = rng.integers(0, 5, tokens).astype(np.int32)
    columns["position"] = rng.integers(256, 511, tokens)
    return columns, rng.integers(0, groups, tokens) * 10


def identical(tokens=400):
    """What comparing a model with itself gives."""
    rng = np.random.default_rng(1)
    columns = {name: np.zeros(tokens) for name in TOKEN_FIELDS}
    for name in ("nll", "entropy", "pmax", "lambda"):
        columns[f"{name}_ref"] = columns[f"{name}_cand"] = rng.random(tokens)
    columns["same_top1"] = np.ones(tokens, bool)
    columns["topk_overlap"] = np.ones(tokens)
    columns["position"] = np.arange(tokens) % 40
    return columns, np.arange(tokens) // 40


def test_values_equal_plain_loops():
    columns, clusters = table()
    found = aggregate(columns, clusters, resamples=200)
    kld = sorted(columns["kld"].tolist())
    n = len(kld)
    assert found.tokens == n
    assert found.clusters == 17
    assert found.kld.mean.value == pytest.approx(math.fsum(kld) / n, rel=1e-12)
    for name, p in (("median", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99), ("p999", 0.999)):
        assert getattr(found.kld, name).value == pytest.approx(np.quantile(kld, p), rel=1e-12)
    assert found.kld.max.value == kld[-1]
    top = kld[-math.ceil(n / 20) :]
    assert len(top) == 62
    assert found.kld.top5_mean.value == pytest.approx(math.fsum(top) / len(top), rel=1e-12)
    positive = [x for x in kld if x > 0]
    logs = [math.log(x) for x in positive]
    assert found.kld.geomean.value == pytest.approx(math.exp(math.fsum(logs) / len(logs)), rel=1e-12)
    assert found.kld.excluded_share == pytest.approx(1 - len(positive) / n)
    assert found.kld.excluded_share > 0.05
    for name, column in SIMPLE_MEANS.items():
        assert getattr(found, name).value == pytest.approx(math.fsum(columns[column]) / n, rel=1e-12), name
    nll = [math.fsum(columns[x]) / n for x in ("nll_ref", "nll_cand")]
    assert found.ppl_ref.value == pytest.approx(math.exp(nll[0]), rel=1e-12)
    assert found.ppl.value == pytest.approx(math.exp(nll[1]), rel=1e-12)
    assert found.ln_ppl_ratio.value == pytest.approx(nll[1] - nll[0], abs=1e-13)
    square = math.fsum(x * x for x in columns["delta_p"]) / n
    assert found.delta_p_rms.value == pytest.approx(math.sqrt(square), rel=1e-12)
    for above in found.share_above:
        assert above.share.value == pytest.approx(sum(x > above.threshold for x in kld) / n)


def test_buckets_equal_plain_loops():
    columns, clusters = table()
    found = aggregate(columns, clusters, resamples=200)
    assert [b.low for b in found.by_confidence] == list(CONFIDENCE_CUTS[:-1])
    assert [(b.low, b.high) for b in found.by_position] == [(256, 320), (320, 384), (384, 447), (447, 511)]
    for buckets, by in ((found.by_confidence, "pmax_ref"), (found.by_position, "position")):
        assert sum(b.tokens for b in buckets) == found.tokens
        for b in buckets:
            inside = [k for k, x in zip(columns["kld"], columns[by], strict=True) if b.low <= x < b.high]
            assert b.tokens == len(inside)
            assert b.kld_mean.value == pytest.approx(math.fsum(inside) / len(inside), rel=1e-12)


def test_confidence_of_exactly_one_and_empty_buckets():
    columns = {"kld": np.arange(1.0, 21.0), "pmax_ref": np.full(20, 1.0)}
    found = aggregate(columns, np.arange(20), resamples=100)
    assert [b.tokens for b in found.by_confidence] == [0] * 6 + [20]
    assert math.isnan(found.by_confidence[0].kld_mean.value)
    assert found.by_confidence[0].to_dict()["kld_mean"] == {"value": None, "ci": None, "reason": "no tokens"}


@pytest.mark.parametrize(("n", "count"), [(1, 1), (20, 1), (21, 2), (100, 5), (140, 7), (141, 8)])
def test_top5_takes_the_ceiling(n, count):
    found = aggregate({"kld": np.arange(1.0, n + 1)}, np.arange(n), resamples=100)
    assert found.kld.top5_mean.value == pytest.approx(np.arange(n - count + 1, n + 1).mean())


def test_every_interval_holds_its_value():
    columns, clusters = table()
    document = aggregate(columns, clusters, resamples=300).to_dict()

    def walk(node, path):
        if isinstance(node, dict) and "ci" in node:
            low, high = node["ci"]
            assert low < node["value"] < high, path
            return 1
        children = (
            node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        )
        return sum(walk(child, f"{path}.{key}") for key, child in children)

    assert walk(document, "") == 8 + 5 + len(SIMPLE_MEANS) - 1 + 3 + 7 + 4


def test_level_widens_intervals():
    columns, clusters = table()
    wide, narrow = (aggregate(columns, clusters, resamples=400, level=x) for x in (0.99, 0.8))
    for name in ("mean", "median", "p99", "top5_mean", "geomean"):
        w, n = getattr(wide.kld, name), getattr(narrow.kld, name)
        assert w.low < n.low < n.high < w.high
        assert w.level == 0.99


def test_json_form_is_the_contract():
    columns, clusters = table()
    document = json.loads(json.dumps(aggregate(columns, clusters, resamples=100).to_dict(), allow_nan=False))
    assert list(document["kld"]) == [
        "mean",
        "median",
        "p90",
        "p95",
        "p99",
        "p999",
        "max",
        "top5_mean",
        "geomean",
    ]
    assert document["kld"]["max"] == {"value": columns["kld"].max(), "reason": "sample extreme"}
    assert set(document) == {
        "tokens",
        "clusters",
        "kld",
        "ppl",
        "ppl_ref",
        "ln_ppl_ratio",
        "delta_p_rms",
        "share_above",
        "by_confidence",
        "by_position",
        *SIMPLE_MEANS,
    }
    assert [x["threshold"] for x in document["share_above"]] == [0.01, 0.1, 1.0]
    assert set(document["by_position"][0]) == {"low", "high", "tokens", "kld_mean"}


def test_seed_decides():
    columns, clusters = table()
    first, again, other = (aggregate(columns, clusters, seed=s, resamples=200) for s in (4, 4, 5))
    assert first == again
    assert first.kld.mean != other.kld.mean
    assert first.kld.p99 != other.kld.p99


def test_labels_of_clusters_do_not_matter():
    columns, clusters = table()
    named = np.array([f"doc {c:04d}" for c in clusters])
    assert aggregate(columns, clusters, resamples=100) == aggregate(columns, named, resamples=100)


def test_self_comparison_is_zero_and_says_what_it_cannot():
    columns, clusters = identical()
    found = aggregate(columns, clusters, resamples=100)
    for name in ("mean", "median", "p90", "p999", "top5_mean"):
        interval = getattr(found.kld, name)
        assert (interval.value, interval.low, interval.high) == (0, 0, 0)
        assert "no variation" in interval.reason
    assert math.isnan(found.kld.geomean.value)
    assert found.kld.geomean.reason == "no positive value"
    assert found.kld.excluded_share == 1
    assert found.ln_ppl_ratio.value == 0
    assert found.delta_p_rms.value == 0
    assert found.top1_agreement.value == 1
    assert found.top1_agreement.low == pytest.approx(0.05 ** (1 / 10))
    assert found.ppl == found.ppl_ref
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert document["kld"]["geomean"] == {
        "value": None,
        "ci": None,
        "reason": "no positive value",
        "excluded_share": 1.0,
    }


def test_infinite_kld():
    columns, clusters = table()
    columns["kld"][:3] = columns["nll_cand"][:3] = np.inf
    found = aggregate(columns, clusters, resamples=100)
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert found.kld.mean.value == math.inf
    assert document["kld"]["mean"] == {
        "value": None,
        "ci": None,
        "reason": "infinite: not finite at 3 of 1237 tokens",
    }
    assert document["kld"]["infinite"] == 3
    assert document["kld"]["max"] == {"value": None, "reason": "infinite at 3 tokens"}
    assert document["kld"]["top5_mean"]["value"] is None
    assert document["kld"]["geomean"]["value"] is None
    assert document["kld"]["p999"]["value"] is None
    assert document["ppl"]["value"] is None
    assert document["ln_ppl_ratio"]["value"] is None
    assert document["ppl_ref"]["ci"] is not None
    assert document["kld"]["p99"]["value"] == pytest.approx(np.quantile(columns["kld"], 0.99))
    assert document["kld"]["median"]["ci"] is not None
    assert document["share_above"][2]["share"]["ci"] is not None
    assert any(b["kld_mean"]["value"] is None for b in document["by_confidence"])


def test_both_nll_infinite_is_undefined_not_zero():
    columns = {"kld": np.ones(20), "nll_ref": np.ones(20), "nll_cand": np.ones(20)}
    columns["nll_ref"][4] = columns["nll_cand"][4] = np.inf
    found = aggregate(columns, np.arange(20), resamples=100)
    assert math.isnan(found.ln_ppl_ratio.value)
    assert "undefined" in found.ln_ppl_ratio.reason


def test_one_cluster_has_values_without_intervals():
    columns, clusters = table()
    found = aggregate(columns, np.zeros_like(clusters), resamples=100)
    for interval in (found.kld.mean, found.kld.p99, found.kld.top5_mean, found.top1_agreement, found.ppl):
        assert math.isfinite(interval.value)
        assert math.isnan(interval.low)
        assert "at least 2" in interval.reason


def test_few_clusters_are_noted():
    columns, clusters = table(groups=4)
    found = aggregate(columns, clusters, resamples=100)
    for interval in (found.kld.mean, found.kld.p99, found.kld.top5_mean, found.top1_agreement, found.ppl):
        assert interval.low < interval.value < interval.high
        assert "few clusters (4)" in interval.reason


def test_absent_columns_are_nan_with_a_reason():
    found = aggregate({"kld": np.arange(30.0)}, np.arange(30), resamples=100)
    assert found.ppl.reason == "column not recorded"
    assert math.isnan(found.ln_ppl_ratio.value)
    assert found.by_confidence == ()
    assert found.by_position == ()
    assert found.kld.mean.value == 14.5


@pytest.mark.parametrize(
    ("columns", "clusters", "match"),
    [
        ({"nll_ref": np.ones(3)}, np.arange(3), "'kld' is missing"),
        ({"kld": np.ones(3)}, np.arange(4), "does not fit"),
        ({"kld": np.ones(3), "jsd": np.ones(2)}, np.arange(3), "'jsd' does not fit"),
        ({"kld": np.array([1, np.nan, 2])}, np.arange(3), "holds NaN"),
        ({"kld": np.ones(0)}, np.arange(0), "no tokens"),
    ],
)
def test_refuses(columns, clusters, match):
    with pytest.raises(DataError, match=match):
        aggregate(columns, clusters, resamples=100)


def test_sharded_equals_unsharded():
    columns, clusters = table()
    whole = DisplacementState().update(columns, clusters).finish(resamples=100)
    cuts = [slice(0, 100), slice(100, 101), slice(101, 900), slice(900, None)]
    shards = [
        DisplacementState().update({k: v[cut] for k, v in columns.items()}, clusters[cut]) for cut in cuts
    ]
    left = shards[0].merge(shards[1]).merge(shards[2]).merge(shards[3])
    right = shards[0].merge(shards[1].merge(shards[2].merge(shards[3])))
    assert left.finish(resamples=100) == whole == right.finish(resamples=100)
    assert whole == aggregate(columns, clusters, resamples=100)
    shuffled = shards[2].merge(shards[0]).merge(shards[3]).merge(shards[1]).finish(resamples=100)
    assert shuffled.kld.mean.high == pytest.approx(whole.kld.mean.high, rel=1e-10)
    assert shuffled.kld.p99 == whole.kld.p99


def test_shards_must_hold_the_same_columns():
    state = DisplacementState().update({"kld": np.ones(2)}, np.arange(2))
    with pytest.raises(DataError, match="different columns"):
        state.update({"kld": np.ones(2), "jsd": np.ones(2)}, np.arange(2))
    with pytest.raises(DataError, match="no tokens"):
        DisplacementState().finish()


class InBlocks(dict):
    """Columns that are read a block of rows at a time, blocks of uneven length."""

    def blocks(self, names):
        ends = [0, 1, 400, 400, 1000, len(self["kld"])]
        for start, stop in itertools.pairwise(ends):
            yield {name: self[name][start:stop] for name in names}


def test_blocks_give_what_whole_columns_give():
    columns, clusters = table()
    whole, blocks = aggregate(columns, clusters), aggregate(InBlocks(columns), clusters)
    assert blocks.kld.p99 == whole.kld.p99
    assert blocks.kld.top5_mean.value == pytest.approx(whole.kld.top5_mean.value, rel=1e-14)
    for name in ("delta_p_mean", "tv_mean", "ppl", "ln_ppl_ratio", "delta_p_rms"):
        a, b = getattr(blocks, name), getattr(whole, name)
        assert a.value == pytest.approx(b.value, rel=1e-12), name
        assert a.low == pytest.approx(b.low, rel=1e-9), name
    assert [b.tokens for b in blocks.by_confidence] == [b.tokens for b in whole.by_confidence]
    assert [b.low for b in blocks.by_position] == [b.low for b in whole.by_position]


def test_clusters_may_be_named_by_columns():
    columns, clusters = table()
    named = InBlocks({**columns, "corpus": clusters // 9, "document": clusters % 9})
    found = aggregate(named, ("corpus", "document"), resamples=100)
    assert found == aggregate(InBlocks(columns), clusters, resamples=100)
    assert aggregate(InBlocks({**columns, "window": clusters}), ("window",), resamples=100) == found
    with pytest.raises(DataError, match="no tokens"):
        aggregate(InBlocks({"kld": np.empty(0), "window": np.empty(0, int)}), ("window",))


@pytest.mark.parametrize("name", ["kld", "tv"])
def test_blocks_refuse_nan_and_other_lengths(name):
    columns, clusters = table()
    with pytest.raises(DataError, match="does not fit"):
        aggregate(InBlocks(columns), clusters[:-1])
    columns[name] = columns[name].copy()
    columns[name][[3, 1100]] = math.nan
    with pytest.raises(DataError, match=f"'{name}' holds NaN") as caught:
        aggregate(InBlocks(columns), clusters)
    assert caught.value.got == "NaN at 2 of 1237 tokens"
