"""A long sample's order, gathered in passes over blocks of it: what its quantiles need, not the sample itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantvane.types import FloatArray

__all__ = ["BlockSample", "Ranked"]

_Owners = npt.NDArray[np.int32]
Blocks = Callable[[], Iterable[tuple[_Owners, FloatArray]]]

_SHIFT = np.uint64(47)  # sign, exponent and five bits of the mantissa are left: bins 3% wide
_BINS = 1 << 17
_SHORT = 1 << 16  # values below which all are kept
_REACH = 5.0  # standard errors of a resampled quantile's rank about it that are kept at first
_ICC = 0.05  # correlation within clusters assumed for that; a wrong guess costs another pass


@dataclass(frozen=True, slots=True)
class Ranked:
    """A clustered sample from the largest value down; equal values of a cluster may share an entry.

    Attributes:
        values: (m,) of each entry; NaN where values lie whose order is not known.
        owners: (m,) int32 cluster of each entry, 0 … G−1. counts: (m,) int64 values it stands for.
    """

    values: FloatArray
    owners: _Owners
    counts: npt.NDArray[np.int64]

    @classmethod
    def of(cls, values: FloatArray, owners: npt.NDArray[np.integer]) -> Ranked:
        """All of a sample: (n,) values, finite or ∞, and their clusters."""
        order = np.argsort(values)[::-1]  # the order of equal values changes no quantile
        return cls(values[order], owners[order].astype(np.int32, copy=False), np.ones(len(values), np.int64))

    def sizes(self, groups: int) -> npt.NDArray[np.int64]:
        """(G,) values of each cluster."""
        return np.bincount(self.owners, self.counts, minlength=groups).astype(np.int64)


class BlockSample:
    """A clustered sample that is read block by block, as often as it takes.

    Args:
        blocks: starts a pass over (clusters (b,), values (b,)); the same values each time, finite or ∞.
        groups: number of clusters G.

    Attributes:
        size: number of values n. largest: the largest one, NaN where there is none.

    Memory: O(2¹⁷ + b + G·Q) and what lies near the quantiles asked for, about √n for each; a value that stands in the
    sample more than G times there is kept once a cluster. Each question takes a pass or two.
    """

    def __init__(self, blocks: Blocks, groups: int) -> None:
        self._blocks, self._groups = blocks, groups
        self._bins = np.zeros(_BINS, np.int64)
        self._low, self._high = np.full(_BINS, math.inf), np.full(_BINS, -math.inf)
        for _, values in blocks():
            bins = _bin(values)
            self._bins += np.bincount(bins, minlength=_BINS)
            with np.errstate(invalid="ignore"):  # NaN: whoever reads the blocks refuses them after the last
                np.minimum.at(self._low, bins, values)
                np.maximum.at(self._high, bins, values)
        self.size = int(self._bins.sum())
        self.largest = float(self._high.max()) if self.size else math.nan

    def nth_largest(self, n: int) -> float:
        """The n-th largest value, from 1."""
        ranked = self._near([(self.size - n, self.size - n)])
        return float(ranked.values[np.searchsorted(np.cumsum(ranked.counts), n)])

    def above(self, edge: float) -> tuple[int, float]:
        """(number, sum) of the values above ``edge``."""
        number, total = 0, 0.0
        for _, values in self._blocks():
            some = values[values > edge]
            number += len(some)
            total += float(some.sum())
        return number, total

    def ranked(self, probabilities: Sequence[float], reach: float = 1.0) -> Ranked:
        """The sample with what lies about some quantiles; ``reach`` times as far about them as at first."""
        n = self.size
        if n <= _SHORT:
            return self._near([(0, n - 1)])
        spread = 1 + _ICC * (n / self._groups - 1)
        ranks = []
        for p in probabilities:
            place = int(p * (n - 1))
            margin = int(reach * (_REACH * math.sqrt(n * p * (1 - p) * spread) + spread)) + 1
            ranks.append((max(place - margin, 0), min(place + 1 + margin, n - 1)))
        return self._near(ranks)

    def _near(self, ranks: Sequence[tuple[int, int]]) -> Ranked:
        """The sample with all values of the bins that hold these ranks (first, last; 0 the smallest)."""
        segment_of, segment_values, segment_keys = self._segments(ranks)
        counts = np.zeros((len(segment_values), self._groups), np.int64)
        values: list[FloatArray] = []
        owners: list[_Owners] = []
        for owner, block in self._blocks():
            segment = segment_of[_bin(block)]
            kept = segment < 0
            values.append(block[kept])
            owners.append(owner[kept])
            _count(counts, segment[~kept], owner[~kept])
        which, group = np.nonzero(counts)
        keys = np.concatenate([*values, segment_keys[which]])
        order = np.argsort(keys)[::-1]
        return Ranked(
            np.concatenate([*values, segment_values[which]])[order],
            np.concatenate([*owners, group.astype(np.int32)])[order],
            np.concatenate([np.ones(len(keys) - len(which), np.int64), counts[which, group]])[order],
        )

    def _segments(self, ranks: Sequence[tuple[int, int]]) -> tuple[npt.NDArray[np.int32], FloatArray, FloatArray]:
        """(segment of each bin, −1 where its values are kept one by one; value of each segment, NaN where it has
        several; a number by which segments and kept values sort)."""
        up_to = np.cumsum(self._bins)
        kept = np.zeros(_BINS, bool)
        for first, last in ranks:
            ends = np.searchsorted(up_to, [first, last], side="right")
            kept[ends[0] : ends[1] + 1] = True
        filled = np.flatnonzero(self._bins)
        low, high, kept = self._low[filled], self._high[filled], kept[filled]
        alike = kept & (low == high) & (self._bins[filled] > self._groups)
        # neighbouring bins that are not kept are one segment
        label = 2 * np.cumsum(kept) + alike
        single = kept & ~alike
        labels, segment = np.unique(label[~single], return_inverse=True)
        out = np.full(_BINS, -1, np.int32)
        out[filled[~single]] = segment
        values, keys = np.full(len(labels), np.nan), np.full(len(labels), -math.inf)
        np.maximum.at(keys, segment, high[~single])
        runs = alike[~single]
        values[segment[runs]] = high[alike]
        return out, values, keys


def _bin(values: FloatArray) -> npt.NDArray[np.int64]:
    """Bins in the order of the values: the leading bits of a float, made to sort as whole numbers."""
    bits = (values + 0.0).view(np.uint64)  # + 0.0: one zero
    sign = np.uint64(1 << 63)
    return ((np.where(bits & sign, ~bits, bits | sign)) >> _SHIFT).astype(np.int64)


def _count(counts: npt.NDArray[np.int64], segment: npt.NDArray[np.int32], owner: _Owners) -> None:
    """Add to counts (S, G); a block holds few of the clusters, so only between its first and its last."""
    if not len(owner):
        return
    first, width = int(owner.min()), int(owner.max() - owner.min()) + 1
    flat = segment.astype(np.int64) * width + (owner - first)
    found = np.bincount(flat, minlength=len(counts) * width)
    counts[:, first : first + width] += found.reshape(len(counts), width)
