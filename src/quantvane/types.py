"""Frozen records that cross rooms. Arrays are never copied in or out; treat them as read-only."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["TOKEN_FIELDS", "FloatArray", "Interval", "TokenMetrics", "Window"]

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Window:
    """One forward pass of one sequence, and which of its positions are scored.

    Attributes:
        tokens: (n,) int32, exactly as fed to the model (BOS already in place).
        targets: (n,) int32; ``targets[i]`` is the token that position i's logits are scored on.
        scored: (n,) bool; True where position i is scored.
        index: the window's number within the run, from 0.
        corpus: number of the corpus (``--text`` file), from 0.
        document: number of the document within the corpus, from 0.
        category: label for per-category results, or "".
    """

    tokens: npt.NDArray[np.int32]
    targets: npt.NDArray[np.int32]
    scored: npt.NDArray[np.bool_]
    index: int
    corpus: int
    document: int
    category: str = ""


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its interval; NaN plus a reason where either cannot be had.

    Attributes:
        value: the estimate, in the quantity's own unit.
        low, high: ends of the interval; NaN where there is none.
        reason: why value or interval is NaN; "" where both are there.
        level: nominal coverage.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    reason: str = ""
    level: float = 0.95

    def to_dict(self) -> dict[str, Any]:
        """``{"value", "ci"}`` with null for NaN, and ``reason`` where something is null."""
        finite = math.isfinite(self.value)
        has_ci = math.isfinite(self.low) and math.isfinite(self.high)
        out: dict[str, Any] = {
            "value": self.value if finite else None,
            "ci": [self.low, self.high] if has_ci else None,
        }
        if self.reason or not (finite and has_ci):
            out["reason"] = self.reason or "not finite"
        return out


@dataclass(frozen=True, slots=True)
class TokenMetrics:
    """Displacement of one candidate at T scored positions; every field is (T,). Natural logarithms (nats).

    p is the reference's distribution, q the candidate's, y the observed token.

    Attributes:
        kld: Σ p (ln p − ln q).
        kld_rev: Σ q (ln q − ln p).
        jsd: Jensen–Shannon divergence, at most ln 2.
        tv: total variation, ½Σ|p−q|.
        hellinger: √(1−Σ√(pq)).
        fisher_rao: 2·arccos Σ√(pq), at most π.
        nll_ref, nll_cand: −ln p(y), −ln q(y).
        delta_p: q(y) − p(y).
        entropy_ref, entropy_cand: of p, of q.
        pmax_ref, pmax_cand: largest probability of p, of q.
        lambda_ref, lambda_cand: λ_max of diag(p)−ppᵀ, of diag(q)−qqᵀ.
        topk_overlap: shared fraction of the two top-k sets.
        top1_ref, top1_cand: argmax (int32; the first index wins a tie).
        rank_in_cand: rank in q of p's argmax, 0 where it is q's first (int32; entries strictly larger, plus
            equal entries with a smaller index).
        same_top1: argmax agreement (bool).
    """

    kld: FloatArray
    kld_rev: FloatArray
    jsd: FloatArray
    tv: FloatArray
    hellinger: FloatArray
    fisher_rao: FloatArray
    nll_ref: FloatArray
    nll_cand: FloatArray
    delta_p: FloatArray
    entropy_ref: FloatArray
    entropy_cand: FloatArray
    pmax_ref: FloatArray
    pmax_cand: FloatArray
    lambda_ref: FloatArray
    lambda_cand: FloatArray
    topk_overlap: FloatArray
    top1_ref: npt.NDArray[np.int32]
    top1_cand: npt.NDArray[np.int32]
    rank_in_cand: npt.NDArray[np.int32]
    same_top1: npt.NDArray[np.bool_]

    def to_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Field name → array, in declared order."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def __len__(self) -> int:
        return len(self.kld)


TOKEN_FIELDS: tuple[str, ...] = tuple(f.name for f in fields(TokenMetrics))
