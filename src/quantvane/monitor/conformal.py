"""Thresholds that keep a false-alarm promise, from the extremes of trajectories that were fine."""

from __future__ import annotations

import math
from collections.abc import Sequence

from quantvane.errors import DataError

__all__ = ["conformal_rank", "conformal_threshold", "trajectories_needed"]


def conformal_threshold(extremes: Sequence[float], alpha: float, delta: float | None = None) -> float:
    """The k-th smallest extreme: a fresh trajectory exceeds it with probability at most α.

    Without ``delta``: k = ⌈(n+1)(1−α)⌉. The promise is over the calibration and the fresh trajectory together
    (split conformal): P(extreme_{n+1} > τ) ≤ α for exchangeable trajectories, and ≥ α − 1/(n+1) without ties.

    With ``delta``: the smallest k with BetaCDF(α; n+1−k, k) ≥ 1−δ. With probability at least 1−δ over the
    calibration, the rate at which fresh trajectories exceed *this* τ is at most α (for n independent ones the
    exceedance of the k-th smallest is Beta(n+1−k, k)).

    Args:
        extremes: (n,) one number a trajectory: the largest value of the statistic over the horizon.
        alpha: false-alarm rate a trajectory, in (0, 1). delta: in (0, 1), or None.

    Returns:
        τ in the statistic's unit; alarm where a value is larger. Infinite where n is too small for such a promise
        (`trajectories_needed` says how many it takes).

    Raises:
        DataError: α or δ out of range, or NaN among the extremes.

    >>> conformal_threshold(range(1, 100), 0.05)
    95.0
    """
    values = sorted(float(x) for x in extremes)
    if any(math.isnan(x) for x in values):
        raise DataError(
            "an extreme is not a number",
            expected="one value a trajectory",
            got=f"{sum(map(math.isnan, values))} NaN of {len(values)}",
            remedy="leave out trajectories in which nothing was observed, and count them",
        )
    k = conformal_rank(len(values), alpha, delta)
    return math.inf if k is None else values[k - 1]


def conformal_rank(n: int, alpha: float, delta: float | None = None) -> int | None:
    """k of `conformal_threshold`, from 1; None where no k ≤ n keeps the promise."""
    _check(alpha, delta)
    if delta is None:
        k = n + 1 - math.floor((n + 1) * alpha + 1e-9)  # the slack undoes α's own rounding, as in 20 · 0.05
        return k if 1 <= k <= n else None
    if n < trajectories_needed(alpha, delta):
        return None
    from scipy.special import betainc  # here: a proxy that only reads calibrations needs no SciPy

    low, high = 1, n  # BetaCDF(α; n+1−k, k) increases with k
    while low < high:
        middle = (low + high) // 2
        if float(betainc(n + 1 - middle, middle, alpha)) >= 1.0 - delta:
            high = middle
        else:
            low = middle + 1
    return low


def trajectories_needed(alpha: float, delta: float | None = None) -> int:
    """Smallest n with a finite threshold: ⌈1/α⌉ − 1, or with ``delta`` the smallest n with 1 − (1−α)ⁿ ≥ 1−δ.

    Raises:
        DataError: α or δ out of range.
    """
    _check(alpha, delta)
    if delta is None:
        return max(1, math.ceil(1.0 / alpha - 1e-9) - 1)
    n = max(1, math.ceil(math.log(delta) / math.log1p(-alpha)) - 1)
    while -math.expm1(n * math.log1p(-alpha)) < 1.0 - delta:
        n += 1
    return n


def _check(alpha: float, delta: float | None) -> None:
    for name, value in (("alpha", alpha), ("delta", 0.5 if delta is None else delta)):
        if not 0.0 < value < 1.0:
            raise DataError(
                f"{name} must lie between 0 and 1",
                expected="a number in (0, 1)",
                got=repr(value),
                remedy="for example alpha=0.05, delta=0.1",
            )
