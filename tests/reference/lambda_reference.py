"""Slow, obvious twins of λ_max(diag(p) − ppᵀ)."""

from __future__ import annotations

import mpmath
import numpy as np


def probabilities(logits):
    """Softmax and, beside it, 1 − p without cancellation (the sum of the others)."""
    x = np.asarray(logits, dtype=np.float64)
    e = np.exp(x - x.max())
    p = e / e.sum()
    return p, np.array([np.delete(p, i).sum() for i in range(len(p))])


def dense(logits):
    """Largest eigenvalue by a dense symmetric solver."""
    p, rest = probabilities(logits)
    matrix = -np.outer(p, p)
    matrix[np.diag_indices(len(p))] = p * rest
    return float(np.linalg.eigvalsh(matrix)[-1])


def precise(logits, digits=60):
    """The same in multiple precision: the secular equation p₁/(p₁−λ) = Σ pᵢ/(λ−pᵢ) bisected on (p₂, p₁)."""
    with mpmath.workdps(digits):
        e = sorted((mpmath.exp(mpmath.mpf(float(v))) for v in logits if v != -np.inf), reverse=True)
        total = sum(e)
        p = [v / total for v in e]
        if len(p) == 1:
            return 0.0
        if p[0] == p[1]:
            return float(p[0])
        low, high = p[1], p[0]
        if len(p) == 2:
            return float(2 * p[0] * p[1])
        # Near one-hot λ lies many orders below p₁: start from λ ≤ 2 p₁ (1 − p₁).
        high = min(high, 2 * p[0] * sum(p[1:]))
        for _ in range(int(4 * digits)):
            middle = (low + high) / 2
            if sum(v / (middle - v) for v in p[1:]) > p[0] / (p[0] - middle):
                low = middle
            else:
                high = middle
        return float((low + high) / 2)


def log_softmax(logits):
    """Row-wise, accurate next to one-hot: the largest comes from log1p of the others' sum."""
    x = np.asarray(logits, dtype=np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    e = np.exp(x)
    np.put_along_axis(e, e.argmax(axis=-1)[..., None], 0.0, axis=-1)
    return x - np.log1p(e.sum(axis=-1, keepdims=True))
