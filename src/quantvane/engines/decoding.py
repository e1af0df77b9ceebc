"""Decoders: many sequences at once, fed token by token or many tokens together, with a cache that can be cut.

This is the capability ``generate``. Generation, replay and scoring (`quantvane.tasks.generation`,
`quantvane.tasks.scoring`) are written against `Decoder` alone. llama.cpp and transformers bring decoders of their
own with a KV cache; every other engine that gives logits gets `RecomputingDecoder`, which computes a sequence again
whenever it grows: right, and slow on long answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from quantvane.engines.base import Engine, require
from quantvane.errors import EngineError
from quantvane.types import Window

__all__ = ["Decoder", "Feed", "RecomputingDecoder", "Tokens", "open_decoder"]

Tokens = npt.NDArray[np.int32]
Logits = npt.NDArray[np.float32]

CELLS = 32768  # tokens all slots together may hold: what the default number of slots is cut down to
ROW_FLOATS = 1 << 26  # logits of one call: 256 MiB


@dataclass(frozen=True, slots=True)
class Feed:
    """Tokens appended to one sequence.

    Attributes:
        slot: number of the sequence. start: position of the first token, which is how many the cache holds.
        tokens: (n,) int32, n ≥ 1. rows: logits are wanted at the last ``rows`` of them.
    """

    slot: int
    start: int
    tokens: Tokens
    rows: int


class Decoder(Protocol):
    """Sequences in slots.

    Attributes:
        slots: sequences held at once. context: tokens a sequence may have. capacity: tokens of one `decode`.
        rows: largest number of logit rows of one `decode`. ends: tokens that end a text.
        can_cut: whether the end of a sequence can be dropped (recurrent models cannot).
    """

    slots: int
    context: int
    capacity: int
    rows: int
    ends: frozenset[int]
    can_cut: bool

    def decode(self, feeds: Sequence[Feed]) -> Logits:
        """Append and compute; (rows, V) float32 in the order of the feeds, valid until the next call.

        The buffer may be written to. Raises EngineError where decoding fails.
        """
        ...

    def drop(self, slot: int, start: int) -> None:
        """Forget the tokens of a sequence from position ``start`` on."""
        ...

    def close(self) -> None: ...


def open_decoder(engine: Engine, context: int, slots: int) -> Decoder:
    """A decoder over an engine.

    Args:
        context: longest sequence, in tokens. slots: sequences at once; fewer where they would not fit `CELLS`.

    Raises:
        CapabilityError: the engine gives no logits.
    """
    slots = max(1, min(slots, CELLS // max(context, 1)))
    own: Any = getattr(engine, "decoder", None)
    if own is not None:
        require(engine, "generate", "running tasks")
        found: Decoder = own(context, slots)
        return found
    require(engine, "logits", "running tasks")
    return RecomputingDecoder(engine, context, slots)


class RecomputingDecoder:
    """A decoder without a cache, over `Engine.logits`. Cost of an answer: its length times the whole sequence."""

    def __init__(self, engine: Engine, context: int, slots: int) -> None:
        self._engine = engine
        self._held: list[Tokens] = [np.empty(0, np.int32)] * slots
        self.slots, self.context, self.capacity = slots, context, max(context, 2048)
        self.rows = max(slots, ROW_FLOATS // len(engine.vocabulary))
        eos = engine.vocabulary.eos
        self.ends = frozenset({eos} if eos >= 0 else ())
        self.can_cut = True

    def decode(self, feeds: Sequence[Feed]) -> Logits:
        """See `Decoder.decode`."""
        windows = []
        for number, feed in enumerate(feeds):
            whole = self._append(feed)
            scored = np.zeros(len(whole), bool)
            scored[len(whole) - feed.rows :] = True
            windows.append(Window(whole, np.append(whole[1:], 0).astype(np.int32), scored, number, 0, 0))
        wanted = [w for w in windows if w.scored.any()]
        blocks = [np.array(block) for block in self._engine.logits(wanted)] if wanted else []
        return np.concatenate(blocks) if blocks else np.empty((0, len(self._engine.vocabulary)), np.float32)

    def _append(self, feed: Feed) -> Tokens:
        """The whole sequence with the tokens fed."""
        held = self._held[feed.slot]
        if len(held) != feed.start:
            raise EngineError("a sequence was fed out of order", expected=str(len(held)), got=str(feed.start))
        self._held[feed.slot] = np.concatenate([held, feed.tokens]).astype(np.int32)
        return self._held[feed.slot]

    def drop(self, slot: int, start: int) -> None:
        """See `Decoder.drop`."""
        self._held[slot] = self._held[slot][:start]

    def close(self) -> None:
        """Nothing to release; the engine is its opener's."""
