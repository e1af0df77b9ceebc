"""Slow twins of the Fisher curve: every matrix formed in float64, every derivative by a seven-point difference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def covariances(logits: np.ndarray) -> np.ndarray:
    """(N, V, V) diag p − ppᵀ of each row."""
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return np.stack([np.diag(row) - np.outer(row, row) for row in p])


def matrices(space: str, states: Any, targets: np.ndarray) -> np.ndarray:
    """The matrices of a window in an output space: one a position (N, n, n), one in all (1, n, n) for ``head``."""
    z = states.logits()
    c = covariances(z)
    if space == "logit":
        return c
    if space == "hidden":
        return np.stack([states.weight.T @ one @ states.weight for one in c])
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    miss = np.eye(p.shape[1])[targets] - p
    g = np.stack([np.outer(a, h).ravel() for a, h in zip(miss, states.hidden, strict=True)])
    return (g.T @ g / len(g))[None]


def gauss_newton_matrix(jacobian: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """(P, P) (1/N) Σ Jᵢᵀ Cᵢ Jᵢ from (N, V, P) Jacobians."""
    return np.mean([j.T @ c @ j for j, c in zip(jacobian, covariances(logits), strict=True)], axis=0)


_FIRST = np.array([-1, 9, -45, 0, 45, -9, 1]) / 60
_SECOND = np.array([2, -27, 270, -490, 270, -27, 2]) / 180


def derivatives(f: Callable[[float], Any], step: float) -> tuple[Any, Any]:
    """f'(0), f''(0), errors of order step⁶."""
    values = [np.asarray(f(k * step)) for k in range(-3, 4)]
    first = sum(w * v for w, v in zip(_FIRST, values, strict=True)) / step
    second = sum(w * v for w, v in zip(_SECOND, values, strict=True)) / step**2
    return first, second


def largest(stack: np.ndarray) -> float:
    """Mean over the matrices of their largest eigenvalue."""
    return float(np.mean(np.linalg.eigvalsh(stack)[:, -1]))
