"""From window tables to the JSON document of ``fisher``. No model is needed here."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from quantvane.run.fisher_plan import FisherSpec
from quantvane.stats.quantiles import quantile_intervals, quantile_sorted
from quantvane.stats.resampling import Resampling, mapped, ratio_intervals
from quantvane.types import FloatArray, Interval

__all__ = ["QUANTILES", "candidate_summary", "space_summary", "verdict"]

QUANTILES = {"p05": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95}


def _column(table: Any, name: str) -> FloatArray:
    """Values as float64; null is NaN."""
    found: FloatArray = table[name].to_numpy(zero_copy_only=False).astype(np.float64)
    return found


def _owners(table: Any, documents: int) -> tuple[Any, str]:
    """Cluster of every window: its document where there are several, else the window itself."""
    if documents > 1:
        key = _column(table, "corpus").astype(np.int64) << 32 | _column(table, "document").astype(np.int64)
        return np.unique(key, return_inverse=True)[1], "document"
    return np.arange(table.num_rows), "window"


def _missing(reason: str) -> dict[str, Any]:
    return Interval(math.nan, reason=reason).to_dict()


def space_summary(sigma: FloatArray, owners: Any, spec: FisherSpec) -> dict[str, Any]:
    """The distribution of σ over windows.

    Args:
        sigma: (n,) λ_cand/λ_ref; NaN where it is undefined. owners: (n,) cluster of each window.

    Returns:
        geometric mean, share below 1 and quantiles, each ``{"value", "ci"}`` (median, mean and share with
        intervals by resampling clusters); numbers of windows and of undefined ones.
    """
    known = np.isfinite(sigma) & (sigma > 0)
    counts = {"windows": int(known.sum()), "undefined": int(len(sigma) - known.sum())}
    if not counts["windows"]:
        nothing = _missing("σ is undefined in every window: λ_max of the reference is 0 or not finite")
        return {**dict.fromkeys(("geomean", "below_one", *QUANTILES, "min", "max"), nothing), **counts}
    values = sigma[known]
    groups, owner = np.unique(owners[known], return_inverse=True)
    resampling = Resampling(len(groups), spec.seed, spec.resamples)
    ones = np.bincount(owner).astype(np.float64)
    below_one = (values < 1.0).astype(np.float64)
    totals = np.stack([np.bincount(owner, weights) for weights in (np.log(values), below_one)]).astype(np.float64)
    log_mean, below = ratio_intervals(totals, np.stack([ones, ones]), ["real", "logit"], resampling)
    median = quantile_intervals(values, owner, [0.5], resampling)[0]
    ascending = np.sort(values)
    plain = "a quantile of the windows measured; no interval is made for it"
    return {
        "geomean": mapped(log_mean, lambda x: math.exp(min(x, 700.0))).to_dict(),
        "below_one": below.to_dict(),
        **{
            name: median.to_dict()
            if name == "median"
            else Interval(quantile_sorted(ascending, p), reason=plain).to_dict()
            for name, p in QUANTILES.items()
        },
        "min": Interval(float(ascending[0]), reason="a sample extreme").to_dict(),
        "max": Interval(float(ascending[-1]), reason="a sample extreme").to_dict(),
        **counts,
    }


def verdict(space: dict[str, Any]) -> str:
    """What the interval of the geometric mean allows to say about λ_max; "undecided" where it holds 1."""
    ci = space["geomean"]["ci"]
    if space["geomean"]["value"] is None:
        return "undefined"
    if ci is None:
        return "too few windows to say"
    return "rises" if ci[0] > 1 else "falls" if ci[1] < 1 else "undecided"


def _rank_correlation(x: FloatArray, y: FloatArray) -> float:
    from scipy.stats import spearmanr

    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    return float(spearmanr(x, y).statistic)


def candidate_summary(table: Any, spec: FisherSpec, documents: int) -> dict[str, Any]:
    """One candidate's entry: baselines (NLL, entropy) and, per space, σ, the means of λ and the verdict."""
    owners, _ = _owners(table, documents)
    out: dict[str, Any] = {}
    change: dict[str, FloatArray] = {}
    for name in ("nll", "entropy"):
        ref, cand = _column(table, f"{name}_ref"), _column(table, f"{name}_cand")
        change[name] = cand - ref
        weights = _column(table, "tokens")
        out[name] = {
            "ref": float(np.average(ref, weights=weights)),
            "cand": float(np.average(cand, weights=weights)),
            "rose": float(np.mean(change[name] > 0)),
        }
    out["spaces"] = {}
    for space in spec.spaces:
        sigma = _column(table, f"sigma_{space}")
        entry = space_summary(sigma, owners, spec)
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log(sigma)
        out["spaces"][space] = {
            "fisher": spec.fisher_of(space),
            "verdict": verdict(entry),
            "sigma": entry,
            "lambda_ref": float(np.nanmean(_column(table, f"lambda_{space}_ref"))),
            "lambda_cand": float(np.nanmean(_column(table, f"lambda_{space}_cand"))),
            "rank_correlation": {f"d_{name}": _rank_correlation(logs, change[name]) for name in change},
        }
    return out


def resampled_by(table: Any, documents: int) -> str:
    """What an interval resamples: "document" or "window"."""
    return _owners(table, documents)[1]
