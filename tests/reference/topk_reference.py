"""Slow, obvious twins of the top-k KL bounds, one position at a time, for small vocabularies."""

from __future__ import annotations

import itertools
import math

import numpy as np
from scipy.optimize import minimize


def kl(p, q):
    """Σ p ln(p/q) term by term; inf where p > 0 = q."""
    total = 0.0
    for a, b in zip(p, q, strict=True):
        if a > 0:
            if b <= 0:
                return math.inf
            total += a * math.log(a / b)
    return total


def _fill(size, ids, values):
    full = np.full(size, np.nan)
    full[np.asarray(ids)] = values
    return full


def infimum(p_top, p_ids, q_top, q_ids, size):
    """Minimum over every unlisted entry separately (nothing lumped), by SLSQP from several starts."""
    p, q = _fill(size, p_ids, p_top), _fill(size, q_ids, q_top)
    free_p, free_q = np.flatnonzero(np.isnan(p)), np.flatnonzero(np.isnan(q))
    cap_p, cap_q = min(p_top), min(q_top)
    rest_p, rest_q = max(1 - sum(p_top), 0.0), max(1 - sum(q_top), 0.0)
    n = len(free_p)
    tiny = 1e-12

    def both(x):
        a, b = p.copy(), q.copy()
        a[free_p], b[free_q] = x[:n], x[n:]
        return np.maximum(a, tiny), np.maximum(b, tiny)

    def value(x):
        a, b = both(x)
        return float(np.sum(a * np.log(a / b)))

    def slope(x):
        a, b = both(x)
        return np.concatenate([(np.log(a / b) + 1)[free_p], (-a / b)[free_q]])

    on_p = np.r_[np.ones(n), np.zeros(len(free_q))]
    on_q = 1.0 - on_p
    constraints = []
    if n:
        constraints.append({"type": "eq", "fun": lambda x: x @ on_p - rest_p, "jac": lambda x: on_p})
    if len(free_q):
        constraints.append({"type": "eq", "fun": lambda x: x @ on_q - rest_q, "jac": lambda x: on_q})
    bounds = [(0.0, cap_p)] * n + [(0.0, cap_q)] * len(free_q)
    if not bounds:
        return value(np.zeros(0))
    rng = np.random.default_rng(0)
    best = math.inf
    for attempt in range(4):
        start = np.r_[np.full(n, rest_p / max(n, 1)), np.full(len(free_q), rest_q / max(len(free_q), 1))]
        if attempt:
            start = start * rng.uniform(0.3, 1.0, size=start.shape)
        found = minimize(
            value,
            start,
            jac=slope,
            method="SLSQP",
            bounds=bounds,
            constraints=constraints,
            options={"ftol": 1e-15, "maxiter": 1000},
        )
        off_p = abs(found.x @ on_p - rest_p) if n else 0.0
        off_q = abs(found.x @ on_q - rest_q) if len(free_q) else 0.0
        if max(off_p, off_q) < 1e-9:
            best = min(best, found.fun)
    return best


def _vertices(count, cap, mass):
    """Every point of {0 ≤ x ≤ cap, Σx = mass} with at most one coordinate strictly between its ends."""
    if count == 0:
        yield ()
        return
    for odd in range(count):
        for pattern in itertools.product((0.0, cap), repeat=count - 1):
            left = mass - sum(pattern)
            if -1e-12 <= left <= cap + 1e-12:
                x = list(pattern)
                x.insert(odd, min(max(left, 0.0), cap) if left > 1e-12 else 0.0)
                yield tuple(x)


def supremum(p_top, p_ids, q_top, q_ids, size):
    """Maximum over all pairs of vertices: KL is convex, so no other point can be larger."""
    p, q = _fill(size, p_ids, p_top), _fill(size, q_ids, q_top)
    free_p, free_q = np.flatnonzero(np.isnan(p)), np.flatnonzero(np.isnan(q))
    best = 0.0
    for x in _vertices(len(free_p), min(p_top), max(1 - sum(p_top), 0.0)):
        a = p.copy()
        a[free_p] = x
        for y in _vertices(len(free_q), min(q_top), max(1 - sum(q_top), 0.0)):
            b = q.copy()
            b[free_q] = y
            best = max(best, kl(a, b))
    return best
