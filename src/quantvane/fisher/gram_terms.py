"""Terms and Weyl's bound of matrices (1/N) Σ gᵢgᵢᵀ from inner products of their rows alone. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quantvane.errors import DataError
from quantvane.fisher.eigen import eigen_terms, lowest_in_span
from quantvane.types import FloatArray

__all__ = ["REPEATED", "Terms", "gram_terms", "kronecker_products", "token_gram_terms", "weyl_gram"]

REPEATED = "the largest eigenvalue is repeated, or nearly"


@dataclass(frozen=True, slots=True)
class Terms:
    """λ, λ', λ'' of one window in one space, with what is known of F' and F''.

    Attributes:
        value: λ(0). slope: λ'. curvature: λ''; the second-order term is half of it.
        lowest_first, lowest_second: smallest eigenvalue of F' and of ½F'' (over all positions' matrices where
            the space has one a position); NaN where it was not asked for.
        reason: why a value is NaN, else "".
    """

    value: float
    slope: float
    curvature: float
    lowest_first: float = math.nan
    lowest_second: float = math.nan
    reason: str = ""

    def at(self, t: float) -> float:
        """λ + tλ' + ½t²λ''."""
        return self.value + t * self.slope + 0.5 * t * t * self.curvature


def kronecker_products(
    left: Sequence[tuple[FloatArray, FloatArray]], right: Sequence[tuple[FloatArray, FloatArray]]
) -> FloatArray:
    """Inner products of rows Σ a⊗h: Σ over terms of (a·a')(h·h')."""
    out: FloatArray = np.sum([(a @ c.T) * (h @ k.T) for a, h in left for c, k in right], axis=0)
    return out


def gram_terms(gram: FloatArray, size: int) -> Terms:
    """Terms of F = (1/N) Σ gᵢgᵢᵀ from inner products alone.

    Args:
        gram: (3N, 3N) inner products of the rows g, g', g'' (derivatives along the line), in that order.
        size: dimension the rows live in.

    F has the nonzero eigenvalues of K = G Gᵀ/N for every t, so λ' and λ'' are K's.
    """
    n = len(gram) // 3
    if gram.shape != (3 * n, 3 * n) or n == 0:
        raise DataError(
            "these are no inner products of rows and two derivatives",
            expected="a square array of side 3N",
            got=f"shape {gram.shape}",
            remedy="stack the rows g, g', g'' and multiply them with their transpose",
        )
    block = [[gram[i * n : (i + 1) * n, j * n : (j + 1) * n] for j in range(3)] for i in range(3)]
    k = block[0][0] / n
    k1 = (block[0][1] + block[1][0]) / n
    k2 = (block[0][2] + block[2][0] + 2.0 * block[1][1]) / n
    values, vectors = np.linalg.eigh((k + k.T) / 2)
    slope, bend = eigen_terms(lambda v: v @ k, lambda v: v @ k1, lambda v: v @ k2, values[-1:], vectors[:, -1][None])
    eye, none = np.eye(n), np.zeros((n, n))
    first = np.block([[none, eye, none], [eye, none, none], [none, none, none]]) / n
    second = np.block([[none, none, eye], [none, 2.0 * eye, none], [eye, none, none]]) / n
    reason = "" if math.isfinite(bend[0]) else REPEATED
    low = lowest_in_span(gram, first, size), 0.5 * lowest_in_span(gram, second, size)
    return Terms(float(values[-1]), float(slope[0]), float(bend[0]), *low, reason)


def token_gram_terms(gram: FloatArray, size: int) -> Terms:
    """Terms of the mean over positions of ‖gᵢ‖², each position's own gᵢgᵢᵀ taken as its matrix.

    Args:
        gram: (3N, 3N) as for `gram_terms`.

    λ' = 2 g·g', λ'' = 2(‖g'‖² + g·g''); the smallest eigenvalues are the smallest over all positions.
    """
    n = len(gram) // 3
    each = [gram_terms(gram[np.ix_(at, at)], size) for at in (np.array([i, n + i, 2 * n + i]) for i in range(n))]
    lows = min(e.lowest_first for e in each), min(e.lowest_second for e in each)
    value, slope, bend = (float(np.mean([getattr(e, f) for e in each])) for f in ("value", "slope", "curvature"))
    return Terms(value, slope, bend, *lows)


def weyl_gram(gram: FloatArray, size: int) -> float:
    """λ_min of (1/N)(Σ bᵢbᵢᵀ − Σ aᵢaᵢᵀ) from the (2N, 2N) inner products of the rows b, then a."""
    n = len(gram) // 2
    return lowest_in_span(gram, np.diag(np.repeat([1.0, -1.0], n)) / n, size)
