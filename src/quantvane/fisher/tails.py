"""Top-k log-probabilities read as facts: known entries, the mass they leave, the cap on every other entry."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantvane.errors import DataError
from quantvane.types import FloatArray

__all__ = ["MASS_SLACK", "TopK", "read_topk"]

MASS_SLACK = 4e-6
"""How far from 1 a single-precision log-softmax may leave the mass of a whole distribution."""


@dataclass(frozen=True, slots=True)
class TopK:
    """n rows of top-k lists of one vocabulary.

    Attributes:
        logp: (n, k) log-probabilities in the order given.
        p: (n, k) their exponentials; positive unless −inf, see `_exp`.
        rest: (n,) 1 − Σp, from −expm1 of the largest log-probability; slightly negative where rounding made
            the mass exceed 1.
        cap: (n,) the smallest listed probability: no unlisted entry is larger.
        rounding: (n,) half-width η of the log-probabilities' rounding: as declared, and at least what a mass
            above 1 proves.
        unlisted: V − k, or infinity where V is not known.
        valid: (n,) False where the row holds NaN (its numbers are placeholders).
    """

    logp: FloatArray
    p: FloatArray
    rest: FloatArray
    cap: FloatArray
    rounding: FloatArray
    unlisted: float
    valid: npt.NDArray[np.bool_]


def read_topk(logp: FloatArray, vocab_size: int | None, rounding: float, name: str) -> TopK:
    """Check (n, k) log-probabilities against what top-k lists must satisfy.

    A whole distribution (k = V) with ``rounding`` 0 is renormalised, since its mass is known to be 1.

    Raises:
        DataError: k > V, a negative or infinite rounding, a mass above 1 beyond rounding, or a mass below 1
            that the V − k unlisted entries, none above the smallest listed one, cannot hold.
    """
    n, k = logp.shape
    if k == 0 or (vocab_size is not None and vocab_size < k):
        raise DataError(
            f"{name}: a list cannot be empty or longer than the vocabulary",
            expected=f"1 ≤ k ≤ vocab_size ({'unknown' if vocab_size is None else vocab_size})",
            got=f"k = {k}",
            remedy="pass the vocabulary size of the model that produced the log-probabilities",
        )
    if not (math.isfinite(rounding) and 0.0 <= rounding < 1.0):
        raise DataError(
            "rounding is the half-width of the log-probabilities' rounding, in nats",
            expected="a number in [0, 1)",
            got=repr(rounding),
            remedy="for values printed with d decimals pass 0.5 * 10**-d",
        )
    valid: npt.NDArray[np.bool_] = np.logical_not(np.isnan(logp).any(axis=-1))
    logp = np.where(valid[:, None], logp, -math.log(k))
    eta = np.full(n, float(rounding))
    p = _exp(logp)
    head = logp.max(axis=-1)
    others = p.copy()
    np.put_along_axis(others, logp.argmax(axis=-1)[:, None], 0.0, axis=-1)
    with np.errstate(over="ignore"):
        rest = -np.expm1(head) - others.sum(axis=-1)
    with np.errstate(invalid="ignore"):
        rest = np.where(np.isposinf(head), -np.inf, rest)
    _refuse(
        valid & ~(rest >= -(math.expm1(rounding) + MASS_SLACK)),
        f"{name}: the listed probabilities sum to more than 1",
        "mass at most 1, beyond rounding",
        1.0 - rest,
        "pass natural logarithms of normalised probabilities; declare their rounding",
    )
    cap = p.min(axis=-1)
    unlisted = math.inf if vocab_size is None else float(vocab_size - k)
    # The unlisted entries hold at most unlisted · cap; −inf padding (cap 0) holds nothing, whatever V is.
    room = np.where(cap > 0.0, unlisted * np.where(cap > 0.0, cap, 1.0), 0.0)
    _refuse(
        valid & (rest - math.expm1(rounding) - MASS_SLACK > room * math.exp(rounding) * (1 + 1e-9)),
        f"{name}: the unlisted tokens cannot hold the mass that is left",
        "1 − mass ≤ (vocab_size − k) · smallest listed probability",
        1.0 - rest,
        "check vocab_size, and that the list holds the k largest entries and no others",
    )
    if unlisted == 0.0:
        if rounding == 0.0:
            log_mass = np.log1p(-rest)
            logp = logp - log_mass[:, None]
            p = _exp(logp)
            cap, rest = p.min(axis=-1), np.zeros(n)
    else:
        eta = np.maximum(eta, np.where(rest < 0.0, -rest, 0.0))
    return TopK(logp, p, rest, cap, eta, unlisted, valid)


def _exp(logp: FloatArray) -> FloatArray:
    """exp that is 0 for −inf alone: what would underflow (sentinels such as −9999 too) becomes e^{−700}.

    A listed probability of 0 closes the list and makes KL infinite; a tiny one must do neither.
    """
    with np.errstate(over="ignore"):
        return np.where(np.isneginf(logp), 0.0, np.exp(np.maximum(logp, -700.0)))


def _refuse(bad: npt.NDArray[np.bool_], message: str, expected: str, mass: FloatArray, remedy: str) -> None:
    if bool(bad.any()):
        row = int(bad.argmax())
        raise DataError(message, expected=expected, got=f"mass {mass[row]:.9g} in row {row}", remedy=remedy)
