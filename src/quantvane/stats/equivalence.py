"""Is the candidate as good, within a margin declared beforehand?

Two one-sided tests (TOST): Δ ≤ −m and Δ ≥ m are tested apart, and p is the larger of the two p-values. Each uses
Tango's score statistic z(δ) at its margin: p = max(1 − Φ(z(−m)), Φ(z(m))); with clusters t = (Δ ± m)/se on
G − 1 degrees of freedom with the cluster-robust error.

Sources: Schuirmann (1987), J. Pharmacokinet. Biopharm. 15, 657–680; Tango (1998), Statist. Med. 17, 891–908;
sample size after Lu & Bean (1995), Statist. Med. 14, 1831–1839, with both one-sided tests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from scipy import special

from quantvane.errors import DataError
from quantvane.stats.paired import mcnemar, tango_z
from quantvane.stats.pairs import PairCounts

__all__ = ["Equivalence", "ItemsNeeded", "items_needed", "tost"]


@dataclass(frozen=True, slots=True)
class Equivalence:
    """Verdict at one margin.

    Attributes:
        margin: m, in score (0.02 is two points of a hundred).
        p: of "the difference is at least m"; NaN with a reason where it cannot be had.
        verdict: "equivalent" where p ≤ α; else "worse" or "better" where McNemar's p ≤ α; else "undecided".
        reason: why p is NaN.
    """

    margin: float
    p: float
    verdict: str
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """``{"margin", "p", "verdict"}``, with ``reason`` where p is null."""
        out: dict[str, Any] = {
            "margin": self.margin,
            "p": None if math.isnan(self.p) else self.p,
            "verdict": self.verdict,
        }
        return out | ({"reason": self.reason} if self.reason else {})


@dataclass(frozen=True, slots=True)
class ItemsNeeded:
    """How many items in all; None with a reason where it cannot be told."""

    items: int | None
    reason: str = ""


def _check(margin: float, alpha: float) -> None:
    if not (0 < margin < 1 and 0 < alpha < 0.5):
        raise DataError(
            "margin or significance level out of range",
            expected="0 < margin < 1 (a share of items, 0.02 for two points), 0 < alpha < 0.5",
            got=f"margin={margin}, alpha={alpha}",
            remedy="give the margin as a fraction",
        )


def tost(pairs: PairCounts, margin: float, alpha: float = 0.05) -> Equivalence:
    """Test equivalence within ±margin; a margin has to be chosen before the data are seen.

    Raises:
        DataError: margin or alpha out of range.
    """
    _check(margin, alpha)
    if pairs.n == 0:
        return Equivalence(margin, math.nan, "undecided", "no items")
    groups, error = pairs.clusters, pairs.robust_error
    reason = ""
    if pairs.sizes is None:
        p = _score_p(pairs.drops, pairs.leapfrogs, pairs.n, margin)
    elif groups < 2:
        p, reason = math.nan, f"{groups} cluster: at least 2 are needed"
    elif error > 0:
        lower = special.stdtr(groups - 1, -(pairs.delta + margin) / error)
        upper = special.stdtr(groups - 1, (pairs.delta - margin) / error)
        p = float(max(lower, upper))
    else:  # all clusters agree exactly: the clusters are the trials
        scale = groups / pairs.n
        p = _score_p(pairs.drops * scale, pairs.leapfrogs * scale, groups, margin)
    if p <= alpha:
        return Equivalence(margin, p, "equivalent")
    verdict = "undecided"
    if mcnemar(pairs).p <= alpha:
        verdict = "better" if pairs.delta > 0 else "worse"
    return Equivalence(margin, p, verdict, reason)


def _score_p(drops: float, leapfrogs: float, n: float, margin: float) -> float:
    lower = special.ndtr(-tango_z(drops, leapfrogs, n, -margin))
    upper = special.ndtr(tango_z(drops, leapfrogs, n, margin))
    return float(max(lower, upper))


def items_needed(pairs: PairCounts, margin: float, alpha: float = 0.05, power: float = 0.8) -> ItemsNeeded:
    """Items in all that `tost` would need to find two equal models equivalent with the given power.

    n = ((z_{1−α}·σ₀ + z_{(1+power)/2}·σ₁)/m)²·deff, with ψ the observed share of flips, σ₁² = ψ (true difference
    0), σ₀² = 2q̃ + m(1 − m) Tango's variance at the margin for flips split evenly, and deff the clusters' design
    effect. Both tests have to succeed, hence (1 + power)/2.
    """
    _check(margin, alpha)
    if pairs.n == 0:
        return ItemsNeeded(None, "no items: the share of flips is unknown")
    effect = pairs.design_effect
    reason = ""
    if math.isnan(effect):
        # nothing varies: the least that can be said is that a cluster counts as one item
        effect, reason = pairs.n / pairs.clusters, "design effect unknown; a cluster counts as one item"
    flips = pairs.flips / pairs.n
    line, rest = 2 * margin - flips, -flips / 2 * margin * (1 - margin)
    q = (math.sqrt(line * line - 8 * rest) - line) / 4
    null = math.sqrt(2 * q + margin * (1 - margin))
    reach = float(special.ndtri(1 - alpha)) * null + float(special.ndtri((1 + power) / 2)) * math.sqrt(flips)
    return ItemsNeeded(math.ceil((reach / margin) ** 2 * effect), reason)
