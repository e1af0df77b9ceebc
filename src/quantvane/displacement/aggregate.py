"""Aggregates of per-token displacement, each with an interval: columns in, one frozen record out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from quantvane.displacement._columns import Clusters, Columns, Term, column, interval_of, position_edges
from quantvane.displacement.summary import QUANTILES, Aggregate, Bucket, KldSummary, ShareAbove
from quantvane.stats.quantiles import block_quantiles
from quantvane.stats.ranked import BlockSample
from quantvane.stats.resampling import Resampling, Scale, mapped, ratio_intervals
from quantvane.types import FloatArray, Interval

__all__ = ["CONFIDENCE_CUTS", "THRESHOLDS", "TOP_PERCENT", "aggregate"]

_Buckets = list[tuple[Term, tuple[float, float]]]

THRESHOLDS: tuple[float, ...] = (0.01, 0.1, 1.0)
"""Nats above which the share of tokens is reported."""

CONFIDENCE_CUTS: tuple[float, ...] = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0)
"""Edges of the buckets of pmax_ref: low ≤ pmax < high, the last one closed."""

TOP_PERCENT = 5
"""top5_mean is the mean of the ⌈n·5/100⌉ largest values."""

# field of Aggregate → (column, scale); each is the plain mean of its column
_MEANS: dict[str, tuple[str, Scale]] = {
    "delta_p_mean": ("delta_p", "real"),
    "top1_agreement": ("same_top1", "logit"),
    "kld_rev_mean": ("kld_rev", "log"),
    "jsd_mean": ("jsd", "log"),
    "tv_mean": ("tv", "log"),
    "hellinger_mean": ("hellinger", "log"),
    "fisher_rao_mean": ("fisher_rao", "log"),
    "entropy_ref_mean": ("entropy_ref", "log"),
    "entropy_cand_mean": ("entropy_cand", "log"),
    "lambda_ref_mean": ("lambda_ref", "log"),
    "lambda_cand_mean": ("lambda_cand", "log"),
    "topk_overlap_mean": ("topk_overlap", "logit"),
    "rank_in_cand_mean": ("rank_in_cand", "log"),
}


def aggregate(
    columns: Mapping[str, npt.NDArray[Any]],
    clusters: Clusters,
    *,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
    thresholds: Sequence[float] = THRESHOLDS,
) -> Aggregate:
    """Aggregate T scored tokens.

    Args:
        columns: (T,) arrays under the names of `quantvane.types.TOKEN_FIELDS` and ``position`` (in the
            window). ``kld`` is required; what is absent gives NaN with a reason (buckets: an empty list).
        clusters: (T,) labels of the unit to resample: document, or window where there is one document; where the
            columns are read in blocks also the names of those that hold the labels.
        seed, resamples: of the cluster bootstrap; candidates measured on the same positions share their
            resamples.
        level: nominal coverage of every interval.
        thresholds: nats, for ``share_above``.

    Raises:
        DataError: kld missing, no tokens, columns of unequal length, NaN in a column.

    Infinite values are legal in kld, kld_rev and the nll: the mean is then infinite (null with a reason in
    JSON), quantiles below the infinite share are unaffected. Cost: O(T) compiled and threaded per resample for the
    quantiles of short columns, of long ones less (`stats.ranked`). Columns that are read in blocks
    (`store.tokens.TokenColumns`) are held in blocks only, if their clusters are named.
    """
    table = Columns(columns, clusters)
    kld = table.sample("kld")
    top = -(-kld.size * TOP_PERCENT // 100)  # whole numbers only, so that rounding cannot add one
    edge = kld.nth_largest(top)
    terms = [*_means(), _top_term(edge), *(_above(cut) for cut in thresholds)]
    confidence = _buckets("confidence", "pmax_ref", CONFIDENCE_CUTS) if "pmax_ref" in table else []
    position = _buckets("position", "position", position_edges(table)) if "position" in table else []
    terms += [term for term, _ in (*confidence, *position)]
    draws = Resampling(table.groups, seed, resamples)
    found, counts, infinite = _estimates(table, terms, draws, level)

    quantiles = block_quantiles(kld, tuple(QUANTILES.values()), draws, level)
    geomean = mapped(found["geomean"], math.exp)
    if not counts["geomean"]:
        geomean = replace(geomean, reason="no positive value")
    summary = KldSummary(
        mean=found["mean"],
        **dict(zip(QUANTILES, quantiles, strict=True)),
        max=Interval(kld.largest, reason="sample extreme" if infinite == 0 else f"infinite at {infinite} tokens"),
        top5_mean=_around(found["top5_mean"], _top_mean(kld, edge, top)),
        geomean=geomean,
        excluded_share=1 - counts["geomean"] / kld.size,
        infinite=infinite,
    )

    def measured(buckets: _Buckets) -> tuple[Bucket, ...]:
        return tuple(Bucket(*ends, counts[term.name], found[term.name]) for term, ends in buckets)

    return Aggregate(
        tokens=kld.size,
        clusters=table.groups,
        kld=summary,
        ppl=mapped(found["ppl"], _exp),
        ppl_ref=mapped(found["ppl_ref"], _exp),
        ln_ppl_ratio=found["ln_ppl_ratio"],
        delta_p_rms=mapped(found["delta_p_rms"], math.sqrt),
        **{name: found[name] for name in _MEANS},
        share_above=tuple(ShareAbove(cut, found[f"above {cut}"]) for cut in thresholds),
        by_confidence=measured(confidence),
        by_position=measured(position),
    )


def _means() -> Iterator[Term]:
    for name, (field, scale) in _MEANS.items():
        yield Term(name, scale, (field,), column(field))
    yield Term("ppl_ref", "real", ("nll_ref",), column("nll_ref"))
    yield Term("ppl", "real", ("nll_cand",), column("nll_cand"))
    yield Term("ln_ppl_ratio", "real", ("nll_cand", "nll_ref"), lambda block: block["nll_cand"] - block["nll_ref"])
    yield Term("delta_p_rms", "log", ("delta_p",), lambda block: block["delta_p"] ** 2)
    yield Term("mean", "log", ("kld",), column("kld"))
    yield Term("geomean", "real", ("kld",), _log_positive, lambda block: block["kld"] > 0)


def _log_positive(block: Mapping[str, FloatArray]) -> FloatArray:
    kld = block["kld"]
    return np.log(kld, where=kld > 0, out=np.zeros_like(kld))


def _top_term(edge: float) -> Term:
    """⌈n·5/100⌉ largest: their mean is a minimum over the edge (Rockafellar & Uryasev 2000), so to first order its
    sampling error is that of the plain mean of edge + (x − edge)₊·100/5."""

    def values(block: Mapping[str, FloatArray]) -> FloatArray:
        excess = np.maximum(block["kld"] - edge, 0.0) if math.isfinite(edge) else block["kld"]
        return edge + excess * (100 / TOP_PERCENT)

    return Term("top5_mean", "log", ("kld",), values)


def _above(cut: float) -> Term:
    return Term(f"above {cut}", "logit", ("kld",), lambda block: block["kld"] > cut)


def _buckets(kind: str, by: str, edges: Sequence[float]) -> _Buckets:
    """Mean kld of the tokens in each bucket of ``by``, with the bucket's ends."""

    def within(low: float, high: float) -> Callable[[Mapping[str, FloatArray]], npt.NDArray[np.bool_]]:
        if high == edges[-1]:  # open above: a probability may exceed 1 by rounding
            return lambda block: block[by] >= low
        return lambda block: (block[by] >= low) & (block[by] < high)

    return [
        (Term(f"{kind} {low}", "log", ("kld", by), column("kld"), within(low, high)), (low, high))
        for low, high in pairwise(edges)
    ]


