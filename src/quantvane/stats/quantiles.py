"""Quantiles of clustered values with cluster-bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import special

from quantvane.errors import DataError
from quantvane.stats._order_kernel import order_replicates
from quantvane.stats.ranked import BlockSample, Ranked
from quantvane.stats.resampling import Resampling, few_note, percentile_interval
from quantvane.types import FloatArray, Interval

__all__ = ["block_quantiles", "quantile_intervals", "quantile_replicates", "quantile_sorted"]

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
    return _replicates(Ranked.of(values, owner), probabilities, resampling)


def _replicates(ranked: Ranked, probabilities: Sequence[float], resampling: Resampling) -> FloatArray:
    probs = np.asarray(probabilities, dtype=np.float64)
    if not np.all((probs >= 0) & (probs <= 1)):
        raise DataError(
            "a quantile was asked for that does not exist",
            expected="probabilities in [0, 1]",
            got=str(list(probabilities)),
            remedy="write p99 as 0.99",
        )
    sizes = ranked.sizes(resampling.clusters)
    if len(sizes) != resampling.clusters or not sizes.all():
        raise DataError(
            "clusters and resamples do not fit together",
            expected=f"every cluster 0 … {resampling.clusters - 1} holds a value",
            got=f"{len(sizes)} clusters, {np.count_nonzero(sizes == 0)} of them empty",
            remedy="number the clusters with np.unique(…, return_inverse=True)",
        )
    return np.concatenate([_quantiles(ranked, block, sizes, probs) for block in resampling.counts()])


def _quantiles(
    ranked: Ranked, counts: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64], probs: FloatArray
) -> FloatArray:
    """(b, Q) quantiles of b resamples, counts (b, G)."""
    falling = np.argsort(-probs, kind="stable")
    found = np.empty((len(counts), len(probs)))
    order_replicates(ranked.values, ranked.owners, ranked.counts, counts, sizes, probs[falling], found)
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
    ranked = Ranked.of(values, owner)
    replicates = _replicates(ranked, probabilities, resampling) if resampling.clusters > 1 else None
    points = _points(ranked, probabilities, resampling.clusters)
    return _intervals(points, replicates, probabilities, resampling.clusters, len(values), level)


def block_quantiles(
    sample: BlockSample, probabilities: Sequence[float], resampling: Resampling, level: float = 0.95
) -> list[Interval]:
    """`quantile_intervals` of a sample that is read in blocks: the same numbers, in the memory that `BlockSample` says.
    """
    reach = 1.0
    while True:
        ranked = sample.ranked(probabilities, reach)
        points = _points(ranked, probabilities, resampling.clusters)
        replicates = _replicates(ranked, probabilities, resampling) if resampling.clusters > 1 else None
        if replicates is None or not np.isnan(replicates).any():
            return _intervals(points, replicates, probabilities, resampling.clusters, sample.size, level)
        reach *= 4  # some resample's quantile lies beyond what was kept


def _points(ranked: Ranked, probabilities: Sequence[float], groups: int) -> list[float]:
    """The sample's own quantiles: those of the resample that draws every cluster once."""
    once = np.ones((1, groups), np.int64)
    probs = np.asarray(probabilities, dtype=np.float64)
    return [float(q) for q in _quantiles(ranked, once, ranked.sizes(groups), probs)[0]]


def _intervals(
    points: Sequence[float], replicates: FloatArray | None, probabilities: Sequence[float], groups: int, size: int,
    level: float,
) -> list[Interval]:
    if replicates is None:
        return [percentile_interval(q, np.empty(0), groups, level) for q in points]
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
        if min(p, 1 - p) * size < _FEW_BEYOND:
            notes.append(f"fewer than {_FEW_BEYOND} tokens beyond it: the interval is too short on that side")
        if not math.isfinite(high):
            notes.append("the upper end is infinite")
        out.append(Interval(point, low, high, "; ".join(filter(None, notes)), level))
    return out
