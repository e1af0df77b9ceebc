"""The infimum of KL(p‖q) over all tails that fit two top-k lists, from below.

Unknown are p on the ids of the candidate's list alone (C), q on those of the reference's list alone (R), and
both on the m ids of neither list. KL is jointly convex and the m ids are interchangeable, so at the optimum
they share their masses a and b equally:

    minimise  Σ_C pᵢ ln(pᵢ/qᵢ) + Σ_R pᵢ ln(pᵢ/qᵢ) + a ln(a/b)   (+ the ids in both lists, which are known)
    over  0 ≤ pᵢ ≤ P, 0 ≤ a ≤ mP, Σ_C pᵢ + a = r_p;   0 ≤ qᵢ ≤ Q, 0 ≤ b ≤ mQ, Σ_R qᵢ + b = r_q.

For given a both sides are water-filling, pᵢ = min(P, θqᵢ) and (qᵢ, b) = min(cap, (pᵢ, a)/μ); a itself is
found by bisection, since a/b rises and θ falls with a. The pair (θ, μ) then goes into the Lagrange dual, a
closed form whose value is a lower bound for **any** θ, μ. Rounded data enter there too: each term is convex
in the listed value, so it lies above its tangent, and moving p̃ by a factor within e^{±η} costs at most
|∂/∂p|·p̃(e^η − 1).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from quantvane.displacement.topk_pair import MASS_EPS, TopKPair
from quantvane.types import FloatArray

__all__ = ["infimum"]

_BISECTIONS = 60
_SMALLEST, _LARGEST = 1e-290, 1e290  # θ is kept where θq and ln θ are finite


def infimum(pair: TopKPair) -> FloatArray:
    """(T,) lower bound of KL in nats, ≥ 0; +inf only where a listed zero of q meets mass of p."""
    problem = _Problem(pair)
    mass, level = problem.solve()
    side = problem.q_level(mass)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = mass / problem.q_mass(mass, side)
        mu = np.where(np.isfinite(side), 1.0 / np.where(side > 0.0, side, 1.0), 0.0)
    mu = np.where(problem.q_free, mu, 1.0)
    ratio = np.where(np.isfinite(ratio) & (ratio > 0.0), ratio, level)
    # At the exact solution one of these is the dual optimum; which, depends on the caps that bind.
    choices = [(level, mu), (ratio, mu), (np.where(mu > 0.0, mu, level), mu), (level, np.maximum(mu, level))]
    best = np.zeros(len(mass))
    for theta, price in choices:
        value = problem.dual(np.clip(theta, _SMALLEST, _LARGEST), price)
        best = np.maximum(best, np.nan_to_num(value, nan=0.0, posinf=0.0, neginf=0.0))
    return np.where(problem.infinite(), np.inf, best)


class _Problem:
    """The arrays of the problem above, with caps and masses widened by the rounding."""

    def __init__(self, pair: TopKPair) -> None:
        eta = np.maximum(pair.rounding, MASS_EPS)
        self.pair = pair
        self.slack = np.expm1(eta)
        self.P, self.Q = pair.p_cap * np.exp(eta), pair.q_cap * np.exp(eta)
        self.m = pair.neither
        self.ref_only = ~pair.both
        self.p_r = np.where(self.ref_only, pair.p, 0.0)  # p on R
        self.q_c = np.where(pair.only_q, pair.q, 0.0)  # q on C
        self.r_p = np.maximum(pair.p_rest, 0.0) + self.slack
        self.r_q = np.maximum(pair.q_rest, 0.0) + self.slack
        self.caps_c = np.where(self.q_c > 0.0, self.P[:, None], 0.0)
        self.caps_r = np.column_stack([np.where(self.ref_only, self.Q[:, None], 0.0), self.m * self.Q])
        self.q_free = self.ref_only.any(axis=-1) | (self.m > 0)

    def solve(self) -> tuple[FloatArray, FloatArray]:
        """The mass a (T,) of p on the ids of neither list, and θ of the rest of p."""
        room = self.caps_c.sum(axis=-1)
        high = np.minimum(self.m * self.P, self.r_p)
        low = np.minimum(np.maximum(self.r_p - room, 0.0), high)
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                ratio = middle / self.q_mass(middle, self.q_level(middle))
            above = ratio >= self.p_level(middle)
            low, high = np.where(above, low, middle), np.where(above, middle, high)
        mass = 0.5 * (low + high)
        return mass, self.p_level(mass)

    def p_level(self, mass: FloatArray) -> FloatArray:
        """θ with Σ_C min(P, θq) = r_p − a; 1 where C holds no q."""
        level = _fill(self.q_c, self.caps_c, np.maximum(self.r_p - mass, 0.0))
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            full = np.where(self.caps_c > 0.0, self.caps_c / self.q_c, 0.0).max(axis=-1, initial=0.0)
        empty = full <= 0.0
        return np.where(empty, 1.0, np.where(np.isfinite(level), level, full))

    def q_level(self, mass: FloatArray) -> FloatArray:
        """1/μ with Σ_R min(Q, p/μ) + min(mQ, a/μ) = r_q; +inf where q's mass is more than these can use."""
        return _fill(np.column_stack([self.p_r, mass]), self.caps_r, self.r_q)

    def q_mass(self, mass: FloatArray, level: FloatArray) -> FloatArray:
        """b at that level; all that is left over where the level is infinite."""
        with np.errstate(invalid="ignore"):
            return np.where(np.isfinite(level), np.minimum(self.m * self.Q, level * mass), self.m * self.Q)

    def dual(self, theta: FloatArray, mu: FloatArray) -> FloatArray:
        """Value of the Lagrange dual at multipliers −1 − ln θ and μ, less the allowance for rounding."""
        pair, log_theta = self.pair, np.log(theta)
        t, u = log_theta[:, None], mu[:, None]
        cap_p, cap_q = self.P[:, None], self.Q[:, None]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            # ids in both lists
            log_ratio = np.where(np.isfinite(pair.log_ratio), pair.log_ratio, 0.0)
            known = (pair.p * log_ratio).sum(axis=-1)
            change = pair.p * np.abs(log_ratio - t) + np.abs(u * pair.q_at_p - pair.p)
            drift = np.where(pair.both, change, 0.0)
            # R: q = min(Q, p/μ)
            p = self.p_r
            inside = p < u * cap_q
            q_hat = np.where(inside, p / u, cap_q)
            log_r = np.where(p > 0.0, np.where(inside, np.log(u), np.log(p) - np.log(cap_q)), 0.0)
            cost_r = np.where(p > 0.0, p * log_r + u * q_hat, 0.0)
            drift = drift + np.where(p > 0.0, p * np.abs(log_r - t), 0.0)
            # C: p = min(P, θq)
            q = self.q_c
            inside = theta[:, None] * q < cap_p
            p_hat = np.minimum(theta[:, None] * q, cap_p)
            capped = p_hat * (np.log(cap_p) - np.log(q) - t - 1.0)
            cost_c = np.where(p_hat > 0.0, np.where(inside, -p_hat, capped), 0.0)
            drift_c = np.where(pair.only_q, np.abs(u * q - p_hat), 0.0)
            # neither: the least of a ln(a/b) − (1 + ln θ) a + μ b over the box 0 ≤ a ≤ mP, 0 ≤ b ≤ mQ
            room_p, room_q = self.m * self.P, self.m * self.Q
            b = np.where(mu > 0.0, np.minimum(room_q, room_p / np.where(mu > 0.0, mu, 1.0)), room_q)
            a = np.minimum(room_p, theta * b)
            corner = np.where(a > 0.0, a * (np.log(a) - np.log(b) - log_theta - 1.0), 0.0) + mu * b
            neither = np.where(mu >= theta, 0.0, np.minimum(corner, 0.0))
            total = known + cost_r.sum(axis=-1) + cost_c.sum(axis=-1) + neither
            total = total + (log_theta + 1.0) * pair.p_rest - mu * pair.q_rest
            out: FloatArray = total - self.slack * (drift.sum(axis=-1) + drift_c.sum(axis=-1))
        return out

    def infinite(self) -> npt.NDArray[np.bool_]:
        """Where every pair that fits has mass of p on a zero of q."""
        pair = self.pair
        both = (pair.both & (pair.p > 0.0) & np.isposinf(pair.log_ratio)).any(axis=-1)
        no_q = (self.Q <= 0.0) & (self.p_r > 0.0).any(axis=-1)
        room = self.caps_c.sum(axis=-1) + np.where(self.Q > 0.0, self.m * self.P, 0.0)
        out: npt.NDArray[np.bool_] = both | no_q | (pair.p_rest - self.slack - MASS_EPS > room * (1 + 1e-9))
        return out