def _estimates(
    table: Columns, terms: Sequence[Term], draws: Resampling, level: float
) -> tuple[dict[str, Interval], dict[str, int], int]:
    """(interval and tokens of each term by name; tokens of infinite kld); all finite terms are resampled together."""
    there = [term for term in terms if all(name in table for name in term.needs)]
    sums = table.sums(there)
    out = {term.name: Interval(math.nan, reason="column not recorded", level=level) for term in terms}
    for term, total, tokens, bad in zip(there, sums.plain, sums.tokens, sums.bad, strict=True):
        if bad:
            out[term.name] = replace(interval_of(float(total / tokens), int(bad), int(tokens)), level=level)
    finite = np.flatnonzero(sums.bad == 0)
    scales = [there[k].scale for k in finite]
    made = ratio_intervals(sums.totals[finite], sums.sizes[finite], scales, draws, level)
    out.update(zip((there[k].name for k in finite), made, strict=True))
    infinite = next(int(bad) for term, bad in zip(there, sums.bad, strict=True) if term.name == "mean")
    return out, {term.name: int(tokens) for term, tokens in zip(there, sums.tokens, strict=True)}, infinite


def _top_mean(kld: BlockSample, edge: float, count: int) -> float:
    """Mean of the ``count`` largest values, of which ``edge`` is the smallest."""
    above, total = kld.above(edge)
    return total / count if above == count else (total + (count - above) * edge) / count


def _around(linear: Interval, value: float) -> Interval:
    """The interval of the linearised top mean, moved onto the top mean itself (they differ by O(1/n))."""
    if not (linear.value > 0 and math.isfinite(linear.value)):
        return replace(linear, value=value)
    factor = value / linear.value
    return replace(linear, value=value, low=linear.low * factor, high=linear.high * factor)


def _exp(x: float) -> float:
    return math.inf if x >= 700 else math.exp(x)
