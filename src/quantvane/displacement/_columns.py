"""Checked token columns and their sums by cluster."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from quantvane.errors import DataError
from quantvane.types import FloatArray, Interval

__all__ = ["Columns", "interval_of", "number_clusters", "position_edges"]


def number_clusters(clusters: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], int]:
    """(owner, G): labels numbered 0 … G−1 in sorted order."""
    labels, owner = np.unique(clusters, return_inverse=True)
    return owner.astype(np.int64), len(labels)


class Columns:
    """Token columns of equal length, as float64, with the cluster of every token.

    Attributes:
        owner: (T,) cluster numbers 0 … G−1. groups: G.
    """

    def __init__(self, columns: Mapping[str, npt.NDArray[Any]], clusters: npt.NDArray[Any]) -> None:
        labels = np.asarray(clusters)
        if labels.ndim != 1 or labels.size == 0:
            raise DataError(
                "there are no tokens to aggregate",
                expected="one cluster label per token, at least one token",
                got=f"clusters of shape {labels.shape}",
                remedy="check that the text is longer than one window",
            )
        self._columns = columns
        self.owner, self.groups = number_clusters(labels)
        self._ones = np.bincount(self.owner, minlength=self.groups).astype(np.float64)

    def get(self, name: str) -> FloatArray | None:
        """The column as (T,) float64, None where it is absent. Raises DataError for another length or NaN."""
        if name not in self._columns:
            return None
        values = np.asarray(self._columns[name], dtype=np.float64)
        if values.shape != self.owner.shape:
            raise DataError(
                f"column '{name}' does not fit the cluster labels",
                expected=f"shape {self.owner.shape}",
                got=f"shape {values.shape}",
                remedy="pass one value and one label per scored token",
            )
        if np.isnan(values).any():
            raise DataError(
                f"column '{name}' holds NaN",
                expected="numbers (infinity is allowed)",
                got=f"NaN at {int(np.count_nonzero(np.isnan(values)))} of {values.size} tokens",
                remedy="measure those tokens again; a NaN is never averaged away",
            )
        return values

    def require(self, name: str) -> FloatArray:
        """As `get`; DataError where the column is absent."""
        values = self.get(name)
        if values is None:
            raise DataError(
                f"column '{name}' is missing",
                expected=f"a column '{name}'",
                got=", ".join(sorted(self._columns)) or "no columns",
                remedy="name the columns as in quantvane.types.TOKEN_FIELDS",
            )
        return values

    def sums(self, values: npt.NDArray[Any] | None, among: npt.NDArray[np.bool_] | None = None) -> FloatArray:
        """(G,) sums of ``values`` (None: counts) over each cluster's tokens, those ``among`` where given."""
        if values is None and among is None:
            return self._ones
        owner = self.owner if among is None else self.owner[among]
        chosen = values if values is None or among is None else values[among]
        return np.bincount(owner, weights=chosen, minlength=self.groups).astype(np.float64)


def interval_of(mean: float, bad: int, tokens: int) -> Interval:
    """A mean that is not finite, with the reason."""
    what = "undefined (∞ − ∞)" if math.isnan(mean) else "infinite"
    return Interval(mean, reason=f"{what}: not finite at {bad} of {tokens} tokens")


def position_edges(positions: npt.NDArray[Any]) -> tuple[float, ...]:
    """Whole-numbered edges of the quarters of the scored positions' range; fewer where it is short."""
    edges = np.linspace(positions.min(), positions.max() + 1, 5).round()
    return tuple(float(x) for x in np.unique(edges))
