"""Records of greedy generation: what is wanted, what was answered, what it cost; and the ties that rounding decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from quantvane.engines.decoding import Tokens
from quantvane.errors import EngineError
from quantvane.types import FloatArray

__all__ = ["NO_DRAFT", "Answer", "Effort", "Request", "ambiguous", "shape_noise", "top_two"]

NO_DRAFT: Tokens = np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class Request:
    """One answer that is wanted.

    Attributes:
        prompt: (n,) int32, n ≥ 1. max_tokens: cap of the answer.
        stops: the answer ends before the first of these byte strings.
        draft: the answer's tokens as another model gave them; empty for plain generation.
        seconds: time allowed, from the first feed on; inf for none.
    """

    prompt: Tokens
    max_tokens: int
    stops: tuple[bytes, ...] = ()
    draft: Tokens = field(default_factory=lambda: NO_DRAFT)
    seconds: float = float("inf")


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model answered.

    Attributes:
        tokens: (n,) int32 as emitted, with the token that ended the answer. margins: (n,) difference of the two
            largest logits at each.
        text: the answer up to its stop string or end token.
        finish: "stop", "end", "length" (cap), "timeout", or "error" with a note.
        decodes: decode calls the answer took part in. agreed: emitted tokens that were taken from the draft.
        divergence: index of the first token that is not the draft's; None where there is none (or no draft).
    """

    tokens: Tokens
    margins: FloatArray
    text: str
    finish: str
    decodes: int = 0
    agreed: int = 0
    divergence: int | None = None
    note: str = ""


@dataclass(slots=True)
class Effort:
    """What a run of the scheduler cost.

    Attributes:
        calls: decode calls. steps: those of them that fed no prompt. tokens: fed. ahead: those of them that were fed
            ahead, out of drafts; vain: those of these that were wrong, or behind a wrong one.
    """

    calls: int = 0
    steps: int = 0
    tokens: int = 0
    ahead: int = 0
    vain: int = 0

    def __add__(self, other: Effort) -> Effort:
        return Effort(
            self.calls + other.calls,
            self.steps + other.steps,
            self.tokens + other.tokens,
            self.ahead + other.ahead,
            self.vain + other.vain,
        )


def top_two(logits: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """Argmax (the lowest id of several) and the difference of the two largest logits, each (T,), of (T, V).

    The array is changed and restored.

    Raises:
        EngineError: NaN among the logits.
    """
    rows = np.arange(len(logits))
    best = logits.argmax(axis=1)
    first = logits[rows, best]
    logits[rows, best] = -np.inf
    second = logits.max(axis=1)
    logits[rows, best] = first
    margin = first.astype(np.float64) - second
    if np.isnan(first).any() or np.isnan(second).any():
        raise EngineError(
            "logits are NaN",
            expected="finite logits",
            got=f"NaN in {int((np.isnan(first) | np.isnan(second)).sum())} of {len(logits)} rows",
            remedy="the model file may be damaged, or the settings overflow (flash_attn=off, cache_type_k=f32)",
        )
    return best, margin


def shape_noise(plain: Sequence[Answer], batched: Sequence[Answer]) -> float:
    """By how much the margin of the two largest logits changed with the shape of the batches.

    Compared up to the first token that differs, and there the margins add up, since the two tokens changed places.
    This is the largest change among these answers: a measurement, no bound.

    Args:
        plain, batched: the same requests answered by one model in two ways.
    """
    worst = 0.0
    for a, b in zip(plain, batched, strict=True):
        n = min(len(a.tokens), len(b.tokens))
        differs = np.flatnonzero(a.tokens[:n] != b.tokens[:n])
        same = int(differs[0]) if len(differs) else n
        if same:
            worst = max(worst, float(np.abs(a.margins[:same] - b.margins[:same]).max()))
        if len(differs):
            worst = max(worst, float(a.margins[same] + b.margins[same]))
    return worst


def ambiguous(answer: Answer, noise: float) -> list[int]:
    """Positions of an answer whose token another shape of batch could have decided otherwise: margin ≤ noise."""
    return [int(at) for at in np.flatnonzero(answer.margins <= noise)] if noise > 0 else []
