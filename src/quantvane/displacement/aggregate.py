"""Aggregates of per-token displacement, each with an interval: columns in, one frozen record out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from quantvane.displacement._columns import Columns, interval_of, position_edges
from quantvane.displacement.summary import QUANTILES, Aggregate, Bucket, KldSummary, ShareAbove
from quantvane.stats.quantiles import quantile_intervals
from quantvane.stats.resampling import Resampling, Scale, mapped, ratio_intervals
from quantvane.types import FloatArray, Interval

__all__ = ["CONFIDENCE_CUTS", "THRESHOLDS", "TOP_PERCENT", "aggregate"]

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
    clusters: npt.NDArray[Any],
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
        clusters: (T,) labels of the unit to resample: document, or window where there is one document.
        seed, resamples: of the cluster bootstrap; candidates measured on the same positions share their
            resamples.
        level: nominal coverage of every interval.
        thresholds: nats, for ``share_above``.

    Raises:
        DataError: kld missing, no tokens, columns of unequal length, NaN in a column.

    Infinite values are legal in kld, kld_rev and the nll: the mean is then infinite (null with a reason in
    JSON), quantiles below the infinite share are unaffected. Cost: O(T·resamples) compiled and threaded for
    the quantiles; memory O(T + resamples·number of statistics).
    """
    table = Columns(columns, clusters)
    kld = table.require("kld")
    draws = Resampling(table.groups, seed, resamples)
    rows = _Rows(table)
    for name, (column, scale) in _MEANS.items():
        rows.add(name, table.get(column), scale)
    nll_ref, nll_cand, delta_p = (table.get(x) for x in ("nll_ref", "nll_cand", "delta_p"))
    rows.add("ppl_ref", nll_ref, "real")
    rows.add("ppl", nll_cand, "real")
    rows.add("ln_ppl_ratio", _difference(nll_cand, nll_ref), "real")
    rows.add("delta_p_rms", None if delta_p is None else delta_p**2, "log")
    rows.add("mean", kld, "log")
    edge, top_mean = _top_mean(kld)
    # ⌈n·5/100⌉ largest: their mean is a minimum over the edge (Rockafellar & Uryasev 2000), so to first
    # order its sampling error is that of the plain mean of edge + (x − edge)₊·100/5
    excess = np.maximum(kld - edge, 0.0) if math.isfinite(edge) else kld
    rows.add("top5_mean", edge + excess * (100 / TOP_PERCENT), "log")
    positive = kld > 0
    rows.add("geomean", np.log(kld, where=positive, out=np.zeros_like(kld)), "real", positive)
    for cut in thresholds:
        rows.add(f"above {cut}", kld > cut, "logit")
    confidence = rows.add_buckets("confidence", table.get("pmax_ref"), CONFIDENCE_CUTS, kld)
    place = table.get("position")
    position = rows.add_buckets("position", place, () if place is None else position_edges(place), kld)
    found = rows.intervals(draws, level)

    infinite = int(np.count_nonzero(np.isinf(kld)))
    quantiles = quantile_intervals(kld, table.owner, tuple(QUANTILES.values()), draws, level)
    extreme = float(kld.max())
    geomean = mapped(found["geomean"], math.exp)
    if not positive.any():
        geomean = replace(geomean, reason="no positive value")
    summary = KldSummary(
        mean=found["mean"],
        **dict(zip(QUANTILES, quantiles, strict=True)),
        max=Interval(extreme, reason="sample extreme" if infinite == 0 else f"infinite at {infinite} tokens"),
        top5_mean=_around(found["top5_mean"], top_mean),
        geomean=geomean,
        excluded_share=float(np.mean(~positive)),
        infinite=infinite,
    )
    return Aggregate(
        tokens=len(kld),
        clusters=table.groups,
        kld=summary,
        ppl=mapped(found["ppl"], _exp),
        ppl_ref=mapped(found["ppl_ref"], _exp),
        ln_ppl_ratio=found["ln_ppl_ratio"],
        delta_p_rms=mapped(found["delta_p_rms"], math.sqrt),
        **{name: found[name] for name in _MEANS},
        share_above=tuple(ShareAbove(cut, found[f"above {cut}"]) for cut in thresholds),
        by_confidence=tuple(Bucket(lo, hi, n, found[key]) for key, lo, hi, n in confidence),
        by_position=tuple(Bucket(lo, hi, n, found[key]) for key, lo, hi, n in position),
    )


class _Rows:
    """Collects ratio estimates by name, so that all of them are resampled in one pass."""

    def __init__(self, table: Columns) -> None:
        self.table = table
        self.names: list[str] = []
        self.totals: list[FloatArray] = []
        self.sizes: list[FloatArray] = []
        self.scales: list[Scale] = []
        self.fixed: dict[str, Interval] = {}

    def add(
        self,
        name: str,
        values: npt.NDArray[Any] | None,
        scale: Scale,
        among: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Mean of ``values``, over the tokens ``among`` where given."""
        if values is None:
            self.fixed[name] = Interval(math.nan, reason="column not recorded")
            return
        bad = int(np.count_nonzero(~np.isfinite(values if among is None else values[among])))
        if bad:
            chosen = values if among is None else values[among]
            with np.errstate(invalid="ignore"):
                self.fixed[name] = interval_of(float(np.mean(chosen)), bad, len(chosen))
            return
        self.names.append(name)
        self.totals.append(self.table.sums(values, among))
        self.sizes.append(self.table.sums(None, among))
        self.scales.append(scale)

    def add_buckets(
        self, kind: str, by: npt.NDArray[Any] | None, edges: Sequence[float], kld: FloatArray
    ) -> list[tuple[str, float, float, int]]:
        """One row per bucket of ``by``; (name, low, high, tokens) of each."""
        made: list[tuple[str, float, float, int]] = []
        if by is None:
            return made
        for low, high in pairwise(edges):
            # the last bucket is open above: a probability may exceed 1 by rounding
            among = by >= low if high == edges[-1] else (by >= low) & (by < high)
            name = f"{kind} {low}"
            self.add(name, kld, "log", among)
            made.append((name, low, high, int(np.count_nonzero(among))))
        return made

    def intervals(self, draws: Resampling, level: float) -> dict[str, Interval]:
        out = {name: replace(made, level=level) for name, made in self.fixed.items()}
        if self.names:
            made = ratio_intervals(np.array(self.totals), np.array(self.sizes), self.scales, draws, level)
            out.update(zip(self.names, made, strict=True))
        return out


def _top_mean(kld: FloatArray) -> tuple[float, float]:
    """(smallest of the ⌈n·5/100⌉ largest values, their mean)."""
    # whole numbers only, so that rounding cannot add one
    count = -(-len(kld) * TOP_PERCENT // 100)
    top = np.partition(kld, len(kld) - count)[len(kld) - count :]
    return float(top.min()), float(np.mean(top))


def _around(linear: Interval, value: float) -> Interval:
    """The interval of the linearised top mean, moved onto the top mean itself (they differ by O(1/n))."""
    if not (linear.value > 0 and math.isfinite(linear.value)):
        return replace(linear, value=value)
    factor = value / linear.value
    return replace(linear, value=value, low=linear.low * factor, high=linear.high * factor)


def _difference(a: npt.NDArray[Any] | None, b: npt.NDArray[Any] | None) -> npt.NDArray[Any] | None:
    if a is None or b is None:
        return None
    with np.errstate(invalid="ignore"):  # ∞ − ∞: reported as not finite
        return np.asarray(a - b)


def _exp(x: float) -> float:
    return math.inf if x >= 700 else math.exp(x)
