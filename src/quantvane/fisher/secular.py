"""The equation every logit-space number solves, and the Newton iteration that solves it from below.

For nonnegative x₁ ≥ x₂ ≥ … (a distribution, or any positive multiple of one) let

    λ(x) = λ_max( diag(x) − x xᵀ / Σx ) = max over unit v of  min over c of  Σ xᵢ (vᵢ − c)².

The right-hand side grows with every xᵢ and is homogeneous, so min Δln xᵢ ≤ Δln λ ≤ max Δln xᵢ. For x₂ < x₁ it
is the root in (x₂, x₁) of

    x₁/(x₁ − λ) = ψ(λ),   ψ(λ) = Σ_{i≥2} xᵢ/(λ − xᵢ)        (rank-one secular equation)

and f(λ) = 1/ψ(λ) − (x₁ − λ)/x₁ is concave and increasing there, so Newton's method started below the root
rises to it monotonically and every iterate is a lower bound.

All solvers here work in the unit λ₀ (a lower bound of λ): locations uᵢ = xᵢ/λ₀ ≤ 1, unknown z = λ/λ₀ ≥ 1,
g = λ₀/x₁. In that unit nothing overflows, however close to one-hot the distribution is.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from quantvane.types import FloatArray

__all__ = ["rise", "solve_atoms", "two_atom_bounds"]

_MAX_STEPS = 40  # quadratic convergence needs 4; the rest is a guard
_STEP_TOLERANCE = 1e-15
_IDLE = 1e-18


def rise(
    psi: Callable[[FloatArray], tuple[FloatArray, FloatArray]], g: FloatArray, ceiling: FloatArray
) -> FloatArray:
    """Newton from z = 1 up to the root of 1/ψ(z) = 1 − g z, never past ``ceiling``.

    A row stops where it has converged, so that its value does not depend on the rows beside it.

    Args:
        psi: z (n,) -> ψ(z), −ψ'(z), each (n,).
        g: (n,) λ₀/x₁.
        ceiling: (n,) an upper bound of the root, ≥ 1.
    """
    z = np.ones_like(g)
    before = np.full_like(g, np.inf)
    going = np.ones(g.shape, dtype=bool)
    for _ in range(_MAX_STEPS):
        value, slope = psi(z)
        # ψ = +∞ (z sits on a location) means 1/ψ = 0 and no usable slope: g alone still gives a step upwards.
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            inverse = 1.0 / value
            gain = np.where(np.isfinite(value), slope * inverse * inverse, 0.0)
            step = (1.0 - g * z - inverse) / (np.where(np.isfinite(gain), gain, 0.0) + g)
        risen = np.minimum(z + np.maximum(np.nan_to_num(step, nan=0.0, posinf=0.0), 0.0), ceiling)
        risen = np.where(going, risen, z)
        taken, z = risen - z, risen
        # Convergence is quadratic: the next step would be about taken³/before², and is spared if idle.
        with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
            coming = np.where(np.isfinite(before), taken * (taken / before) ** 2, np.inf)
        going &= ~((taken <= _STEP_TOLERANCE * z) | (coming <= _IDLE * z))
        if not bool(going.any()):
            break
        before = taken
    return z


def two_atom_bounds(x1: FloatArray, x2: FloatArray, rest: FloatArray) -> tuple[FloatArray, FloatArray]:
    """λ(x) between closed forms in x₁, x₂ and the mass ``rest`` of all other entries (each ≤ x₂).

    Lower: the rest spread infinitely thin, ψ ≥ x₂/(λ−x₂) + rest/λ, the larger root of
    Tλ² − (2x₁x₂ + rest(x₁+x₂))λ + x₁x₂rest = 0 with T = x₁+x₂+rest; its discriminant is (2x₁x₂)² +
    (rest(x₁−x₂))², which has no cancellation. Upper: the rest at x₂, ψ ≤ (x₂+rest)/(λ−x₂), so λ ≤
    x₁(2x₂+rest)/T.
    """
    total = x1 + x2 + rest
    twice = 2.0 * x1 * x2
    lower = 0.5 * (twice + rest * (x1 + x2) + np.hypot(twice, rest * (x1 - x2))) / total
    upper = x1 * (2.0 * x2 + rest) / total
    return np.clip(lower, x2, x1), np.clip(upper, x2, x1)


def solve_atoms(x1: FloatArray, locations: FloatArray, masses: FloatArray) -> FloatArray:
    """Root of x₁/(x₁−λ) = Σⱼ massⱼ/(λ − locationⱼ).

    An atom stands for entries of total mass massⱼ and common size locationⱼ; location 0 is a mass spread
    infinitely thin. Sizes need no order but none may exceed x₁; massless atoms are ignored.

    Args:
        x1: (n,) the largest entry.
        locations, masses: (n, m), nonnegative.

    Returns:
        (n,): 0 where no atom has mass or x₁ is 0, x₁ where an atom of that size has mass.
    """
    locations = np.where(masses > 0.0, locations, 0.0)
    mass = masses.sum(axis=-1)
    at = locations.argmax(axis=-1)[:, None]
    top = np.take_along_axis(locations, at, axis=-1)[:, 0]
    top_mass = np.take_along_axis(masses, at, axis=-1)[:, 0]
    live = (mass > 0.0) & (x1 > 0.0)
    tied = live & (top >= x1)
    safe = np.where(live, x1, 1.0)
    # Lower: everything spread thin, or the largest atom alone. Upper: everything at `top`.
    start = np.maximum(safe * mass / (safe + mass), safe * (top_mass + top) / (safe + top_mass))
    start = np.where(live, np.clip(start, top, safe), 1.0)
    upper = np.where(live, np.clip(safe * (mass + top) / (safe + mass), start, safe), 1.0)
    loc = locations / start[:, None]
    wgt = np.where(live[:, None], masses / start[:, None], 0.5)  # dead rows only have to stay finite

    def psi(z: FloatArray) -> tuple[FloatArray, FloatArray]:
        with np.errstate(divide="ignore", invalid="ignore"):
            gap = z[:, None] - loc
            term = np.where(wgt > 0.0, wgt / gap, 0.0)
            return term.sum(axis=-1), np.where(wgt > 0.0, term / gap, 0.0).sum(axis=-1)

    root = start * rise(psi, start / safe, upper / start)
    out: FloatArray = np.where(tied, x1, np.where(live, np.minimum(root, safe), 0.0))
    return out
