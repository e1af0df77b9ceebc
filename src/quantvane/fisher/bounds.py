"""Two-sided bounds of λ_max(diag(p) − ppᵀ) from the k largest log-probabilities that an API returns."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from quantvane.errors import DataError
from quantvane.fisher.secular import solve_atoms
from quantvane.fisher.tails import TopK, read_topk
from quantvane.types import FloatArray

__all__ = ["lambda_bounds_topk"]

_CHUNK = 1 << 18


def lambda_bounds_topk(
    logprobs: npt.ArrayLike, vocab_size: int | None = None, rounding: float = 0.0
) -> tuple[FloatArray, FloatArray]:
    """Smallest and largest λ_max over every distribution that has these k largest log-probabilities.

    The list leaves a mass r = 1 − Σp (−expm1(ln p₁) minus the others, never 1 − p₁) to entries of at most p_k
    each. t ↦ t/(λ−t) is convex, so ψ(λ) = Σ_{i≥2} pᵢ/(λ−pᵢ), and with it λ, is largest for ⌊r/p_k⌋ copies of
    p_k and one remainder, smallest for V − k equal entries, or an infinitely thin spread where V is not
    known. Both ends are attained (the thin one in the limit), and upper/lower ≤ 2/(1 + √(1 − 1/k)).

    Rounding: with every listed log-probability within ±η of the truth, λ's monotonicity in each entry gives
    bounds at the ends pᵢe^{±η}, r ± what the list then leaves, cap p_k e^{±η}. This is wider than a factor
    e^{±η} where η is not small beside the tail: the tail's own mass is then only known through the rounded
    head.

    Args:
        logprobs: (..., k) natural logarithms, in any order within a row; −inf is probability 0. They must be
            the k largest: drop an observed token that an API appends from further down.
        vocab_size: V; without it the lower bound is a little lower and capacity is not checked.
        rounding: η, half-width of the rounding of ``logprobs`` in nats, for example 0.5e-4 for four decimals.
            With 0 they are taken as exact, except that a mass above 1 (within a single-precision
            log-softmax's error) shows how far they are rounded, and is allowed for.

    Returns:
        lower, upper: (...) float64. Equal to λ_max for k = V with ``rounding`` 0. NaN where the row holds
            NaN.

    Raises:
        DataError: k > V, no last axis, mass above 1 beyond rounding, or a mass that V − k entries cannot
            hold.
    """
    array = np.asarray(logprobs)
    if array.ndim == 0 or array.shape[-1] == 0 or array.dtype.kind not in "fiu":
        raise DataError(
            "log-probabilities must be an array of real numbers with a last axis over the list",
            expected="shape (..., k) with k ≥ 1 and a real dtype",
            got=f"shape {array.shape}, dtype {array.dtype}",
            remedy="pass a numpy array, one row a position",
        )
    rows = array.reshape(-1, array.shape[-1])
    lower, upper = np.empty(len(rows)), np.empty(len(rows))
    step = max(1, _CHUNK // rows.shape[1])
    for begin in range(0, len(rows), step):
        part = slice(begin, begin + step)
        top = read_topk(rows[part].astype(np.float64), vocab_size, rounding, "logprobs")
        low, high = _lower(top), _upper(top)
        lower[part] = np.where(top.valid, low, np.nan)
        upper[part] = np.where(top.valid, np.maximum(low, high), np.nan)
    return lower.reshape(array.shape[:-1]), upper.reshape(array.shape[:-1])


def _known(top: TopK, factor: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Largest entry (n,) and the other listed ones (n, k−1), times ``factor``."""
    p = np.exp(-np.sort(-top.logp, axis=-1)) * factor[:, None]
    return p[:, 0], p[:, 1:]


def _atoms(x1: FloatArray, known: FloatArray, tail: list[tuple[FloatArray, FloatArray]]) -> FloatArray:
    """λ with each known entry an atom of its own, and the tail's (size, mass) atoms beside them."""
    sizes = np.column_stack([known, *(size for size, _ in tail)])
    masses = np.column_stack([known, *(mass for _, mass in tail)])
    return solve_atoms(x1, sizes, masses)


def _capped(rest: FloatArray, cap: FloatArray, unlisted: float) -> FloatArray:
    """The mass left for unlisted entries, within what they can hold."""
    held = np.maximum(rest, 0.0)
    if math.isfinite(unlisted):
        held = np.minimum(held, unlisted * cap)
    out: FloatArray = np.where(cap > 0.0, held, 0.0)
    return out


def _lower(top: TopK) -> FloatArray:
    x1, known = _known(top, np.exp(-top.rounding))
    left = top.rest - np.expm1(top.rounding) * (1.0 - top.rest)  # 1 − e^η Σp
    rest = _capped(left, top.cap * np.exp(top.rounding), top.unlisted)
    even = rest / max(top.unlisted, 1.0)  # 0 where V is unknown: spread infinitely thin
    return np.minimum(_atoms(x1, known, [(np.minimum(even, x1), rest)]), 0.5)


def _upper(top: TopK) -> FloatArray:
    x1, known = _known(top, np.exp(top.rounding))
    cap = top.cap * np.exp(top.rounding)
    rest = _capped(top.rest - np.expm1(-top.rounding) * (1.0 - top.rest), cap, top.unlisted)  # 1 − e^{−η} Σp
    safe = np.where(cap > 0.0, cap, 1.0)
    copies = np.floor(rest / safe) * safe
    remainder = np.clip(rest - copies, 0.0, cap)
    value = _atoms(x1, known, [(cap, copies), (remainder, remainder)])
    return np.minimum(value, 0.5)
