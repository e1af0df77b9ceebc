"""Filling llama.cpp's batch struct from windows, without a Python loop over tokens."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from quantvane.types import Window

__all__ = ["Batch", "group_windows"]


def group_windows(windows: Sequence[Window], capacity: int, sequences: int) -> Iterator[list[Window]]:
    """Consecutive windows that fit one batch together; a window longer than the batch goes alone."""
    group: list[Window] = []
    held = 0
    for window in windows:
        if group and (held + len(window.tokens) > capacity or len(group) == sequences):
            yield group
            group, held = [], 0
        group.append(window)
        held += len(window.tokens)
    if group:
        yield group


class Batch:
    """Arrays that a ``llama_batch`` points into.

    Args:
        lib: the llama_cpp module. capacity: tokens of one decode call.
    """

    def __init__(self, lib: Any, capacity: int) -> None:
        self.capacity = capacity
        self._token = np.zeros(capacity, np.int32)
        self._pos = np.zeros(capacity, np.int32)
        self._count = np.ones(capacity, np.int32)  # every token belongs to one sequence
        self._sequence = np.zeros(capacity, np.int32)
        self._wanted = np.zeros(capacity, np.int8)
        addresses = self._sequence.ctypes.data + 4 * np.arange(capacity, dtype=np.uintp)
        self._pointers = addresses
        int32 = ctypes.POINTER(ctypes.c_int32)
        self.struct = lib.llama_batch(
            n_tokens=0,
            token=self._token.ctypes.data_as(int32),
            embd=None,
            pos=self._pos.ctypes.data_as(int32),
            n_seq_id=self._count.ctypes.data_as(int32),
            seq_id=self._pointers.ctypes.data_as(ctypes.POINTER(int32)),
            logits=self._wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def fill(self, group: Sequence[Window]) -> Iterator[int]:
        """Set the struct for each decode call in turn and yield the number of rows it will give.

        Several windows are one call, each its own sequence; one window longer than the batch takes several.
        """
        if len(group) == 1:
            window = group[0]
            for start in range(0, len(window.tokens), self.capacity):
                piece = slice(start, min(start + self.capacity, len(window.tokens)))
                self._put(0, window, piece, 0)
                self.struct.n_tokens = piece.stop - piece.start
                yield int(np.count_nonzero(window.scored[piece]))
            return
        at = rows = 0
        for number, window in enumerate(group):
            self._put(at, window, slice(0, len(window.tokens)), number)
            at += len(window.tokens)
            rows += int(np.count_nonzero(window.scored))
        self.struct.n_tokens = at
        yield rows

    def _put(self, at: int, window: Window, piece: slice, sequence: int) -> None:
        to = slice(at, at + piece.stop - piece.start)
        self._token[to] = window.tokens[piece]
        self._pos[to] = np.arange(piece.start, piece.stop)
        self._sequence[to] = sequence
        self._wanted[to] = window.scored[piece]
