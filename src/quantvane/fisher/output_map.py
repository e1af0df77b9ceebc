"""The last linear map of a model as the head and hidden spaces see it: z = c·tanh(a(Wh + b)/c), or a(Wh + b)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantvane.errors import DataError
from quantvane.types import FloatArray

__all__ = ["OutputMap", "RowStats", "row_stats"]

_CHUNK_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class OutputMap:
    """Hidden states after the final norm → logits.

    Attributes:
        weight: W (V, d); products are computed in its type. bias: (V,) or None.
        scale: a. softcap: c, or None.

    Raises:
        DataError: W is no matrix, or the bias does not fit.
    """

    weight: npt.NDArray[np.floating]
    bias: npt.NDArray[np.floating] | None = None
    scale: float = 1.0
    softcap: float | None = None

    def __post_init__(self) -> None:
        fits = self.bias is None or self.bias.shape == self.weight.shape[:1]
        if self.weight.ndim != 2 or 0 in self.weight.shape or not fits:
            raise DataError(
                "the output map does not fit together",
                expected="weight (V, d) and bias (V,) or None",
                got=f"{self.weight.shape} and {None if self.bias is None else self.bias.shape}",
            )

    def logits(self, hidden: npt.NDArray[np.floating], start: int = 0, stop: int | None = None) -> FloatArray:
        """(N, d) → (N, stop − start) float64: the logits of some vocabulary entries."""
        weight = self.weight[start:stop]
        out: FloatArray = (hidden.astype(weight.dtype, copy=False) @ weight.T).astype(np.float64)
        if self.bias is not None:
            out += self.bias[start:stop]
        if self.scale != 1.0:
            out *= self.scale
        if self.softcap is not None:
            np.tanh(out / self.softcap, out=out)
            out *= self.softcap
        return np.asarray(out, dtype=np.float64)

    def slope(self, logits: FloatArray) -> FloatArray | float:
        """∂z/∂(Wh + b) at these logits: a, or a(1 − (z/c)²)."""
        return self.scale if self.softcap is None else self.scale * (1.0 - (logits / self.softcap) ** 2)

    def columns(self, rows: int) -> list[tuple[int, int]]:
        """Ranges of vocabulary entries whose logits for ``rows`` positions take at most 64 MiB in float64."""
        step = max(1, _CHUNK_BYTES // (8 * max(rows, 1)))
        size = int(self.weight.shape[0])
        return [(start, min(start + step, size)) for start in range(0, size, step)]

    def check(self, hidden: npt.NDArray[np.floating]) -> None:
        """Refuse hidden states of another width.

        Raises:
            DataError: not (N, d) with N ≥ 1.
        """
        if hidden.ndim != 2 or hidden.shape[1] != self.weight.shape[1] or len(hidden) == 0:
            raise DataError(
                "hidden states do not fit the head",
                expected=f"shape (N, {self.weight.shape[1]}), N ≥ 1",
                got=f"shape {hidden.shape}",
                remedy="pass the states after the final norm, one row a scored position",
            )


@dataclass(frozen=True, slots=True)
class RowStats:
    """What turns a row's logits into probabilities without cancellation: p = exp(z − top − ln(1 + rest)).

    Attributes:
        top: (N,) largest logit. rest: (N,) Σ exp(z − top) over all entries but the first largest.
        best: (N,) int64, its index.
    """

    top: FloatArray
    rest: FloatArray
    best: npt.NDArray[np.int64]

    def logp(self, logits: FloatArray) -> FloatArray:
        """Log-probabilities of some columns' logits (N, v)."""
        out: FloatArray = logits - self.top[:, None] - np.log1p(self.rest)[:, None]
        return out


def row_stats(head: OutputMap, hidden: npt.NDArray[np.floating]) -> RowStats:
    """One pass over the vocabulary in blocks."""
    count = len(hidden)
    top, rest = np.full(count, -np.inf), np.zeros(count)
    best = np.zeros(count, np.int64)
    rows = np.arange(count)
    for start, stop in head.columns(count):
        z = head.logits(hidden, start, stop)
        at = z.argmax(axis=1)
        here = z[rows, at]
        with np.errstate(invalid="ignore"):
            e = np.exp(z - here[:, None])
        e[rows, at] = 0.0
        mine, rises = e.sum(axis=1), here > top
        with np.errstate(invalid="ignore", over="ignore"):
            gap = np.exp(-np.abs(here - top))
        gap = np.where(np.isneginf(top) | np.isneginf(here), 0.0, gap)
        rest = np.where(rises, mine + (1.0 + rest) * gap, rest + (1.0 + mine) * gap)
        best = np.where(rises, start + at, best)
        top = np.where(rises, here, top)
    return RowStats(top, rest, best)
