"""An append-only file of record batches that survives being killed at any byte.

Layout: magic, then frames of ``u32 length | u32 crc32 | Arrow IPC stream``, little-endian. A frame holds the
batches of one unit of work, which so becomes durable as a whole. A frame is whole or it does not count: on
opening, everything after the last whole frame is cut off.
"""

from __future__ import annotations

import fcntl
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

from quantvane.errors import OutputError

__all__ = ["Journal", "read_journal"]

_MAGIC = b"QVJOUR1\n"
_FRAME = struct.Struct("<II")


def _frames(path: Path) -> Iterator[tuple[int, bytes]]:
    """(end offset, payload) of every whole frame."""
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            return
        at = len(_MAGIC)
        size = os.fstat(file.fileno()).st_size
        while True:
            head = file.read(_FRAME.size)
            if len(head) < _FRAME.size:
                return
            length, crc = _FRAME.unpack(head)
            if at + _FRAME.size + length > size:  # never trust a length before allocating for it
                return
            payload = file.read(length)
            if zlib.crc32(payload) != crc:
                return
            at += _FRAME.size + length
            yield at, payload


def read_journal(path: Path) -> Iterator[list[Any]]:
    """The record batches of every whole frame, in the order written; none where the file is missing."""
    if path.exists():
        for _, payload in _frames(path):
            with pa.ipc.open_stream(payload) as stream:
                yield list(stream)


class Journal:
    """Append frames; reopening continues after the last whole one.

    Attributes:
        frames: number of whole frames in the file.
    """

    def __init__(self, path: Path) -> None:
        end, self.frames = len(_MAGIC), 0
        try:
            if path.exists():
                for end, _ in _frames(path):  # noqa: B007 - the last offset is what is wanted
                    self.frames += 1
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("r+b" if path.exists() else "w+b")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self.frames == 0:
                self._file.write(_MAGIC)
            self._file.truncate(end)
            self._file.seek(end)
        except BlockingIOError:
            raise OutputError(
                f"another process is writing '{path}'",
                expected="one run at a time in a directory",
                got="the journal is locked",
                remedy="wait for the other run, or choose another --out",
            ) from None
        except OSError as problem:
            raise _cannot(path, problem) from None
        self._path = path

    def append(self, batches: Sequence[Any]) -> None:
        """Write one frame; the operating system holds all of it when this returns."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batches[0].schema) as stream:
            for batch in batches:
                stream.write_batch(batch)
        payload = sink.getvalue().to_pybytes()
        try:
            self._file.write(_FRAME.pack(len(payload), zlib.crc32(payload)) + payload)
            self._file.flush()
        except OSError as problem:
            raise _cannot(self._path, problem) from None
        self.frames += 1

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _cannot(path: Path, problem: OSError) -> OutputError:
    return OutputError(
        f"cannot write '{path}'",
        expected="room and permission to write",
        got=problem.strerror or str(problem),
        remedy="free some space or choose another --out; the same command continues where this one stopped",
    )
