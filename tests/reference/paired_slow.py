"""Slow, obvious twins of the paired statistics: float64, loops, no closed forms."""

from __future__ import annotations

import itertools
import math

import numpy as np
from scipy import optimize


def score_z(drops: int, leapfrogs: int, n: int, delta: float) -> float:
    """Score statistic with the nuisance parameter q = P(drop) found by maximising the likelihood directly."""
    stay = n - drops - leapfrogs

    def minus_log_likelihood(q: float) -> float:
        parts = ((leapfrogs, q + delta), (drops, q), (stay, 1 - 2 * q - delta))
        return -sum(k * math.log(max(p, 1e-300)) for k, p in parts if k)

    low, high = max(0.0, -delta), (1 - delta) / 2
    q = optimize.minimize_scalar(minus_log_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    return (leapfrogs - drops - n * delta) / math.sqrt(n * (2 * q + delta - delta**2))


def sign_change_p(totals: list[int]) -> float:
    """Every assignment of signs, one by one."""
    observed = abs(sum(totals))
    sums = [abs(sum(s * d for s, d in zip(signs, totals, strict=True))) for signs in
            itertools.product((-1, 1), repeat=len(totals))]  # fmt: skip
    return float(np.mean([s >= observed for s in sums]))


def capital(differences: list[float], sizes: list[float], delta: float, sign: int) -> list[float]:
    """Each bettor's money, item by item."""
    bets = [min(2.0**-j, 0.99 / (1 + sign * delta)) for j in range(6)]
    money = [1.0] * 6
    out = []
    for d, size in zip(differences, sizes, strict=True):
        money = [m * (1 + bet * sign * (d - delta * size)) for m, bet in zip(money, bets, strict=True)]
        out.append(sum(money) / 6)
    return out
