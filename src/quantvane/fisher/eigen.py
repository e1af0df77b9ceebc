"""Extreme eigenvalues of many symmetric operators at once, and how the largest one moves along a line.

An operator here is a function V ↦ F V on arrays (N, n): row i is multiplied by the i-th of N symmetric n×n
matrices that nobody ever forms. One token is one row; a whole window's matrix is N = 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from quantvane.errors import DataError
from quantvane.types import FloatArray

__all__ = ["Extremes", "Operator", "eigen_terms", "extremes", "lowest_in_span", "solve_deflated"]

Operator = Callable[[FloatArray], FloatArray]

_TINY = 1e-13  # relative size below which a Krylov direction is rounding


@dataclass(frozen=True, slots=True)
class Extremes:
    """Ritz values of N operators; each lies inside the spectrum, so ``high`` never exceeds λ_max.

    Attributes:
        low, high: (N,) smallest and largest Ritz value.
        low_residual, high_residual: (N,) ‖F u − θ u‖: an eigenvalue lies within this distance of the value.
        vector: (N, n) unit Ritz vector of ``high``.
    """

    low: FloatArray
    high: FloatArray
    low_residual: FloatArray
    high_residual: FloatArray
    vector: FloatArray


def _dot(a: FloatArray, b: FloatArray) -> FloatArray:
    out: FloatArray = np.einsum("...i,...i->...", a, b)
    return out


def _without(basis: FloatArray, w: FloatArray) -> FloatArray:
    """w (N, n) less its part in the span of (N, j, n) orthonormal rows; twice is enough for full orthogonality."""
    for _ in range(2):
        w = w - ((basis @ w[:, :, None]).swapaxes(1, 2) @ basis)[:, 0]
    return w


def extremes(
    apply: Operator, shape: tuple[int, int], steps: int, rng: np.random.Generator, start: FloatArray | None = None
) -> Extremes:
    """Lanczos with full reorthogonalisation on N operators at once.

    Where a row's Krylov space is exhausted, it continues from a fresh direction orthogonal to what it has (an
    off-diagonal 0), so that repeated eigenvalues and invariant starts do no harm; with steps ≥ n the values are
    exact to rounding.

    Args:
        shape: (N, n). steps: at most this many products; min(steps, n) are made. start: (N, n), not 0.

    Cost: ``steps`` products and (N, steps, n) doubles.
    """
    rows, size = shape
    if rows < 1 or size < 1 or steps < 1:
        raise DataError(
            "nothing to iterate on", expected="N, n, steps ≥ 1", got=f"shape {shape}, steps {steps}", remedy=""
        )
    count = min(steps, size)
    basis = np.zeros((rows, count, size))
    diagonal, off = np.zeros((rows, count)), np.zeros((rows, count))
    v = rng.standard_normal(shape) if start is None else np.array(start, np.float64)
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    scale = np.zeros(rows)
    for j in range(count):
        basis[:, j] = v
        w = apply(v)
        diagonal[:, j] = _dot(v, w)
        scale = np.maximum(scale, np.linalg.norm(w, axis=1))
        w = _without(basis[:, : j + 1], w)
        off[:, j] = np.linalg.norm(w, axis=1)
        if j + 1 == count:
            break
        spent = off[:, j] <= _TINY * scale
        if bool(spent.any()):
            fresh = rng.standard_normal((int(spent.sum()), size))
            w[spent] = _without(basis[spent, : j + 1], fresh)
            off[spent, j] = 0.0
        v = w / np.linalg.norm(w, axis=1, keepdims=True)
    tri = np.zeros((rows, count, count))
    at = np.arange(count)
    tri[:, at, at] = diagonal
    tri[:, at[:-1], at[1:]] = tri[:, at[1:], at[:-1]] = off[:, :-1]
    values, vectors = np.linalg.eigh(tri)
    vector = (vectors[:, None, :, -1] @ basis)[:, 0]
    vector /= np.linalg.norm(vector, axis=1, keepdims=True)
    last = np.abs(vectors[:, -1, :]) * off[:, -1:]
    return Extremes(values[:, 0], values[:, -1], last[:, 0], last[:, -1], vector)


def solve_deflated(
    apply: Operator,
    value: FloatArray,
    vector: FloatArray,
    right: FloatArray,
    *,
    steps: int = 200,
    accuracy: float = 1e-12,
) -> tuple[FloatArray, FloatArray]:
    """x ⟂ u with (λ − F) x = right − u(u·right), by conjugate gradients on u's complement.

    λ is the largest eigenvalue and u its unit eigenvector, so λ − F is positive semidefinite there, definite
    where λ is simple. It ends at a relative residual of ``accuracy`` or after ``steps`` products. Returns x (N, n) and
    the relative residual (N,); a residual that stays large means λ is
    (nearly) repeated and x has no meaning.
    """

    def project(x: FloatArray) -> FloatArray:
        return x - vector * _dot(vector, x)[:, None]

    residual = project(right)
    x = np.zeros_like(residual)
    direction = residual.copy()
    norm0 = rho = _dot(residual, residual)
    for _ in range(steps):
        active = rho > accuracy**2 * norm0
        if not bool(active.any()):
            break
        image = project(value[:, None] * direction - apply(direction))
        bend = _dot(direction, image)
        usable = active & (bend > 0)
        step = np.divide(rho, bend, out=np.zeros_like(rho), where=usable)[:, None]
        x += step * direction
        residual = residual - step * image
        fresh = _dot(residual, residual)
        direction = residual + np.divide(fresh, rho, out=np.zeros_like(rho), where=usable)[:, None] * direction
        rho = np.where(usable, fresh, rho)
        if not bool(usable.any()):
            break
    relative = np.sqrt(np.divide(rho, norm0, out=np.zeros_like(rho), where=norm0 > 0))
    return project(x), relative


def eigen_terms(
    apply: Operator,
    first: Operator,
    second: Operator,
    value: FloatArray,
    vector: FloatArray,
    *,
    accuracy: float = 1e-12,
) -> tuple[FloatArray, FloatArray]:
    """λ' and λ'' of the largest eigenvalue of F(t) at t = 0, for N operators at once.

        λ' = uᵀF'u,   λ'' = uᵀF''u + 2 wᵀ(λ − F)⁺w,   w = F'u − λ'u

    Args:
        apply, first, second: F(0), F'(0), F''(0). value, vector: λ (N,) and its unit eigenvector (N, n).
        accuracy: relative residual at which the linear solve ends. λ'' is NaN where it stays above 1e-6 and above
            10 times this: the largest eigenvalue is then repeated, or nearly, and has no second derivative to speak of.

    Source: Kato, Perturbation Theory for Linear Operators, II-§2; Magnus & Neudecker, Matrix Differential
    Calculus, ch. 8.
    """
    moved = first(vector)
    slope = _dot(vector, moved)
    across = moved - slope[:, None] * vector
    solution, residual = solve_deflated(apply, value, vector, across, accuracy=accuracy)
    bend = _dot(vector, second(vector)) + 2.0 * _dot(across, solution)
    return slope, np.where(residual <= max(1e-6, 10 * accuracy), bend, np.nan)


def lowest_in_span(gram: FloatArray, form: FloatArray, size: int) -> float:
    """λ_min of Xᵀ S X (n×n) from X Xᵀ and S alone, for m rows X in an n-dimensional space that is never formed.

    The nonzero eigenvalues are those of R S Rᵀ with X Xᵀ = Rᵀ R; where n exceeds the rank, 0 is one more.

    Args:
        gram: (m, m) X Xᵀ. form: (m, m) symmetric S. size: n.
    """
    values, vectors = np.linalg.eigh((gram + gram.T) / 2)
    kept = values > max(float(values[-1]), 0.0) * 1e-12
    if not bool(kept.any()):
        return 0.0
    root = vectors[:, kept] * np.sqrt(values[kept])
    inside = np.linalg.eigvalsh(root.T @ form @ root)
    return float(min(inside[0], 0.0) if size > int(kept.sum()) else inside[0])
