"""One row at a time, numpy float64, straight from the definitions: what the GPU kernels are compared with."""

from __future__ import annotations

import math

import numpy as np


def _log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max()
    return shifted - math.log(np.exp(shifted).sum())


def _plog(p: np.ndarray, log_ratio: np.ndarray) -> float:
    keep = p > 0
    return float((p[keep] * log_ratio[keep]).sum())


def lambda_max(p: np.ndarray) -> float:
    """Largest eigenvalue of diag(p) − ppᵀ by bisection of the secular equation between p₂ and p₁.

    f(λ) = Σ p_i²/(p_i−λ) − 1 has its largest root there and falls from +∞ at p₂⁺ … wherever p₁ > p₂.
    """
    order = np.sort(p)[::-1]
    p1, rest = order[0], order[1:]
    if not len(rest) or rest[0] == 0:
        return 0.0
    if rest[0] == p1:
        return float(p1)
    low, high = rest[0], p1
    for _ in range(200):
        mid = 0.5 * (low + high)
        if mid in (low, high):
            break
        psi = (rest / (mid - rest)).sum()
        # 1/ψ − (p₁−λ)/p₁ rises through its root
        if psi * (p1 - mid) > p1:
            low = mid
        else:
            high = mid
    return float(0.5 * (low + high))


def _top(x: np.ndarray, k: int) -> list[int]:
    return sorted(range(len(x)), key=lambda i: (-x[i], i))[:k]


def twin_row(ref: np.ndarray, cand: np.ndarray, token: int, top_k: int) -> dict[str, float]:
    """Every field of TokenMetrics for one pair of logit rows (V,)."""
    a, b = np.asarray(ref, np.float64), np.asarray(cand, np.float64)
    with np.errstate(all="ignore"):
        la, lb = _log_softmax(a), _log_softmax(b)
        p, q = np.exp(la), np.exp(lb)
        mid = np.log(0.5 * (p + q))
        # Σ p(ln p − ln q) = Σ (q − p − p·d) as both sum to one; the second form keeps its relative accuracy
        d = np.where((p > 0) | (q > 0), lb - la, 0.0)
        kld = float(np.where(p > 0, p * (np.expm1(d) - d), q).sum())
        kld_rev = float(np.where(q > 0, q * (np.expm1(-d) + d), p).sum())
        jsd = 0.5 * (_plog(p, la - mid) + _plog(q, lb - mid))
        h2 = 0.5 * float(((np.sqrt(p) - np.sqrt(q)) ** 2).sum())
    k = min(top_k, len(a))
    top_a, top_b = _top(a, k), _top(b, k)
    best = top_a[0]
    return {
        "kld": kld,
        "kld_rev": kld_rev,
        "jsd": jsd,
        "tv": 0.5 * float(np.abs(p - q).sum()),
        "hellinger": math.sqrt(h2),
        "fisher_rao": 4.0 * math.asin(min(1.0, math.sqrt(0.5 * h2))),
        "nll_ref": -float(la[token]),
        "nll_cand": -float(lb[token]),
        "delta_p": float(q[token] - p[token]),
        "entropy_ref": -_plog(p, la),
        "entropy_cand": -_plog(q, lb),
        "pmax_ref": float(p.max()),
        "pmax_cand": float(q.max()),
        "lambda_ref": lambda_max(p),
        "lambda_cand": lambda_max(q),
        "topk_overlap": len(set(top_a) & set(top_b)) / k,
        "top1_ref": best,
        "top1_cand": top_b[0],
        "rank_in_cand": int((b > b[best]).sum() + (b[:best] == b[best]).sum()),
        "same_top1": float(best == top_b[0]),
    }
