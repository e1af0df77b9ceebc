"""transformers' decoder: a KV cache for each sequence, cut where the library can cut it, else made anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from quantvane.engines.base import Engine
from quantvane.engines.decoding import Feed, RecomputingDecoder, Tokens

__all__ = ["Extending", "HfDecoder"]


class Extending(Engine, Protocol):
    """An engine that reads a sequence on from a cache."""

    def extend(self, tokens: Tokens, cache: Any, rows: int) -> tuple[npt.NDArray[np.float32], Any]:
        """Logits (rows, V) at the last ``rows`` of ``tokens``, and the cache with them in it."""
        ...


class HfDecoder(RecomputingDecoder):
    """Sequences of one model; see `quantvane.engines.decoding.Decoder`.

    Sequences that begin are computed in batches of equal length without a cache, which is all that scoring needs. A
    sequence that goes on is given a cache by reading it whole once, and from then on only its new tokens are computed,
    one sequence after the other: nothing is padded. Memory: the cache of every slot that goes on.
    """

    def __init__(self, engine: Extending, context: int, slots: int) -> None:
        super().__init__(engine, context, slots)
        self._model = engine
        self._caches: list[Any] = [None] * slots

    def decode(self, feeds: Sequence[Feed]) -> npt.NDArray[np.float32]:
        """See `Decoder.decode`."""
        new = [feed for feed in feeds if feed.start == 0]
        begun = super().decode(new) if new else None
        if len(new) == len(feeds) and begun is not None:
            return begun
        parts, at = [], 0
        for feed in feeds:
            if feed.start == 0 and begun is not None:
                parts.append(begun[at : at + feed.rows])
                at += feed.rows
            else:
                parts.append(self._go_on(feed))
        return np.concatenate(parts)

    def _go_on(self, feed: Feed) -> npt.NDArray[np.float32]:
        fed: Tokens = self._append(feed) if self._caches[feed.slot] is None else self._append(feed)[feed.start :]
        logits, self._caches[feed.slot] = self._model.extend(fed, self._caches[feed.slot], feed.rows)
        return logits

    def drop(self, slot: int, start: int) -> None:
        """See `Decoder.drop`."""
        cache, held = self._caches[slot], len(self._held[slot])
        super().drop(slot, start)
        if cache is None or start >= held:
            return
        try:
            # Layers that keep no past (sliding windows that are full, recurrent states) refuse.
            kept = bool(start) and cache.crop(start - held) is None and cache.get_seq_length() == start
        except (RuntimeError, ValueError, AttributeError, NotImplementedError):
            kept = False
        if not kept:
            self._caches[slot] = None

    def close(self) -> None:
        """Release the caches; the engine is its opener's."""
        self._caches = [None] * len(self._caches)
