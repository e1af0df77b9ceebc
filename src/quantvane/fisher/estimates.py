"""Small records of the spaces whose λ_max is not a closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantvane.errors import DataError
from quantvane.types import FloatArray

__all__ = ["LambdaEstimate", "TraceBounds", "gram_lambda", "trace_bounds"]


@dataclass(frozen=True, slots=True)
class LambdaEstimate:
    """One λ_max with what is known about it.

    Attributes:
        value: the estimate. From Lanczos it is a Rayleigh quotient, so a lower bound of λ_max up to rounding.
        upper: a rigorous upper bound; NaN where none was computed.
        residual: ‖Fv − value·v‖ of the unit Ritz vector v: an eigenvalue of F lies within it of ``value``. 0 where
            ``value`` comes from a dense eigensolver.
        steps: products with F that were spent; 0 for a dense solver.
        fisher: which F: "empirical", "sampled" or "true".
        spread: relative standard deviation from a random sketch or from draws of labels; NaN where there is none.
        reason: why ``value`` is NaN; "" otherwise.
    """

    value: float
    upper: float = math.nan
    residual: float = 0.0
    steps: int = 0
    fisher: str = ""
    spread: float = math.nan
    reason: str = ""


@dataclass(frozen=True, slots=True)
class TraceBounds:
    """tr F²/tr F ≤ λ_max ≤ √tr F² ≤ tr F for a positive semidefinite F.

    Attributes:
        lower: tr F²/tr F; NaN for F = 0. upper: √tr F². trace: tr F.
    """

    lower: float
    upper: float
    trace: float


def _square(matrix: npt.ArrayLike) -> FloatArray:
    array = np.asarray(matrix, dtype=np.float64)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or array.shape[0] == 0:
        raise DataError(
            "a Gram matrix must be square and not empty",
            expected="shape (N, N), N ≥ 1",
            got=f"shape {array.shape}",
            remedy="pass the matrix of inner products g_i·g_j/N",
        )
    return array


def trace_bounds(gram: npt.ArrayLike) -> TraceBounds:
    """The trace bounds of F = (1/N) Σ g_i g_iᵀ from its Gram matrix g_i·g_j/N, whose traces are F's own.

    Raises:
        DataError: not a square matrix.
    """
    array = _square(gram)
    trace, squared = float(np.trace(array)), float((array * array).sum())
    return TraceBounds(squared / trace if trace > 0 else math.nan, math.sqrt(squared), trace)


def gram_lambda(gram: npt.ArrayLike, fisher: str = "empirical") -> LambdaEstimate:
    """Exact λ_max of F = (1/N) Σ g_i g_iᵀ: its nonzero eigenvalues are those of the Gram matrix g_i·g_j/N.

    Args:
        gram: (N, N), symmetric up to rounding. fisher: the name to record.

    Raises:
        DataError: not a square matrix.
    """
    array = _square(gram)
    if not bool(np.isfinite(array).all()):
        return LambdaEstimate(math.nan, fisher=fisher, reason="the gradients hold NaN or infinity")
    value = max(float(np.linalg.eigvalsh(0.5 * (array + array.T))[-1]), 0.0)
    return LambdaEstimate(value, upper=value, fisher=fisher)
