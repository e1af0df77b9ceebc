"""Thin state around `aggregate`: collect shards, merge, finish."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quantvane.displacement.aggregate import aggregate
from quantvane.displacement.summary import Aggregate
from quantvane.errors import DataError

__all__ = ["DisplacementState"]


@dataclass(frozen=True, slots=True)
class DisplacementState:
    """Token columns gathered so far.

    Merge rule: columns and cluster labels concatenate. It is associative, and `finish` of shards merged in
    order is bit for bit that of the whole; in another order it is the same up to the rounding of sums.

    Attributes:
        shards: (columns, cluster labels) in the order they came.
    """

    shards: tuple[tuple[Mapping[str, npt.NDArray[Any]], npt.NDArray[Any]], ...] = ()

    def update(
        self, columns: Mapping[str, npt.NDArray[Any]], clusters: npt.NDArray[Any]
    ) -> DisplacementState:
        """A new state with one more shard. Raises DataError where its columns are named otherwise."""
        return self.merge(DisplacementState(((columns, clusters),)))

    def merge(self, other: DisplacementState) -> DisplacementState:
        """A new state with the other's shards behind one's own."""
        names = {frozenset(columns) for columns, _ in self.shards + other.shards}
        if len(names) > 1:
            differing = frozenset.union(*names) - frozenset.intersection(*names)
            raise DataError(
                "shards hold different columns",
                expected="the same columns in every shard",
                got=f"only some hold {', '.join(sorted(differing))}",
                remedy="measure all shards with the same version and settings",
            )
        return DisplacementState(self.shards + other.shards)

    def finish(self, **options: Any) -> Aggregate:
        """`aggregate` of everything; ``options`` are its keyword arguments. DataError when empty."""
        if not self.shards:
            return aggregate({}, np.empty(0))
        names = list(self.shards[0][0])
        columns = {name: np.concatenate([shard[name] for shard, _ in self.shards]) for name in names}
        return aggregate(columns, np.concatenate([labels for _, labels in self.shards]), **options)
