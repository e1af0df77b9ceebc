"""Largest eigenvalue of a symmetric positive semidefinite operator by Lanczos with full reorthogonalisation.

After m steps the operator is known as an m×m tridiagonal matrix T = QᵀAQ in an orthonormal basis Q. Its largest
eigenvalue θ is a Rayleigh quotient, so θ ≤ λ_max(A); ‖Av − θv‖ for the Ritz vector v is β_m |last component|.
The basis is held whole (m vectors), which is what full reorthogonalisation needs; m is small.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from quantvane.errors import DataError
from quantvane.fisher.estimates import LambdaEstimate
from quantvane.types import FloatArray

__all__ = ["MatVec", "lanczos_lambda", "lanczos_pair"]

MatVec = Callable[[FloatArray], FloatArray]
_BREAKDOWN = 1e-13


def lanczos_lambda(
    product: MatVec,
    size: int,
    rng: np.random.Generator,
    *,
    steps: int = 32,
    tolerance: float = 1e-6,
    fisher: str = "",
) -> LambdaEstimate:
    """λ_max of a symmetric positive semidefinite operator.

    Args:
        product: v (size,) float64 → A v (size,). size: dimension of A.
        rng: draws the start vector. steps: most products with A.
        tolerance: stop where residual ≤ tolerance · θ.
        fisher: the name to record.

    Returns:
        ``value`` θ ≤ λ_max up to rounding, ``residual``, ``steps``; NaN with a reason where A gave NaN.

    Raises:
        DataError: size or steps below 1.
    """
    estimate, _ = lanczos_pair(product, size, rng, steps=steps, tolerance=tolerance, fisher=fisher)
    return estimate


def lanczos_pair(
    product: MatVec,
    size: int,
    rng: np.random.Generator,
    *,
    steps: int = 32,
    tolerance: float = 1e-6,
    fisher: str = "",
) -> tuple[LambdaEstimate, FloatArray]:
    """`lanczos_lambda` and its unit Ritz vector (size,); NaN entries where there is none."""
    if size < 1 or steps < 1:
        raise DataError("Lanczos needs a dimension and a step", expected="1 or more", got=f"{size}, {steps}")
    steps = min(steps, size)
    q = rng.standard_normal(size)
    q /= np.linalg.norm(q)
    basis: list[FloatArray] = []
    alpha: list[float] = []
    beta: list[float] = []
    theta, residual, weights = 0.0, math.inf, np.ones(1)
    for _ in range(steps):
        basis.append(q)
        w = np.asarray(product(q), dtype=np.float64)
        a = float(q @ w)
        if not math.isfinite(a):
            nan = LambdaEstimate(math.nan, steps=len(basis), fisher=fisher, reason="a product with F is not finite")
            return nan, np.full(size, math.nan)
        alpha.append(a)
        stack = np.stack(basis)
        for _again in range(2):  # twice is enough (Kahan): the second pass removes what rounding left of the first
            w = w - stack.T @ (stack @ w)
        b = float(np.linalg.norm(w))
        values, vectors = _ritz(alpha, beta)
        theta, weights = float(values[-1]), vectors[:, -1]
        residual = b * abs(float(weights[-1]))
        if residual <= tolerance * theta or b <= _BREAKDOWN * max(abs(theta), 1e-300):
            break
        beta.append(b)
        q = w / b
    vector = np.stack(basis).T @ weights
    estimate = LambdaEstimate(max(theta, 0.0), residual=residual, steps=len(basis), fisher=fisher)
    return estimate, vector


def _ritz(alpha: list[float], beta: list[float]) -> tuple[Any, Any]:
    matrix = np.diag(alpha)
    off = np.array(beta[: len(alpha) - 1])
    return np.linalg.eigh(matrix + np.diag(off, 1) + np.diag(off, -1))
