"""Kernel: order statistics of cluster-resampled data, without ever building a resample.

The values are sorted once. A resample only gives each of them a weight (how often its cluster was drawn, times the
values that an entry stands for), so an order statistic is found by one walk over cumulative weights: O(n) per resample,
O(1) memory per thread.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

__all__ = ["order_replicates"]


@numba.njit(cache=True, parallel=True)  # type: ignore[untyped-decorator, unused-ignore]
def order_replicates(
    descending: npt.NDArray[np.float64],
    owner: npt.NDArray[np.int32],
    stands: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    falling: npt.NDArray[np.float64],
    out: npt.NDArray[np.float64],
) -> None:
    """Quantiles, by linear interpolation at p·(W−1), of every resample.

    Args:
        descending: (n,) values, largest first; a quantile that falls on a NaN is NaN.
        owner: (n,) cluster of each value.
        stands: (n,) how many values of that cluster an entry stands for.
        counts: (B, G) how often each cluster was drawn.
        sizes: (G,) values per cluster.
        falling: (Q,) probabilities, largest first.
        out: (B, Q), written; column j belongs to ``falling[j]``.
    """
    draws, groups = counts.shape
    for b in numba.prange(draws):
        total = 0
        for g in range(groups):
            total += counts[b, g] * sizes[g]
        j = 0
        place = falling[0] * (total - 1)
        from_top = total - 1 - int(place)  # of the lower neighbour, 0 being the largest value
        seen = 0  # weight of the values passed so far
        above = 0.0  # the value drawn last, next larger to the current one
        for i in range(descending.size):
            value = descending[i]
            weight = counts[b, owner[i]] * stands[i]
            after = seen + weight
            while after > from_top:
                share = place - int(place)
                upper = value if from_top > seen else above
                # equal neighbours apart: ∞ − ∞ must not become NaN
                if share == 0.0 or upper == value:
                    out[b, j] = value
                else:
                    out[b, j] = value + (upper - value) * share
                j += 1
                if j == falling.size:
                    break
                place = falling[j] * (total - 1)
                from_top = total - 1 - int(place)
            if j == falling.size:
                break
            seen = after
            above = value if weight > 0 else above
