"""Records of aggregated displacement, and their JSON form."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from quantvane.types import Interval

__all__ = ["QUANTILES", "Aggregate", "Bucket", "KldSummary", "ShareAbove"]

QUANTILES = {"median": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p999": 0.999}
"""Field of `KldSummary` → probability."""


@dataclass(frozen=True, slots=True)
class KldSummary:
    """Summary of KL(reference ‖ candidate) in nats.

    Attributes:
        mean, median, p90, p95, p99, p999: of the tokens; quantiles by linear interpolation at p·(n−1).
        max: a sample extreme, without an interval.
        top5_mean: mean of the ⌈0.05·n⌉ largest values.
        geomean: exp of the mean logarithm of the positive values.
        excluded_share: share of tokens with kld ≤ 0, which the geometric mean leaves out.
        infinite: number of tokens with an infinite kld.
    """

    mean: Interval
    median: Interval
    p90: Interval
    p95: Interval
    p99: Interval
    p999: Interval
    max: Interval
    top5_mean: Interval
    geomean: Interval
    excluded_share: float
    infinite: int

    def to_dict(self) -> dict[str, Any]:
        names = ("mean", *QUANTILES)
        out: dict[str, Any] = {name: getattr(self, name).to_dict() for name in names}
        extreme = self.max.to_dict()
        del extreme["ci"]
        out["max"] = extreme
        out["top5_mean"] = self.top5_mean.to_dict()
        out["geomean"] = self.geomean.to_dict() | {"excluded_share": self.excluded_share}
        if self.infinite:
            out["infinite"] = self.infinite
        return out


@dataclass(frozen=True, slots=True)
class ShareAbove:
    """Share of tokens whose kld is larger than ``threshold`` (nats)."""

    threshold: float
    share: Interval

    def to_dict(self) -> dict[str, Any]:
        return {"threshold": self.threshold, "share": self.share.to_dict()}


@dataclass(frozen=True, slots=True)
class Bucket:
    """Mean kld of the tokens with low ≤ x < high (the last bucket is closed)."""

    low: float
    high: float
    tokens: int
    kld_mean: Interval

    def to_dict(self) -> dict[str, Any]:
        return {
            "low": self.low,
            "high": self.high,
            "tokens": self.tokens,
            "kld_mean": self.kld_mean.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Displacement of one candidate over all scored tokens; divergences and entropies in nats.

    Attributes:
        tokens, clusters: how many scored tokens, in how many clusters (documents or windows).
        kld: summary of the KL divergence.
        ppl, ppl_ref: exp of the mean nll of candidate and reference. ln_ppl_ratio: mean of nll_cand −
            nll_ref.
        delta_p_mean, delta_p_rms: mean and root mean square of q(y) − p(y).
        top1_agreement: share of tokens with equal argmax.
        kld_rev_mean … rank_in_cand_mean: means of the column so named.
        share_above: share of tokens above each threshold.
        by_confidence: mean kld by the reference's largest probability. by_position: by quarter of the window.
    """

    tokens: int
    clusters: int
    kld: KldSummary
    ppl: Interval
    ppl_ref: Interval
    ln_ppl_ratio: Interval
    delta_p_mean: Interval
    delta_p_rms: Interval
    top1_agreement: Interval
    kld_rev_mean: Interval
    jsd_mean: Interval
    tv_mean: Interval
    hellinger_mean: Interval
    fisher_rao_mean: Interval
    entropy_ref_mean: Interval
    entropy_cand_mean: Interval
    lambda_ref_mean: Interval
    lambda_cand_mean: Interval
    topk_overlap_mean: Interval
    rank_in_cand_mean: Interval
    share_above: tuple[ShareAbove, ...]
    by_confidence: tuple[Bucket, ...]
    by_position: tuple[Bucket, ...]

    def to_dict(self) -> dict[str, Any]:
        """The candidate's part of ``compare --json``; NaN and infinity become null with a reason."""
        out: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, tuple):
                out[f.name] = [item.to_dict() for item in value]
            else:
                out[f.name] = value if isinstance(value, int) else value.to_dict()
        return out
