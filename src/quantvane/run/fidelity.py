"""How well recorded rows stand for the engine's own logits, in numbers, with limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quantvane.engines.base import Engine
from quantvane.engines.output_head import OutputHead, output_heads
from quantvane.errors import CapabilityError
from quantvane.run.lockstep import Rows
from quantvane.types import FloatArray, Window

__all__ = ["MAX_KLD", "MEAN_KLD", "Fidelity", "Unfaithful", "prove_head", "row_kld"]

MEAN_KLD = 1e-9
MAX_KLD = 1e-8
_FEW = 32


class Unfaithful(Exception):  # noqa: N818 - a finding that is acted on, never an error that is shown
    """Hidden states cannot stand for this engine's logits; says why."""


def row_kld(reference: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> FloatArray:
    """KL divergence per row (T,) of two (T, V) arrays of logits, in nats, accurate far below rounding.

    Σ p·(δ + e^(−δ) − 1) with δ = ln p − ln q: the same as Σ p·δ for distributions that sum to 1, without its
    cancellation, and never negative.
    """
    p, q = (x - _logsumexp(x) for x in (reference.astype(np.float64), other.astype(np.float64)))
    with np.errstate(invalid="ignore", over="ignore"):
        delta = np.where(np.isneginf(p), 0.0, p - q)
        terms = np.exp(p) * (delta + np.expm1(-delta))
    return np.asarray(terms.sum(axis=1))


def _logsumexp(x: FloatArray) -> FloatArray:
    high = x.max(axis=1, keepdims=True)
    return np.asarray(high + np.log(np.exp(x - high).sum(axis=1, keepdims=True)))


@dataclass(slots=True)
class Fidelity:
    """Figures of the rows checked so far.

    Attributes:
        rows: number of rows checked. kld_mean, kld_max: KL divergence of recorded from own logits, nats.
        relative_error: largest difference of a logit, divided by the largest logit.
    """

    rows: int = 0
    kld_mean: float = 0.0
    kld_max: float = 0.0
    relative_error: float = 0.0

    def add(
        self, recorded: npt.NDArray[np.float32], own: npt.NDArray[np.float32], limits: bool = True
    ) -> None:
        """Check rows.

        Raises:
            Unfaithful: ``limits`` and a mean KLD from `MEAN_KLD` on, or a row from `MAX_KLD` on.
        """
        few = max(1, (32 << 20) // (8 * own.shape[1]))
        klds = np.concatenate([row_kld(own[i : i + few], recorded[i : i + few]) for i in range(0, len(own), few)])
        if limits:
            finite = np.isfinite(own)
            with np.errstate(invalid="ignore"):
                difference = np.abs(np.where(finite, recorded - own, 0.0)).max()
            size = float(np.abs(own[finite]).max(initial=0.0)) or 1.0
            self.relative_error = max(self.relative_error, float(difference) / size)
        total = self.kld_mean * self.rows + float(klds.sum())
        self.rows += len(klds)
        self.kld_mean = total / self.rows
        self.kld_max = max(self.kld_max, float(klds.max()))
        # Written so that NaN fails.
        if limits and not (self.kld_mean < MEAN_KLD and float(klds.max()) < MAX_KLD):
            raise Unfaithful(
                f"W·h differs from the engine's own logits: mean KLD {self.kld_mean:.2g} (limit {MEAN_KLD:g}), "
                f"largest {self.kld_max:.2g} (limit {MAX_KLD:g}), relative error {self.relative_error:.2g} "
                f"on {self.rows} rows"
            )

    def to_dict(self) -> dict[str, Any]:
        """The figures and a sentence."""
        return {
            **asdict(self),
            "how": f"{self.rows} rows against the engine's own logits: mean KLD {self.kld_mean:.2g}, "
            f"largest {self.kld_max:.2g}, relative error {self.relative_error:.2g}",
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Fidelity:
        return cls(data["rows"], data["kld_mean"], data["kld_max"], data["relative_error"])


def prove_head(engine: Engine, unit: Sequence[Window]) -> tuple[OutputHead, Fidelity]:
    """The head that reproduces the engine's logits on every row of a unit, and how well.

    The logits come from the pass a live comparison would use, the hidden states from the recording's.

    Raises:
        Unfaithful: there is none, or the engine gives no hidden states.
    """
    if "hidden" not in engine.info.capabilities:
        raise Unfaithful(f"engine '{engine.info.engine}' gives no hidden states")
    try:
        heads = output_heads(engine)
    except CapabilityError as problem:
        raise Unfaithful(f"{problem.message}: {problem.got}") from None
    reasons = []
    for head in heads:
        try:
            return head, _checked(engine, head, unit)
        except Unfaithful as problem:
            reasons.append(f"h rounded to {head.rounding}: {problem}")
    raise Unfaithful("; ".join(reasons) or "the engine's head is of a kind that is not known here")


def _checked(engine: Any, head: OutputHead, unit: Sequence[Window]) -> Fidelity:
    fidelity = Fidelity()
    own = Rows(engine.logits(unit), "the reference")
    states = Rows(engine.hidden(unit), "the reference's hidden states")
    left = int(sum(np.count_nonzero(w.scored) for w in unit))
    while left:
        # The first few decide about most heads that do not fit.
        most = _FEW if fidelity.rows == 0 else left
        rows = min(own.ready(), states.ready(), left, most)
        fidelity.add(head.logits(head.round(states.take(rows))), own.take(rows))
        left -= rows
    return fidelity
