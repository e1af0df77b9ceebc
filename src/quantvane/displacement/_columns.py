"""Token columns read in blocks of rows, checked, and summed by cluster: memory for one block, not for a corpus."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from quantvane.errors import DataError
from quantvane.stats.ranked import BlockSample
from quantvane.stats.resampling import Scale
from quantvane.types import FloatArray, Interval

__all__ = ["BlockColumns", "Clusters", "Columns", "Sums", "Term", "column", "interval_of", "position_edges"]

_BLOCK = 1 << 12  # rows held at once

Block = Mapping[str, FloatArray]
Clusters = npt.NDArray[Any] | Sequence[str]


@runtime_checkable
class BlockColumns(Protocol):
    """Columns that are read a block of rows at a time (a file's)."""

    def blocks(self, names: Sequence[str]) -> Iterator[Mapping[str, npt.NDArray[Any]]]:
        """Consecutive blocks of rows of some columns, all columns of a block of one length."""
        ...


@dataclass(frozen=True, slots=True)
class Term:
    """One mean to estimate: that of ``values`` over the tokens ``among`` (all where None).

    ``needs`` names the columns that the two functions read from a block; ``scale`` is the interval's.
    """

    name: str
    scale: Scale
    needs: tuple[str, ...]
    values: Callable[[Block], npt.NDArray[Any]]
    among: Callable[[Block], npt.NDArray[np.bool_]] | None = None


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums of K terms over G clusters.

    Attributes:
        totals: (K, G) of the values; sizes: (K, G) tokens behind them.
        plain: (K,) sums over all tokens, ∞ and NaN (∞ − ∞) included; tokens: (K,) their numbers.
        bad: (K,) tokens whose value is not finite.
    """

    totals: FloatArray
    sizes: FloatArray
    plain: FloatArray
    tokens: npt.NDArray[np.int64]
    bad: npt.NDArray[np.int64]


class Columns:
    """Token columns of equal length, with the cluster of every token.

    Args:
        columns: arrays (T,) by name, or a table that is read in blocks.
        clusters: (T,) labels; or, for such a table, the names of its whole-numbered columns that together name the
            cluster, so that nothing of length T is held.

    Attributes:
        groups: number of clusters G; they are numbered 0 … G−1 in the order of their labels. tokens: T.
    """

    def __init__(self, columns: Mapping[str, npt.NDArray[Any]], clusters: Clusters) -> None:
        self._columns = columns
        self._owner: npt.NDArray[np.int32] | None = None
        self._names: tuple[str, ...] = ()
        if isinstance(clusters, np.ndarray):
            if clusters.ndim != 1 or clusters.size == 0:
                raise _no_tokens(f"clusters of shape {clusters.shape}")
            self._owner, self.groups = _number(clusters)
            self.tokens = len(clusters)
            return
        self._names = tuple(clusters)
        self._known, self.tokens = self._labels()
        self.groups = len(self._known)

    def _labels(self) -> tuple[npt.NDArray[Any], int]:
        """(sorted labels, T) of a table whose columns name the clusters."""
        known, tokens = np.empty(0, np.int64), 0
        for raw in self._raw(self._names):
            labels = self._label(raw)
            known, tokens = np.union1d(known, labels), tokens + len(labels)
        if not tokens:
            raise _no_tokens("a table without rows")
        return known, tokens

    def _label(self, raw: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.int64]:
        label = np.zeros(len(raw[self._names[0]]), np.int64)
        for name in self._names:
            label = label << 32 | raw[name].astype(np.int64)
        return label

    def __contains__(self, name: str) -> bool:
        return name in self._columns

    def blocks(self, names: Sequence[str]) -> Iterator[tuple[npt.NDArray[np.int32], dict[str, FloatArray]]]:
        """(clusters, columns as float64) of consecutive blocks. DataError for a missing column, another length or NaN.
        """
        for name in names:
            if name not in self:
                raise DataError(
                    f"column '{name}' is missing",
                    expected=f"a column '{name}'",
                    got=", ".join(sorted(self._columns)) or "no columns",
                    remedy="name the columns as in quantvane.types.TOKEN_FIELDS",
                )
        start = 0
        nans = dict.fromkeys(names, 0)
        for raw in self._raw((*names, *self._names)):
            block = {name: np.asarray(raw[name], dtype=np.float64) for name in names}
            rows = slice(start, start + len(next(iter(block.values()))))
            start = rows.stop
            if start > self.tokens:
                break
            for name, values in block.items():
                nans[name] += int(np.count_nonzero(np.isnan(values)))
            yield self._owners(raw, rows), block
        if start != self.tokens:
            raise self._misfit(names[0], (start,))
        for name, count in nans.items():
            if count:
                raise DataError(
                    f"column '{name}' holds NaN",
                    expected="numbers (infinity is allowed)",
                    got=f"NaN at {count} of {start} tokens",
                    remedy="measure those tokens again; a NaN is never averaged away",
                )

    def _owners(self, raw: Mapping[str, npt.NDArray[Any]], rows: slice) -> npt.NDArray[np.int32]:
        if self._owner is not None:
            return self._owner[rows]
        return np.searchsorted(self._known, self._label(raw)).astype(np.int32)

    def _raw(self, names: Sequence[str]) -> Iterator[Mapping[str, npt.NDArray[Any]]]:
        if isinstance(self._columns, BlockColumns):
            yield from self._columns.blocks(names)
            return
        whole = {name: np.asarray(self._columns[name]) for name in names}
        for name, values in whole.items():
            if values.shape != (self.tokens,):
                raise self._misfit(name, values.shape)
        for start in range(0, self.tokens, _BLOCK):
            yield {name: values[start : start + _BLOCK] for name, values in whole.items()}

    def _misfit(self, name: str, shape: tuple[int, ...]) -> DataError:
        return DataError(
            f"column '{name}' does not fit the cluster labels",
            expected=f"shape {(self.tokens,)}",
            got=f"shape {shape}",
            remedy="pass one value and one label per scored token",
        )

    def sample(self, name: str) -> BlockSample:
        """One column's order; errors as `blocks`."""
        return BlockSample(lambda: ((owner, block[name]) for owner, block in self.blocks((name,))), self.groups)

    def sums(self, terms: Sequence[Term]) -> Sums:
        """All terms in one pass over the columns they need; errors as `blocks`."""
        shape = len(terms), self.groups
        out = Sums(np.zeros(shape), np.zeros(shape), np.zeros(len(terms)), *np.zeros((2, len(terms)), dtype=np.int64))
        names = tuple(dict.fromkeys(name for term in terms for name in term.needs))
        if not names:
            return out
        with np.errstate(invalid="ignore"):  # ∞ − ∞: counted in ``bad``
            for owner, block in self.blocks(names):
                for k, term in enumerate(terms):
                    _add(out, k, term, block, owner)
        return out


def _no_tokens(got: str) -> DataError:
    return DataError(
        "there are no tokens to aggregate",
        expected="one cluster label per token, at least one token",
        got=got,
        remedy="check that the text is longer than one window",
    )


def _add(out: Sums, k: int, term: Term, block: Block, owner: npt.NDArray[np.int32]) -> None:
    values = term.values(block)
    if term.among is not None:
        among = term.among(block)
        values, owner = values[among], owner[among]
    if not len(owner):
        return
    out.plain[k] += values.sum(dtype=np.float64)
    out.tokens[k] += len(values)
    out.bad[k] += np.count_nonzero(~np.isfinite(values))
    # a block holds few of the clusters: sums over those alone
    first = int(owner.min())
    local = owner - first
    found = np.bincount(local, weights=values)
    out.totals[k, first : first + len(found)] += found
    out.sizes[k, first : first + len(found)] += np.bincount(local)


def _number(labels: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int32], int]:
    """(owner, G): labels numbered 0 … G−1 in sorted order."""
    known = np.unique(labels)
    if labels.dtype == np.int32 and known[0] == 0 and known[-1] == len(known) - 1:
        return labels, len(known)
    owner = np.empty(len(labels), dtype=np.int32)
    for start in range(0, len(labels), _BLOCK):
        rows = slice(start, start + _BLOCK)
        owner[rows] = np.searchsorted(known, labels[rows])
    return owner, len(known)


def column(name: str) -> Callable[[Block], FloatArray]:
    """The function that takes one column out of a block."""
    return lambda block: block[name]


def interval_of(mean: float, bad: int, tokens: int) -> Interval:
    """A mean that is not finite, with the reason."""
    what = "undefined (∞ − ∞)" if math.isnan(mean) else "infinite"
    return Interval(mean, reason=f"{what}: not finite at {bad} of {tokens} tokens")


def position_edges(table: Columns) -> tuple[float, ...]:
    """Whole-numbered edges of the quarters of the scored positions' range; fewer where it is short."""
    ends = [(block["position"].min(), block["position"].max()) for _, block in table.blocks(("position",)) if
            block["position"].size]  # fmt: skip
    edges = np.linspace(min(low for low, _ in ends), max(high for _, high in ends) + 1, 5).round()
    return tuple(float(x) for x in np.unique(edges))
