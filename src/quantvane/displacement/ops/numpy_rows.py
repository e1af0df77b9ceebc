"""The float64 kernel: every definition in NumPy, a few rows at a time so that memory stays bounded.

All divergences are summed from non-negative terms. With t = ln p − ln q, u = |t|, h = max(p, q), e = e^{−u}:

    kld       Σ p (t + e^{−t} − 1)          (adds Σq − Σp = 0)   =  Σ h·(α(u) if t > 0 else β(u))
    kld_rev   Σ q (−t + e^{t} − 1)                               =  Σ h·(β(u) if t > 0 else α(u))
    jsd       Σ h·J(u)/2,    tv  Σ h·(1−e)/2,    1−Σ√(pq)  Σ h·(1−√e)²/2

    α = u − 1 + e,    β = 1 − e − u·e,    J = −(1+e)·ln((1+e)/2) − u·e

An error ε in the difference of the two normalisers then costs kld ε²/2 and not ε, identical rows give exactly
0, and nothing overflows, since the exponentials are of −u and ln h only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from quantvane.displacement.ops.common import assemble, bad_row
from quantvane.fisher.logit import lambda_max
from quantvane.types import TOKEN_FIELDS, FloatArray, TokenMetrics

__all__ = ["rows"]

_SCRATCH_BYTES = 32 * 2**20  # of temporaries per chunk, if one row does not need more
_TEMPORARIES = 16  # (rows, V) float64 arrays alive at once, about
_DERIVED = frozenset({"hellinger", "fisher_rao", "delta_p", "same_top1"})
_COLUMNS = tuple(name for name in TOKEN_FIELDS if name not in _DERIVED)


def rows(
    ref: npt.NDArray[Any], cand: npt.NDArray[Any], tokens: npt.NDArray[np.int64], top_k: int
) -> TokenMetrics:
    """Every field of `TokenMetrics`; see `quantvane.displacement.token_metrics` for shapes and errors."""
    count, vocab = ref.shape
    step = max(1, _SCRATCH_BYTES // (8 * vocab * _TEMPORARIES))
    columns: dict[str, npt.NDArray[Any]] = {
        name: np.empty(count, dtype=np.int32 if name[:4] in ("top1", "rank") else np.float64)
        for name in (*_COLUMNS, "h2")
    }
    for start in range(0, count, step):
        part = slice(start, min(start + step, count))
        x, y = (np.ascontiguousarray(side[part], dtype=np.float64) for side in (ref, cand))
        for name, side in (("ref_logits", x), ("cand_logits", y)):
            _refuse_bad(name, side, start)
        for name, values in _chunk(x, y, tokens[part], top_k).items():
            columns[name][part] = values
    return assemble(columns)


def _refuse_bad(name: str, x: FloatArray, start: int) -> None:
    top = x.max(axis=1)  # NaN wins a NumPy maximum, so one look at it finds all three faults
    if not np.isfinite(top).all():
        row = int(np.argmin(np.isfinite(top)))
        raise bad_row(name, start + row, x[row])


def _chunk(
    x: FloatArray, y: FloatArray, tokens: npt.NDArray[np.int64], top_k: int
) -> dict[str, npt.NDArray[Any]]:
    at = np.arange(len(x))
    lp, p, lognorm_p, top_p = _log_softmax(x)
    lq, q, lognorm_q, top_q = _log_softmax(y)
    out: dict[str, npt.NDArray[Any]] = {
        "top1_ref": top_p.astype(np.int32),
        "top1_cand": top_q.astype(np.int32),
        "nll_ref": -lp[at, tokens],
        "nll_cand": -lq[at, tokens],
        "pmax_ref": p[at, top_p],
        "pmax_cand": q[at, top_q],
        "entropy_ref": _entropy(p, lp),
        "entropy_cand": _entropy(q, lq),
        "rank_in_cand": _rank(y, top_p),
        "topk_overlap": _topk_overlap(x, y, top_k),
    }
    # ln p − ln q from the difference of the logits, which is exact where they are close.
    impossible_p, impossible_q = np.isneginf(x), np.isneginf(y)
    shift = (x[at, top_p] - y[at, top_q]) + (lognorm_p - lognorm_q)
    with np.errstate(invalid="ignore", over="ignore"):
        t = (x - y) - shift[:, None]
    t[impossible_p & impossible_q] = 0.0
    out.update(_divergences(t, np.maximum(p, q)))
    out["kld"][(impossible_q & ~impossible_p).any(axis=1)] = np.inf
    out["kld_rev"][(impossible_p & ~impossible_q).any(axis=1)] = np.inf
    out["lambda_ref"] = lambda_max(x)
    out["lambda_cand"] = lambda_max(y)
    return out


def _log_softmax(x: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, npt.NDArray[np.intp]]:
    """ln p, p, ln Σ e^{x−max}, argmax. The largest term (1) is kept out of the sum, so that ln p of a nearly
    certain token keeps its relative accuracy."""
    at = np.arange(len(x))
    top = x.argmax(axis=1)
    centred = x - x[at, top][:, None]
    terms = np.exp(centred)
    terms[at, top] = 0.0
    lognorm = np.log1p(terms.sum(axis=1))
    centred -= lognorm[:, None]
    return centred, np.exp(centred), lognorm, top


def _entropy(p: FloatArray, lp: FloatArray) -> FloatArray:
    terms = np.zeros_like(p)
    np.multiply(p, -lp, out=terms, where=p > 0)
    return np.asarray(terms.sum(axis=1))


def _divergences(t: FloatArray, h: FloatArray) -> dict[str, FloatArray]:
    """kld, kld_rev, jsd, tv and h2 from t (not NaN; ±inf where one side is impossible) and h = max(p, q)."""
    u = np.abs(t)
    away = ~np.isfinite(u)
    u[away] = 0.0  # filled in at the end of each term
    gone = -np.expm1(-u)
    left = 1.0 - gone
    half = -np.expm1(-0.5 * u)
    alpha = u - gone
    small = u < 1e-2
    v = u[small]
    alpha[small] = v * v * (1 / 2 - v * (1 / 6 - v * (1 / 24 - v * (1 / 120 - v * (1 / 720 - v / 5040)))))
    beta = gone * gone - left * alpha
    jensen = -(1.0 + left) * np.log1p(-0.5 * gone) - u * left
    w = gone[small] / (2.0 - gone[small])
    w *= w  # tanh²(u/2): the series in it has positive terms only
    jensen[small] = (1.0 - 0.5 * gone[small]) * w * (1 + w * (1 / 6 + w * (1 / 15 + w / 28)))
    for term, limit in ((gone, 1.0), (half, 1.0), (beta, 1.0), (jensen, np.log(2.0))):
        term[away] = limit  # alpha there belongs to a divergence that is set to +inf, or to h = 0
    ahead = t > 0
    return {
        "kld": (h * np.where(ahead, alpha, beta)).sum(axis=1),
        "kld_rev": (h * np.where(ahead, beta, alpha)).sum(axis=1),
        "jsd": 0.5 * (h * jensen).sum(axis=1),
        "tv": 0.5 * (h * gone).sum(axis=1),
        "h2": 0.5 * (h * (half * half)).sum(axis=1),
    }


def _rank(y: FloatArray, index: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Number of entries ahead of ``index``: strictly larger, or equal and earlier."""
    value = y[np.arange(len(y)), index][:, None]
    earlier = np.arange(y.shape[1])[None, :] < index[:, None]
    return np.asarray(((y > value) | ((y == value) & earlier)).sum(axis=1))


def _topk_overlap(x: FloatArray, y: FloatArray, k: int) -> FloatArray:
    k = min(k, x.shape[1])
    return np.asarray((_topk_mask(x, k) & _topk_mask(y, k)).sum(axis=1) / k)


def _topk_mask(x: FloatArray, k: int) -> npt.NDArray[np.bool_]:
    kth = np.partition(x, x.shape[1] - k, axis=1)[:, x.shape[1] - k, None]
    inside = x > kth
    tied = x == kth
    room = k - inside.sum(axis=1, keepdims=True)
    inside |= tied & (np.cumsum(tied, axis=1) <= room)
    return np.asarray(inside)
