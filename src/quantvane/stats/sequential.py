"""Tests that may be looked at after every item: betting e-process and confidence sequence for a paired difference.

With dᵢ = candidate right − reference right ∈ {−1, 0, 1} and E[dᵢ | past] = δ, the capital of a bettor

    K⁺_t(δ) = mean_j Π_{i≤t} (1 + λ_j(δ)·(dᵢ − δ)),   λ_j(δ) = min(λ_j, 0.99/(1 + δ))

is a non-negative martingale with start 1, and so are K⁻ (for −d, −δ) and the hedge K = (K⁺ + K⁻)/2. By Ville's
inequality P(some t: K_t(δ) ≥ 1/α) ≤ α. The e-process is K at δ = 0; {δ: K⁺_t(δ) < 2/α and K⁻_t(δ) < 2/α} is a
confidence sequence, an interval because K⁺ falls and K⁻ rises in δ, and it may be intersected over t. The bets
λ_j = 1, ½, … 1/32 share the capital equally: bets fixed in advance are predictable, and the capital after t items does
not depend on their order. Against bets tuned to the past (predictable plug-in) the mixture reaches equivalence with
a third to two thirds of the items (docs/direction.md). Everything that is decided follows from one confidence set,
so all wrong decisions together have probability at most α.

With clusters the unit is the cluster: d − δ becomes (D_g − δ·N_g)/max N, at a cluster's last item. It needs
E[D_g | past] = δ·N_g, that is, clusters in an order that has nothing to do with their outcomes.

Sources: Ville (1939); Waudby-Smith & Ramdas (2024), J. R. Statist. Soc. B 86, 1–27 (hedged capital, truncated bets);
Orabona & Jun (2024), IEEE Trans. Inf. Theory 70, 436–455 (mixtures of bets).
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quantvane.errors import DataError
from quantvane.stats.pairs import PairCounts, pair_counts
from quantvane.types import FloatArray

__all__ = ["EProcess", "betting", "log_capital"]

_BETS = 2.0 ** -np.arange(6.0)
_TRUNCATION = 0.99  # of the largest bet that cannot lose everything


@dataclass(frozen=True, slots=True)
class EProcess:
    """What may be said at any time, the data so far being all there are.

    Attributes:
        value: the e-value of "no difference" after the last item; 1/value bounds the evidence against it, and
            it is capped at the largest float.
        decided_at: number of the first item (from 1) at which value ≥ 1/α, or the confidence sequence lay inside
            ±margin; None where neither happened. (Lying wholly outside ±margin implies value ≥ 1/α earlier.)
        decision: "better", "worse", "equivalent" at that item; "undecided".
        low, high: the confidence sequence of Δ after the last item, intersected over all items before it; low > high
            where no constant difference fits, as when the first items differ in kind from the last.
        alpha: the error probability that holds for all looks together.
        reason: why value is NaN.
    """

    value: float
    decided_at: int | None
    decision: str
    low: float
    high: float
    alpha: float
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """``{"value", "decided_at"}``, with ``reason`` where value is null."""
        known = not math.isnan(self.value)
        out: dict[str, Any] = {"value": self.value if known else None, "decided_at": self.decided_at}
        return out | ({"reason": self.reason} if self.reason else {})


@dataclass(frozen=True, slots=True)
class _Bets:
    """(U,) units that can be bet on: difference and size over the largest size, and item position."""

    difference: FloatArray
    size: FloatArray
    ends: npt.NDArray[np.int64]


def _units(ref: npt.NDArray[np.bool_], cand: npt.NDArray[np.bool_], pairs: PairCounts) -> _Bets:
    if pairs.up is None or pairs.down is None or pairs.sizes is None or pairs.ends is None:
        d = cand.astype(np.float64) - ref.astype(np.float64)
        return _Bets(d, np.ones(len(d)), np.arange(1, len(d) + 1))
    largest = float(pairs.sizes.max())
    return _Bets((pairs.up - pairs.down) / largest, pairs.sizes / largest, pairs.ends)


def log_capital(difference: FloatArray, size: FloatArray, delta: float, sign: int) -> FloatArray:
    """ln K⁺_t(δ) (sign 1) or ln K⁻_t(δ) (sign −1) after each unit, (U,).

    Args:
        difference, size: (U,) D_g/S and N_g/S with S ≥ every N_g; for single items d and 1.
        delta: the hypothesis, −1 < δ < 1.
    """
    bets = np.minimum(_BETS, _TRUNCATION / (1 + sign * delta))
    gains = np.log1p(bets[:, None] * (sign * (difference - delta * size)))
    np.cumsum(gains, axis=1, out=gains)
    top = gains.max(axis=0)
    out: FloatArray = top + np.log(np.mean(np.exp(gains - top), axis=0))
    return out


def betting(
    ref: npt.NDArray[np.bool_],
    cand: npt.NDArray[np.bool_],
    margin: float,
    clusters: npt.NDArray[np.generic] | None = None,
    alpha: float = 0.05,
) -> EProcess:
    """Follow n paired outcomes in the order given.

    Args:
        ref, cand: (n,) bool: was the item right.
        margin: of equivalence, declared beforehand; 0 < margin < 1.
        clusters: (n,) labels of items that share a source.
        alpha: error probability over all looks.

    Raises:
        DataError: shapes differ, margin or alpha out of range.

    Cost: O(n) for each of about 60 hypotheses.
    """
    if not (0 < margin < 1 and 0 < alpha < 1):
        raise DataError(
            "margin or error probability out of range",
            expected="0 < margin < 1, 0 < alpha < 1",
            got=f"margin={margin}, alpha={alpha}",
            remedy="give the margin as a fraction of items",
        )
    pairs = pair_counts(ref, cand, clusters)
    if pairs.n == 0:
        return EProcess(math.nan, None, "undecided", math.nan, math.nan, alpha, "no items")
    units = _units(ref, cand, pairs)
    up, down = (log_capital(units.difference, units.size, 0.0, sign) for sign in (1, -1))
    hedge = np.logaddexp(up, down) - math.log(2)
    different = _first(hedge >= -math.log(alpha))
    not_below = log_capital(units.difference, units.size, -margin, 1)
    not_above = log_capital(units.difference, units.size, margin, -1)
    bound = math.log(2 / alpha)
    inside = max(_first(not_below >= bound), _first(not_above >= bound))
    first = min(different, inside)
    decision, decided_at = "undecided", None
    if first < len(hedge):
        decided_at = int(units.ends[first])
        decision = "equivalent" if first != different else "better" if up[first] > down[first] else "worse"
    low, high = _ends(units, bound)
    value = math.exp(min(float(hedge[-1]), math.log(sys.float_info.max)))
    return EProcess(value, decided_at, decision, low, high, alpha)


def _first(reached: npt.NDArray[np.bool_]) -> int:
    """Index of the first True, or the length."""
    return int(np.argmax(reached)) if reached.any() else len(reached)


def _ends(units: _Bets, bound: float) -> tuple[float, float]:
    """The confidence sequence after the last unit, intersected over all units before it, to 1e-6 outwards."""

    def refuted(delta: float, sign: int) -> bool:
        return bool(log_capital(units.difference, units.size, delta, sign).max() >= bound)

    def end(sign: int) -> float:
        # K⁺ falls in δ: from below, hypotheses are refuted up to the end
        if not refuted(-sign * (1 - 1e-9), sign):
            return -float(sign)
        bad, good = -sign * (1 - 1e-9), sign * (1 - 1e-9)
        while abs(good - bad) > 1e-6:
            middle = (bad + good) / 2
            bad, good = (middle, good) if refuted(middle, sign) else (bad, middle)
        return bad

    return end(1), end(-1)