def _fill(weights: FloatArray, caps: FloatArray, total: FloatArray) -> FloatArray:
    """Level φ (T,) with Σⱼ min(capⱼ, φ weightⱼ) = total; +inf where the weights' caps do not reach it.

    Args:
        weights, caps: (T, n), nonnegative. total: (T,).
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        used = weights > 0.0
        limit = np.where(used, caps / weights, np.inf)
        order = np.argsort(limit, axis=-1)
        limit = np.take_along_axis(limit, order, axis=-1)
        cap = np.take_along_axis(np.where(used, caps, 0.0), order, axis=-1)
        weight = np.take_along_axis(weights, order, axis=-1)
        below = np.cumsum(cap, axis=-1) - cap
        ahead = np.cumsum(weight[:, ::-1], axis=-1)[:, ::-1]  # this weight and those that fill later
        reached = np.where(np.isfinite(limit), below + limit * ahead, np.inf) >= total[:, None]
        reached &= np.isfinite(limit)
        if weights.shape[1] == 0:
            return np.full(len(weights), np.inf)
        first = reached.argmax(axis=-1)[:, None]
        missing = total - np.take_along_axis(below, first, -1)[:, 0]
        level = missing / np.take_along_axis(ahead, first, -1)[:, 0]
    out: FloatArray = np.where(reached.any(axis=-1), np.maximum(level, 0.0), np.inf)
    return out
