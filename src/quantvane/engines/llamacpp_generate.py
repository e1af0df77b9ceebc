"""llama.cpp's decoder: one context whose sequences share a cache that can be cut at any position."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from quantvane.engines.decoding import ROW_FLOATS, Feed
from quantvane.errors import EngineError

__all__ = ["LlamaDecoder"]

_MAX_SEQUENCES = 256  # llama.cpp's own bound


class LlamaDecoder:
    """Sequences of one llama.cpp context; see `quantvane.engines.decoding.Decoder`.

    The sequences share one cache (``kv_unified``): tokens of any number of sequences are then computed together
    whatever their lengths are, where separate caches would split them by length. Sequences that begin in one call, one
    after the other, share what they have in common: such a token is computed once and belongs to all of them. (Feed
    them sorted, so that neighbours have most in common.)

    Args:
        lib, model: the library and its loaded model. params: context parameters with the engine's settings.
        context: longest sequence. slots: sequences at once. explain: gives the library's last messages.

    Attributes:
        computed: tokens of the last call, shared ones counted once.
    """

    def __init__(
        self, lib: Any, model: Any, params: Any, context: int, slots: int, explain: Callable[[], str]
    ) -> None:
        self._lib, self._explain = lib, explain
        self.slots, self.context = max(1, min(slots, _MAX_SEQUENCES)), context
        vocab = lib.llama_model_get_vocab(model)
        self._n_vocab = int(lib.llama_vocab_n_tokens(vocab))
        self.ends = frozenset(i for i in range(self._n_vocab) if lib.llama_vocab_is_eog(vocab, i))
        self.can_cut = not (lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model))
        params.n_ctx = context * self.slots
        params.n_batch = min(params.n_batch, max(params.n_ctx, 1))
        params.n_ubatch = min(params.n_ubatch, params.n_batch)
        params.n_seq_max = self.slots
        params.kv_unified = True
        params.swa_full = True  # a sliding window's cache cannot be cut back to what it has forgotten
        self.capacity = int(params.n_batch)
        self.rows = min(self.capacity, max(self.slots, ROW_FLOATS // self._n_vocab))
        self._ctx: Any = lib.llama_init_from_model(model, params)
        if not self._ctx:
            raise EngineError(
                "llama.cpp cannot make a context for generating",
                expected=f"memory for {self.slots} sequences of {context} tokens",
                got=explain(),
                remedy="fewer sequences at once (--slots), a smaller --ctx, or cheaper cache types",
            )
        self._memory = lib.llama_get_memory(self._ctx)
        self._arrays(self.capacity)
        self.computed = 0

    def _arrays(self, capacity: int) -> None:
        self._token, self._pos = np.zeros(capacity, np.int32), np.zeros(capacity, np.int32)
        self._slot, self._count = np.zeros(capacity, np.int32), np.ones(capacity, np.int32)
        self._wanted = np.zeros(capacity, np.int8)
        self._slots_at = self._slot.ctypes.data
        self._pointers = np.full(capacity, self._slots_at, np.uintp)
        int32 = ctypes.POINTER(ctypes.c_int32)
        self._batch = self._lib.llama_batch(
            n_tokens=0,
            token=self._token.ctypes.data_as(int32),
            embd=None,
            pos=self._pos.ctypes.data_as(int32),
            n_seq_id=self._count.ctypes.data_as(int32),
            seq_id=self._pointers.ctypes.data_as(ctypes.POINTER(int32)),
            logits=self._wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def decode(self, feeds: Sequence[Feed]) -> npt.NDArray[np.float32]:
        """See `Decoder.decode`."""
        rows = self._fill(feeds)
        status = self._lib.llama_decode(self._ctx, self._batch)
        if status != 0:
            raise EngineError(
                "llama.cpp failed to decode",
                expected="status 0",
                got=f"status {status}: {self._explain()}",
                remedy="fewer sequences at once (--slots) or a smaller n_batch; check free memory",
            )
        if not len(rows):
            return np.empty((0, self._n_vocab), np.float32)
        pointer = ctypes.cast(self._lib.llama_get_logits(self._ctx), ctypes.POINTER(ctypes.c_float))
        found: npt.NDArray[np.float32] = np.ctypeslib.as_array(pointer, (int(rows.max()) + 1, self._n_vocab))
        return found if len(found) == len(rows) and (rows == np.arange(len(rows))).all() else found[rows]

    def _fill(self, feeds: Sequence[Feed]) -> npt.NDArray[np.int64]:
        """Set the batch; the row of llama.cpp's output that holds each row asked for."""
        at = 0
        self._slot[: len(feeds)] = [feed.slot for feed in feeds]
        common = self._common(feeds)
        wanted: list[npt.NDArray[np.int64]] = []  # places in the batch
        places = np.empty(0, np.int64)
        for number, feed in enumerate(feeds):
            shared, n = common[number], len(feed.tokens)
            end = at + n - shared
            self._token[at:end] = feed.tokens[shared:]
            self._pos[at:end] = np.arange(feed.start + shared, feed.start + n)
            # The sequences a token belongs to stand side by side in ``_slot``: this one and some that follow.
            self._pointers[at:end] = self._slots_at + 4 * number
            self._count[at:end] = 1
            self._wanted[at:end] = 0
            least = n
            for other in common[number + 1 :]:
                least = min(least, other)
                if least <= shared:
                    break
                self._count[at : at + least - shared] += 1
            places = np.concatenate([places[:shared], np.arange(at, end)])
            if feed.rows:
                wanted.append(places[n - feed.rows :])
                self._wanted[wanted[-1]] = 1
            at = end
        self._batch.n_tokens = self.computed = at
        if not wanted:
            return np.empty(0, np.int64)
        row = np.cumsum(self._wanted[:at], dtype=np.int64) - 1
        return row[np.concatenate(wanted)]

    def _common(self, feeds: Sequence[Feed]) -> list[int]:
        """Of each feed, how many tokens it has in common with the one before it, where both begin a sequence."""
        found = [0] * len(feeds)
        if not self.can_cut:  # a recurrent state belongs to one sequence
            return found
        for number in range(1, len(feeds)):
            a, b = feeds[number - 1], feeds[number]
            if a.start == b.start == 0 and a.tokens[0] == b.tokens[0]:
                n = min(len(a.tokens), len(b.tokens))
                differs = a.tokens[:n] != b.tokens[:n]
                at = int(differs.argmax())
                found[number] = at if differs[at] else n
        return found

    def drop(self, slot: int, start: int) -> None:
        """See `Decoder.drop`."""
        if not self._lib.llama_memory_seq_rm(self._memory, slot, start, -1):
            raise EngineError(
                "llama.cpp cannot cut a sequence",
                expected="a cache that can be cut at any position",
                got=f"position {start} refused",
                remedy="run without --replay",
            )

    def close(self) -> None:
        if self._ctx is not None:
            self._lib.llama_free(self._ctx)
            self._ctx = None
