"""Slow, obvious float64 twin of `quantvane.displacement.token_metrics`: one row at a time, straight from the
definitions, with SciPy's own log-softmax and relative entropies, and a dense eigensolver."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import log_softmax, rel_entr


def lambda_max_dense(p):
    return float(np.linalg.eigvalsh(np.diag(p) - np.outer(p, p))[-1])


def order(x):
    """Indices from the largest logit down; of equal ones the smaller index first."""
    return sorted(range(len(x)), key=lambda i: (-x[i], i))


def entropy(p):
    return -sum(v * math.log(v) for v in p if v > 0)


def kl(p, q):
    return float(rel_entr(p, q).sum())


def twin_row(x, y, token, top_k=10, dense=True):
    """One position → dict of the fields of TokenMetrics."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    lp, lq = log_softmax(x), log_softmax(y)
    p, q = np.exp(lp), np.exp(lq)
    m = 0.5 * (p + q)
    bc = min(1.0, float(np.sqrt(p * q).sum()))
    order_p, order_q = order(x), order(y)
    k = min(top_k, len(x))
    out = {
        "kld": kl(p, q),
        "kld_rev": kl(q, p),
        "jsd": 0.5 * kl(p, m) + 0.5 * kl(q, m),
        "tv": 0.5 * float(np.abs(p - q).sum()),
        "hellinger": math.sqrt(1.0 - bc),
        "fisher_rao": 2.0 * math.acos(bc),
        "nll_ref": -lp[token],
        "nll_cand": -lq[token],
        "delta_p": q[token] - p[token],
        "entropy_ref": entropy(p),
        "entropy_cand": entropy(q),
        "pmax_ref": p.max(),
        "pmax_cand": q.max(),
        "topk_overlap": len(set(order_p[:k]) & set(order_q[:k])) / k,
        "top1_ref": order_p[0],
        "top1_cand": order_q[0],
        "rank_in_cand": order_q.index(order_p[0]),
        "same_top1": order_p[0] == order_q[0],
    }
    if dense:
        out["lambda_ref"] = lambda_max_dense(p)
        out["lambda_cand"] = lambda_max_dense(q)
    return out


def twin(ref, cand, tokens, top_k=10, dense=True):
    """(T, V), (T, V), (T,) → dict of (T,) arrays."""
    made = [twin_row(*row, top_k=top_k, dense=dense) for row in zip(ref, cand, tokens, strict=True)]
    return {name: np.array([row[name] for row in made]) for name in made[0]}
