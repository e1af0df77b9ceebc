"""Simulated KLD tables with known truth, and the share of intervals that hold it.

ln kld = μ + 0.5·u_cluster + 1.8·z_token, z correlated (0.3) within runs of four tokens; cluster sizes vary
(lognormal, median ≈ 100, at least 20) independently of the values, so every token is marginally lognormal,
σ = √(0.5² + 1.8²), and the truth is in closed form. Skewness of one token's kld: about 200.
"""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
from scipy import stats

from quantvane.displacement.aggregate import aggregate
from quantvane.displacement.ranking import compare_candidates

MU, BETWEEN, WITHIN = -4.0, 0.5, 1.8
SIGMA = math.hypot(BETWEEN, WITHIN)
LN_RATIO = 0.02
MEAN = math.exp(MU + SIGMA**2 / 2)
SHIFTS = {"a": 0.0, "close": 0.1, "worse": 0.7}  # of ln kld


def truths() -> dict[str, float]:
    """Name of each quantity → its true value."""
    normal = stats.norm
    out = {
        "mean": MEAN,
        "top5_mean": MEAN * normal.cdf(SIGMA - normal.ppf(0.95)) / 0.05,
        "geomean": math.exp(MU),
        "ln_ppl_ratio": LN_RATIO,
        "share above 1": normal.sf(-MU / SIGMA),
        "share above 0.1": normal.sf((math.log(0.1) - MU) / SIGMA),
    }
    for name, p in (("median", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99), ("p999", 0.999)):
        out[name] = math.exp(MU + SIGMA * normal.ppf(p))
    return out


def _mix(rng, shared, weight):
    return weight * shared + math.sqrt(1 - weight**2) * rng.standard_normal(shared.shape)


def simulate(rng, groups, shifts):
    """One dataset: clusters (T,), {name: kld (T,)} correlated at 0.9, ln ratio per token (T,)."""
    sizes = np.maximum(20, np.round(120 * np.exp(0.6 * rng.standard_normal(groups) - 0.18))).astype(int)
    clusters = np.repeat(np.arange(groups), sizes)
    tokens = len(clusters)
    u = rng.standard_normal(groups)
    runs = rng.standard_normal(tokens // 4 + 1)[np.arange(tokens) // 4]
    z = math.sqrt(0.3) * runs + math.sqrt(0.7) * rng.standard_normal(tokens)
    klds = {}
    for name, shift in shifts.items():
        between, within = (u, z) if not klds else (_mix(rng, u, 0.9), _mix(rng, z, 0.9))
        klds[name] = np.exp(MU + shift + BETWEEN * between[clusters] + WITHIN * within)
    first = next(iter(klds.values()))
    ratio = (
        LN_RATIO + 0.1 * rng.standard_normal(groups)[clusters] + np.sqrt(first) * rng.standard_normal(tokens)
    )
    return clusters, klds, ratio


def coverage(groups, datasets, seed=1, resamples=1000):
    """Quantity → (share of 95% intervals that hold the truth, share below it, share above it)."""
    rng = np.random.default_rng(seed)
    true = truths()
    missed = defaultdict(list)

    def note(name, interval, truth):
        missed[name].append((interval.low > truth) - (interval.high < truth) * 1)

    for k in range(datasets):
        clusters, klds, ratio = simulate(rng, groups, SHIFTS)
        columns = {"kld": klds["a"], "nll_cand": ratio, "nll_ref": np.zeros_like(ratio)}
        # a seed per dataset: otherwise one unlucky set of resamples would count every time
        found = aggregate(columns, clusters, seed=k, resamples=resamples, thresholds=(0.1, 1.0))
        for name in ("mean", "top5_mean", "geomean", "median", "p90", "p95", "p99", "p999"):
            note(name, getattr(found.kld, name), true[name])
        note("ln_ppl_ratio", found.ln_ppl_ratio, LN_RATIO)
        for above, name in zip(found.share_above, ("share above 0.1", "share above 1"), strict=True):
            note(name, above.share, true[name])
        for other in ("close", "worse"):
            pair = {"a": klds["a"], other: klds[other]}
            first, second = compare_candidates(pair, clusters, seed=k, resamples=resamples)
            truth = MEAN * (math.exp(SHIFTS[second.name]) - math.exp(SHIFTS[first.name]))
            note(f"difference to {other}", second.behind, truth)
    return {
        name: (m.count(0) / datasets, m.count(-1) / datasets, m.count(1) / datasets)
        for name, m in missed.items()
    }


def false_separations(groups, datasets, seed=2):
    """Share of datasets in which three candidates of equal true mean are not all called tied."""
    rng = np.random.default_rng(seed)
    wrong = 0
    for _ in range(datasets):
        clusters, klds, _ = simulate(rng, groups, {"a": 0.0, "b": 0.0, "c": 0.0})
        ranks = compare_candidates(klds, clusters, resamples=500)
        wrong += any(len(rank.tied_with) < 2 for rank in ranks)
    return wrong / datasets
