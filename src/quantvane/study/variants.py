"""The displacement metrics a cohort is judged by, named, and how each is computed from a run's tables.

All are oriented so that larger means further from the reference (agreement enters as disagreement). Values come from
a run's ``summary.json``, where their definitions are those of `quantvane.displacement.aggregate`; |ΔNLL| of single
tokens comes from the token tables.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from quantvane.stats.correlation import Correlation, Draws, Method, correlate
from quantvane.stats.multiplicity import holm
from quantvane.study.cohort import Bools, Cohort, Displacement
from quantvane.study.resample import items_interval
from quantvane.types import FloatArray

__all__ = ["LABELS", "VARIANTS", "VariantResult", "judge_variants", "main_metric", "variant_value"]

# variant → (path in a candidate's part of summary.json, words)
VARIANTS: dict[str, tuple[str, str]] = {
    "kld_mean": ("kld.mean", "KLD, mean"),
    "kld_median": ("kld.median", "KLD, median"),
    "kld_p95": ("kld.p95", "KLD, 95th percentile"),
    "kld_p99": ("kld.p99", "KLD, 99th percentile"),
    "kld_p999": ("kld.p999", "KLD, 99.9th percentile"),
    "kld_max": ("kld.max", "KLD, maximum"),
    "kld_top5": ("kld.top5_mean", "KLD, mean of the top 5%"),
    "kld_geomean": ("kld.geomean", "KLD, geometric mean"),
    "kld_rev": ("kld_rev_mean", "reverse KLD, mean"),
    "jsd": ("jsd_mean", "Jensen–Shannon, mean"),
    "tv": ("tv_mean", "total variation, mean"),
    "hellinger": ("hellinger_mean", "Hellinger, mean"),
    "ppl": ("ppl", "perplexity"),
    "ln_ppl_ratio": ("ln_ppl_ratio", "ln PPL ratio"),
    "abs_ln_ppl_ratio": ("ln_ppl_ratio", "|ln PPL ratio|"),
    "abs_dnll": ("", "|ΔNLL| of a token, mean"),
    "dp_rms": ("delta_p_rms", "RMS Δp"),
    "top1": ("top1_agreement", "top-1 disagreement"),
    "topk": ("topk_overlap_mean", "top-10 disagreement"),
}
LABELS: dict[str, str] = {name: words for name, (_, words) in VARIANTS.items()}
_TURNED = {"top1": 1.0, "topk": 1.0}  # 1 − value: agreement becomes disagreement


def variant_value(variant: str, part: Mapping[str, Any], extra: Mapping[str, float]) -> float:
    """A variant of one candidate on one corpus, from its part of the summary; NaN where it is not stored.

    Args:
        part: the candidate's entry, or its entry under ``corpora``. extra: what only the token tables give.
    """
    path = VARIANTS[variant][0]
    if not path:
        return extra.get(variant, math.nan)
    held: Any = part
    for key in path.split("."):
        held = held.get(key) if isinstance(held, Mapping) else None
    value = held.get("value") if isinstance(held, Mapping) else held
    if not isinstance(value, int | float):
        return math.nan
    if variant in _TURNED:
        return 1.0 - float(value)
    return abs(float(value)) if variant.startswith("abs_") else float(value)


def main_metric(cohort: Cohort, variant: str = "kld_mean") -> Displacement | None:
    """The metric that zones by displacement, the null and the charts use: on the first corpus, longest context."""
    mine = [d for d in cohort.displacement if d.variant == variant]
    if not mine:
        return None
    longest = max(d.context for d in mine)
    return next(d for d in mine if d.context == longest)


@dataclass(frozen=True, slots=True)
class VariantResult:
    """One metric against the score.

    Attributes:
        metric: which. full, zone: correlation over all candidates, and over the zone's.
        items_full, items_zone: 95% intervals over items. p_holm_full, p_holm_zone: adjusted over all metrics.
    """

    metric: Displacement
    full: Correlation
    zone: Correlation
    items_full: tuple[float, float]
    items_zone: tuple[float, float]
    p_holm_full: float = math.nan
    p_holm_zone: float = math.nan


def judge_variants(
    cohort: Cohort,
    score: FloatArray,
    members: Bools,
    replicates: FloatArray,
    draws: Draws,
    method: Method = "spearman",
) -> tuple[VariantResult, ...]:
    """Every metric's correlation with the score, in full and in the zone, Holm over all of them.

    Args:
        score: (C,). members: (C,) the zone. replicates: (B, C) scores on resampled items.
    """
    found = []
    for metric in cohort.displacement:
        x = metric.values
        regions = []
        for chosen in (np.ones(len(score), bool), members):
            result = correlate(x[chosen], score[chosen], method, draws)
            if math.isnan(result.value) and metric.reason:
                result = replace(result, reason=metric.reason)
            regions.append((result, items_interval(x[chosen], score[chosen], replicates[:, chosen], method)))
        (full, items_full), (zone, items_zone) = regions
        found.append(VariantResult(metric, full, zone, items_full, items_zone))
    adjusted = [holm([r.full.p for r in found]), holm([r.zone.p for r in found])]
    return tuple(
        replace(r, p_holm_full=a, p_holm_zone=b) for r, a, b in zip(found, adjusted[0], adjusted[1], strict=True)
    )
