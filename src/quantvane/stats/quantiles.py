"""Quantiles of clustered values with cluster-bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import special

from quantvane.errors import DataError
from quantvane.stats._order_kernel import order_replicates
from quantvane.stats.resampling import Resampling, few_note, percentile_interval
from quantvane.types import FloatArray, Interval

__all__ = ["quantile_intervals", "quantile_replicates", "quantile_sorted"]

_FEW_BEYOND = 10  # tokens beyond a quantile below which its interval is too short on that side


def quantile_sorted(ascending: FloatArray, probability: float) -> float:
    """Quantile by linear interpolation at p·(n−1) of sorted values (numpy's default); ∞ is allowed.

    >>> quantile_sorted(np.array([0.0, 1.0, 2.0, 10.0]), 0.75)
    4.0
    """
    place = probability * (len(ascending) - 1)
    floor = int(place)
    low, high = float(ascending[floor]), float(ascending[min(floor + 1, len(ascending) - 1)])
    share = place - floor
    return low if share == 0 or low == high else low + (high - low) * share


def quantile_replicates(
    values: FloatArray,
    owner: npt.NDArray[np.integer],
    probabilities: Sequence[float],
    resampling: Resampling,
) -> FloatArray:
    """(B, Q) quantiles of the resamples, column j for ``probabilities[j]``.

    Args:
        values: (n,) finite or ∞.
        owner: (n,) cluster of each value, 0 … G−1, none empty.
        probabilities: (Q,) in [0, 1].
        resampling: draws; its ``clusters`` is G.

    Cost: one sort, then O(n) per resample in compiled threads; memory O(2¹⁸ + n + G + B·Q).
    """
    return _replicates(*_falling(values, owner), probabilities, resampling)


def _falling(values: FloatArray, owner: npt.NDArray[np.integer]) -> tuple[FloatArray, npt.NDArray[np.int32]]:
    """(values from the largest down, their clusters)."""
    order = np.argsort(values)[::-1]  # the order of equal values changes no quantile
    return values[order], owner[order].astype(np.int32, copy=False)


def _replicates(
    descending: FloatArray,
    owners: npt.NDArray[np.int32],
    probabilities: Sequence[float],
    resampling: Resampling,
) -> FloatArray:
    probs = np.asarray(probabilities, dtype=np.float64)
    if not np.all((probs >= 0) & (probs <= 1)):
        raise DataError(
            "a quantile was asked for that does not exist",
            expected="probabilities in [0, 1]",
            got=str(list(probabilities)),
            remedy="write p99 as 0.99",
        )
    sizes = np.bincount(owners, minlength=resampling.clusters).astype(np.int64)
    if len(sizes) != resampling.clusters or not sizes.all():
        raise DataError(
            "clusters and resamples do not fit together",
            expected=f"every cluster 0 … {resampling.clusters - 1} holds a value",
            got=f"{len(sizes)} clusters, {np.count_nonzero(sizes == 0)} of them empty",
            remedy="number the clusters with np.unique(…, return_inverse=True)",
        )
    falling = np.argsort(-probs, kind="stable")
    found = np.empty((resampling.resamples, len(probs)))
    start = 0
    for block in resampling.counts():
        order_replicates(descending, owners, block, sizes, probs[falling], found[start : start + len(block)])
        start += len(block)
    out = np.empty_like(found)
    out[:, falling] = found
    return out


def quantile_intervals(
    values: FloatArray,
    owner: npt.NDArray[np.integer],
    probabilities: Sequence[float],
    resampling: Resampling,
    level: float = 0.95,
) -> list[Interval]:
    """Quantiles with intervals; arguments as in `quantile_replicates`.

    Where every replicate is positive: exp(ln q ± t_{G−1}·√(G/(G−1))·sd(ln q*)), which holds its level with
    fewer clusters than percentiles do; otherwise (zeros, negative or infinite replicates) the expanded
    percentile interval. A note is added where fewer than 10 values lie beyond the quantile: no resample can
    reach past the sample's own extremes, so that end is too short.
    """
    descending, owners = _falling(values, owner)
    points = [quantile_sorted(descending[::-1], p) for p in probabilities]
    groups = resampling.clusters
    if groups < 2:
        return [percentile_interval(q, values, groups, level) for q in points]
    replicates = _replicates(descending, owners, probabilities, resampling)
    reach = float(special.stdtrit(groups - 1, (1 + level) / 2)) * math.sqrt(groups / (groups - 1))
    out = []
    for point, p, column in zip(points, probabilities, replicates.T, strict=True):
        notes = [few_note(groups)]
        if not math.isfinite(point):
            out.append(Interval(point, reason="the quantile is not finite", level=level))
            continue
        if column.min() == column.max():
            low = high = point
            notes.append("no variation between resamples: an interval of no width")
        elif column.min() > 0 and math.isfinite(column.max()):
            half = reach * float(np.std(np.log(column), ddof=1))
            low, high = point * math.exp(-half), point * math.exp(min(half, 700.0))
        else:
            percentile = percentile_interval(point, column, groups, level)
            low, high = percentile.low, percentile.high
        if min(p, 1 - p) * len(values) < _FEW_BEYOND:
            notes.append(f"fewer than {_FEW_BEYOND} tokens beyond it: the interval is too short on that side")
        if not math.isfinite(high):
            notes.append("the upper end is infinite")
        out.append(Interval(point, low, high, "; ".join(filter(None, notes)), level))
    return out
