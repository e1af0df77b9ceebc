"""Paired comparison of two yes/no outcomes on the same items.

With b leapfrogs and c drops among n items, Δ = (b − c)/n.

- McNemar's exact test: given b + c flips, b is Binomial(b + c, ½) under the null; two-sided p doubles the smaller
  tail. With clusters, whole clusters change sign: the exact law of Σ ±(b_g − c_g). With clusters of one item
  the second is the first.
- Interval of Δ: Tango's score interval, all δ with |z(δ)| ≤ z_{1−α/2},
  z(δ) = (b − c − nδ)/√(n(2q̃ + δ(1 − δ))), q̃ the maximum-likelihood probability of a drop under b/n − c/n = δ.
  With clusters: Δ ± t_{G−1}·se, se = √(G/(G−1)·Σ(D_g − Δ·N_g)²)/n.
- Interval of the direction D = (b − c)/(b + c) = 2π − 1: Clopper–Pearson for π = b/(b + c); with clusters the
  logit interval of the ratio Σb_g/Σ(b_g + c_g).

Sources: McNemar (1947), Psychometrika 12, 153–157; Tango (1998), Statist. Med. 17, 891–908; Clopper & Pearson
(1934), Biometrika 26, 404–413; Edgington & Onghena, Randomization Tests (2007), ch. 5 (sign changes).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize, special, stats

from quantvane.stats.pairs import PairCounts
from quantvane.stats.resampling import Resampling, few_note, mapped, ratio_intervals, t_interval
from quantvane.types import FloatArray, Interval

__all__ = ["McNemar", "direction_interval", "mcnemar", "paired_interval", "tango_z"]


@dataclass(frozen=True, slots=True)
class McNemar:
    """Exact two-sided p-value of "drops and leapfrogs are equally likely"; NaN and a reason without items."""

    p: float
    reason: str = ""


def mcnemar(pairs: PairCounts) -> McNemar:
    """The exact test of the module's first point. Without any flip p = 1.

    Cost: O(1) without clusters, O(G·(b + c)) with them.
    """
    if pairs.n == 0:
        return McNemar(math.nan, "no items")
    if pairs.up is None or pairs.down is None:
        if not pairs.flips:
            return McNemar(1.0)
        return McNemar(float(stats.binomtest(pairs.drops, pairs.flips, 0.5).pvalue))
    return McNemar(_sign_change_p(pairs.up - pairs.down))


def _sign_change_p(totals: FloatArray) -> float:
    """P(|Σ s_g·d_g| ≥ |Σ d_g|) over independent fair signs s_g, exactly."""
    steps = np.abs(totals).astype(np.int64)
    observed = abs(round(float(totals.sum())))
    # the sum of the steps taken upwards, k, gives Σ s·d = 2k − total
    total = int(steps.sum())
    law = np.zeros(total + 1)
    law[0] = 1.0
    reached = 0
    for step in np.sort(steps[steps > 0]):
        reached += int(step)
        law[: reached + 1] *= 0.5
        # the right-hand side is read whole before it is added: the two ranges overlap
        law[step : reached + 1] += law[: reached + 1 - step].copy()
    beyond = np.abs(2 * np.arange(total + 1) - total) >= observed
    return min(1.0, float(law[beyond].sum()))


def tango_z(drops: float, leapfrogs: float, n: float, delta: float) -> float:
    """Tango's score statistic z(δ); ±inf where δ is impossible given the data, 0/0 counts as 0."""
    if abs(delta) >= 1:  # the only law with |δ| = 1 lets every item flip one way
        gap = leapfrogs - drops - n * delta
        return 0.0 if gap == 0 else math.copysign(math.inf, gap)
    quad = 2 * n
    line = (2 * n - leapfrogs + drops) * delta - leapfrogs - drops
    rest = -drops * delta * (1 - delta)
    root = math.sqrt(max(line * line - 4 * quad * rest, 0.0))
    # of the two forms of the larger root, the one without cancellation
    q = (root - line) / (2 * quad) if line <= 0 else (-2 * rest / (root + line) if rest else 0.0)
    variance = n * (2 * q + delta * (1 - delta))
    gap = leapfrogs - drops - n * delta
    if variance <= 1e-14 * n:
        return 0.0 if abs(gap) <= 1e-12 * n else math.copysign(math.inf, gap)
    return gap / math.sqrt(variance)


def _tango_interval(drops: float, leapfrogs: float, n: float, level: float) -> tuple[float, float]:
    value = (leapfrogs - drops) / n
    reach = float(special.ndtri((1 + level) / 2))

    def end(side: float) -> float:
        # z falls in δ: +reach is met below the value, −reach above
        def over(delta: float) -> float:
            return max(-1e9, min(1e9, side * tango_z(drops, leapfrogs, n, delta))) - reach

        if value == -side:
            return value
        return float(optimize.brentq(over, -side, value, xtol=1e-13, rtol=1e-13))

    return end(1.0), end(-1.0)


def paired_interval(pairs: PairCounts, level: float = 0.95) -> Interval:
    """Interval of Δ = (leapfrogs − drops)/n.

    Without clusters Tango's; it has a width even where nothing flipped. With clusters Student's with the
    cluster-robust error, cut to [−1, 1]; where all clusters agree exactly, Tango's with the clusters as trials.
    """
    if pairs.n == 0:
        return Interval(math.nan, reason="no items", level=level)
    if pairs.sizes is None:
        return Interval(
            pairs.delta, *_tango_interval(pairs.drops, pairs.leapfrogs, pairs.n, level), "", level
        )
    groups, error = pairs.clusters, pairs.robust_error
    if groups < 2 or error > 0:
        robust = t_interval(pairs.delta, error, groups, level)
        return replace(robust, low=max(robust.low, -1.0), high=min(robust.high, 1.0))
    scale = groups / pairs.n
    ends = _tango_interval(pairs.drops * scale, pairs.leapfrogs * scale, groups, level)
    note = few_note(groups) or "no variation between clusters: score interval with the clusters as trials"
    return Interval(pairs.delta, *ends, note, level)


def direction_interval(pairs: PairCounts, level: float = 0.95) -> Interval:
    """Interval of D = (leapfrogs − drops)/(leapfrogs + drops); NaN and a reason where nothing flipped."""
    if not pairs.flips:
        return Interval(math.nan, reason="no items" if pairs.n == 0 else "no item flipped", level=level)
    value = (pairs.leapfrogs - pairs.drops) / pairs.flips
    if pairs.up is None or pairs.down is None:
        found = stats.binomtest(pairs.leapfrogs, pairs.flips).proportion_ci(level, method="exact")
        return Interval(value, 2 * float(found.low) - 1, 2 * float(found.high) - 1, "", level)
    flips = pairs.up + pairs.down
    draws = Resampling(len(flips))
    share = ratio_intervals(pairs.up[None, :], flips[None, :], ["logit"], draws, level)[0]
    return replace(mapped(share, lambda x: 2 * x - 1), value=value)
