"""The record every paired test of two yes/no outcomes starts from: how many flips each way, and in which cluster."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantvane.errors import DataError
from quantvane.stats.resampling import ratio_standard_error
from quantvane.types import FloatArray

__all__ = ["PairCounts", "pair_counts"]


@dataclass(frozen=True, slots=True)
class PairCounts:
    """Flips of n paired items, and their sums over clusters.

    Attributes:
        n: items.
        drops: items right in the reference, wrong in the candidate.
        leapfrogs: the other way round.
        up, down, sizes: (G,) float64: leapfrogs, drops and items of each cluster, in order of the clusters'
            last items; None where every item stands alone.
        ends: (G,) position (from 1) of each cluster's last item; None likewise.
    """

    n: int
    drops: int
    leapfrogs: int
    up: FloatArray | None = None
    down: FloatArray | None = None
    sizes: FloatArray | None = None
    ends: npt.NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if min(self.n, self.drops, self.leapfrogs) < 0 or self.drops + self.leapfrogs > self.n:
            raise DataError(
                "these counts cannot be flips of paired items",
                expected="drops ≥ 0, leapfrogs ≥ 0, drops + leapfrogs ≤ n",
                got=f"n={self.n}, drops={self.drops}, leapfrogs={self.leapfrogs}",
                remedy="count each item once",
            )

    @property
    def flips(self) -> int:
        return self.drops + self.leapfrogs

    @property
    def delta(self) -> float:
        """(leapfrogs − drops)/n; NaN without items."""
        return (self.leapfrogs - self.drops) / self.n if self.n else math.nan

    @property
    def clusters(self) -> int:
        """Independent units: clusters, or items where each stands alone."""
        return self.n if self.sizes is None else len(self.sizes)

    @property
    def robust_error(self) -> float:
        """√(G/(G−1)·Σ(D_g − δ·N_g)²)/n over clusters; NaN below 2 of them."""
        if self.up is None or self.down is None or self.sizes is None:
            if self.n < 2:
                return math.nan
            return math.sqrt((self.flips / self.n - self.delta**2) / (self.n - 1))
        return ratio_standard_error(self.up - self.down, self.sizes)[1]

    @property
    def design_effect(self) -> float:
        """Variance of δ over what independent items would give; 1 where items stand alone, NaN where unknown."""
        if self.sizes is None:
            return 1.0
        plain = (self.flips / self.n - self.delta**2) / max(self.n - 1, 1)
        error = self.robust_error
        return error**2 / plain if plain > 0 and error > 0 else math.nan


def pair_counts(
    ref: npt.NDArray[np.bool_], cand: npt.NDArray[np.bool_], clusters: npt.NDArray[np.generic] | None = None
) -> PairCounts:
    """Count the flips of n paired outcomes.

    Args:
        ref, cand: (n,) bool: was the item right.
        clusters: (n,) labels of items that share a source; None, or all different: items stand alone.

    Raises:
        DataError: shapes differ.
    """
    if ref.ndim != 1 or cand.shape != ref.shape or (clusters is not None and clusters.shape != ref.shape):
        raise DataError(
            "paired outcomes do not fit together",
            expected="two (and clusters, if given, three) arrays of one length",
            got=f"{ref.shape}, {cand.shape}" + ("" if clusters is None else f", {clusters.shape}"),
            remedy="align the items first",
        )
    down, up = ref & ~cand, cand & ~ref
    n, drops, leapfrogs = len(ref), int(down.sum()), int(up.sum())
    if clusters is None or n == 0:
        return PairCounts(n, drops, leapfrogs)
    _, code = np.unique(clusters, return_inverse=True)
    code = code.reshape(-1)
    groups = int(code.max()) + 1
    if groups == n:
        return PairCounts(n, drops, leapfrogs)
    last = np.zeros(groups, dtype=np.int64)
    np.maximum.at(last, code, np.arange(1, n + 1))
    order = np.argsort(last)

    def sums(weights: npt.NDArray[np.bool_] | None) -> FloatArray:
        return np.bincount(code, weights, minlength=groups).astype(np.float64)[order]

    return PairCounts(n, drops, leapfrogs, sums(up), sums(down), sums(None), last[order])
