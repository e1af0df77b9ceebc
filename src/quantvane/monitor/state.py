"""A stream's state: half-open cells over (ln σ, consecutive KL, entropy), each with a label."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise, product

from quantvane.errors import DataError

__all__ = ["LABELS", "Cell", "StateTable", "fill"]

LABELS = ("NOMINAL", "CONFIDENT", "WATCH", "ALARM", "DEGENERATE", "INVALID")

Cell = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class StateTable:
    """A complete partition of the state space, checked at construction.

    Cell i of a coordinate with cuts c₁ < c₂ < … holds [c_i, c_{i+1}), with c₀ = −∞ and one past the last = +∞: every
    value that is a number lies in exactly one cell, and every cell has exactly one label.

    Attributes:
        sigma: cuts of ln σ. kl: cuts of the consecutive KL, nats. entropy: cuts of the entropy, nats.
        labels: (i, j, k) → label, for every cell.

    Raises:
        DataError: cuts that are not finite and strictly increasing, a cell without a label or a label without a cell.
    """

    sigma: tuple[float, ...]
    kl: tuple[float, ...]
    entropy: tuple[float, ...]
    labels: Mapping[Cell, str]

    def __post_init__(self) -> None:
        for name in ("sigma", "kl", "entropy"):
            cuts = getattr(self, name)
            if not all(math.isfinite(c) for c in cuts) or any(a >= b for a, b in pairwise(cuts)):
                raise DataError(
                    f"the cuts of {name} do not partition the line",
                    expected="finite, strictly increasing",
                    got=repr(cuts),
                    remedy="sort them and drop equal ones",
                )
        wanted = set(product(*(range(len(cuts) + 1) for cuts in (self.sigma, self.kl, self.entropy))))
        unknown = sorted({label for label in self.labels.values() if label not in LABELS or label == "INVALID"})
        if set(self.labels) != wanted or unknown:
            raise DataError(
                "the table of states is not total",
                expected=f"a label for each of {len(wanted)} cells, one of {', '.join(LABELS[:-1])}",
                got=f"{len(wanted - set(self.labels))} cells without, {len(set(self.labels) - wanted)} that do not "
                f"exist, labels unknown: {unknown}",
                remedy="build it with quantvane.monitor.state.fill",
            )

    def label(self, sigma: float, kl: float, entropy: float) -> str:
        """The label of a state; INVALID where a coordinate is NaN, before anything else is looked at."""
        if sigma != sigma or kl != kl or entropy != entropy:
            return "INVALID"
        cell = (bisect_right(self.sigma, sigma), bisect_right(self.kl, kl), bisect_right(self.entropy, entropy))
        return self.labels[cell]


def fill(
    sigma: tuple[float, ...],
    kl: tuple[float, ...],
    entropy: tuple[float, ...],
    rule: Callable[[float, float, float], str],
) -> StateTable:
    """A table whose cells get the label a rule gives at their lower corner (−∞ in the first cells).

    Cuts may come unsorted and repeated. The rule must be constant on each cell: it may compare coordinates with the
    cuts by ``≥`` and ``<``, and with nothing else.
    """
    axes = [tuple(sorted(set(cuts))) for cuts in (sigma, kl, entropy)]
    corners = [(-math.inf, *axis) for axis in axes]
    labels = {
        (i, j, k): rule(corners[0][i], corners[1][j], corners[2][k])
        for i, j, k in product(*(range(len(c)) for c in corners))
    }
    return StateTable(axes[0], axes[1], axes[2], labels)
