"""Rows of one width in compressed, checked blocks: what a reference trace keeps its numbers in.

Layout: magic, then frames ``u32 length | u32 crc32 | u32 unit | u32 rows | payload``, little-endian. The payload is
zstd over the rows' bytes in planes (all first bytes, then all second bytes, …), which compresses floats better; the
checksum covers unit, rows and payload. A unit is what is computed and becomes durable as a whole: a writer that
opens the file again cuts it after the last whole unit.
"""

from __future__ import annotations

import fcntl
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from quantvane.errors import OutputError, TraceError

__all__ = ["FrameReader", "FrameWriter", "RowShape", "last_unit"]

_MAGIC = b"QVROWS1\n"
_FRAME = struct.Struct("<4I")
_BLOCK_BYTES = 8 << 20
_AGAIN = "record the reference again, or copy the trace again from where it was made"


@dataclass(frozen=True, slots=True)
class RowShape:
    """What the file's rows are.

    Attributes:
        units: rows of each unit, in order. width: numbers in a row. dtype: numpy name of their type.
    """

    units: tuple[int, ...]
    width: int
    dtype: str

    @property
    def row_bytes(self) -> int:
        return self.width * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class _Frame:
    offset: int
    length: int
    crc: int
    unit: int
    rows: int


def _pack(rows: npt.NDArray[Any]) -> bytes:
    planes = np.ascontiguousarray(rows).view(np.uint8).reshape(-1, rows.dtype.itemsize).T
    data: bytes = pa.Codec("zstd", compression_level=3).compress(np.ascontiguousarray(planes).data, asbytes=True)
    return data


def _unpack(payload: bytes, rows: int, shape: RowShape) -> npt.NDArray[Any]:
    size = rows * shape.row_bytes
    raw = pa.Codec("zstd").decompress(payload, decompressed_size=size, asbytes=True)
    item = np.dtype(shape.dtype).itemsize
    planes = np.frombuffer(raw, np.uint8).reshape(item, -1)
    return np.ascontiguousarray(planes.T).view(shape.dtype).reshape(rows, shape.width)


def _crc(unit: int, rows: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(struct.pack("<2I", unit, rows)))


def _headers(path: Path) -> Iterator[_Frame]:
    """Every frame whose bytes are all there; payloads are not read."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if file.read(len(_MAGIC)) != _MAGIC:
            return
        at = len(_MAGIC)
        while len(head := file.read(_FRAME.size)) == _FRAME.size:
            length, crc, unit, rows = _FRAME.unpack(head)
            at += _FRAME.size
            if at + length > size:  # never trust a length before going by it
                return
            yield _Frame(at, length, crc, unit, rows)
            at += length
            file.seek(at)


def _payload(file: Any, frame: _Frame) -> bytes | None:
    """A frame's payload, or None where its checksum differs."""
    file.seek(frame.offset)
    payload: bytes = file.read(frame.length)
    return payload if _crc(frame.unit, frame.rows, payload) == frame.crc else None


def last_unit(path: Path) -> int:
    """Number of the unit whose rows come last; −1 in a file without rows, or where there is none."""
    return max((frame.unit for frame in _headers(path)), default=-1) if path.exists() else -1


class FrameWriter:
    """Append rows unit by unit; a context manager.

    Attributes:
        units_done: whole units in the file, those of an earlier, interrupted writer included.
    """

    def __init__(self, path: Path, shape: RowShape) -> None:
        self._path, self._shape = path, shape
        try:
            end, self.units_done = self._whole() if path.exists() else (0, 0)
            self._file = path.open("r+b" if path.exists() else "w+b")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._file.truncate(end)
            self._file.seek(end)
            if end == 0:
                self._file.write(_MAGIC)
        except BlockingIOError:
            raise OutputError(
                f"another process is writing '{path}'",
                expected="one recording at a time in a directory",
                got="the file is locked",
                remedy="wait for the other one, or choose another --out",
            ) from None
        except OSError as problem:
            raise self._cannot(problem) from None

    def _whole(self) -> tuple[int, int]:
        """(offset after the last whole unit, number of whole units)."""
        end, done, held = 0, 0, 0
        with self._path.open("rb") as file:
            for frame in _headers(self._path):
                end = end or len(_MAGIC)
                if done == len(self._shape.units) or frame.unit != done or _payload(file, frame) is None:
                    break
                held += frame.rows
                if held > self._shape.units[done]:
                    break
                if held == self._shape.units[done]:
                    end, done, held = frame.offset + frame.length, done + 1, 0
        return end, done

    def append(self, blocks: Iterator[npt.NDArray[Any]]) -> None:
        """Write the next unit: blocks (rows, width) of the file's type, as many rows as the unit has.

        Raises:
            OutputError: for example a full disk. TraceError: another number of rows; nothing of it counts then.
        """
        unit, rows = self.units_done, 0
        most = max(1, _BLOCK_BYTES // self._shape.row_bytes)
        for block in blocks:
            for start in range(0, len(block), most):
                part = block[start : start + most]
                payload = _pack(part)
                head = _FRAME.pack(len(payload), _crc(unit, len(part), payload), unit, len(part))
                self._write(head + payload)
                rows += len(part)
        if rows != self._shape.units[unit]:
            raise TraceError(
                f"unit {unit} of '{self._path}' has another number of rows",
                expected=str(self._shape.units[unit]),
                got=str(rows),
                remedy="this is a defect of the engine; please report it with the model's name",
            )
        try:
            self._file.flush()
        except OSError as problem:
            raise self._cannot(problem) from None
        self.units_done += 1

    def _write(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as problem:
            raise self._cannot(problem) from None

    def _cannot(self, problem: OSError) -> OutputError:
        return OutputError(
            f"cannot write '{self._path}'",
            expected="room and permission to write",
            got=problem.strerror or str(problem),
            remedy="free some space or choose another --out; the same command continues where this one stopped",
        )

    def __enter__(self) -> FrameWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
        except OSError as problem:
            raise self._cannot(problem) from None
        finally:
            with suppress(OSError):  # closing flushes; a full disk has been reported by then
                self._file.close()


class FrameReader:
    """Rows of a finished file by number. Blocks are read, checked and unpacked when they are asked for.

    Raises:
        TraceError: the frames do not add up to the rows there should be, to the file's last byte.
    """

    def __init__(self, path: Path, shape: RowShape) -> None:
        self._path, self._shape = path, shape
        try:
            self._frames = list(_headers(path))
            size = path.stat().st_size
            self._file = path.open("rb")
        except OSError as problem:
            raise self._damaged("a readable file", problem.strerror or str(problem)) from None
        found: dict[int, int] = {}
        for frame in self._frames:
            found[frame.unit] = found.get(frame.unit, 0) + frame.rows
        end = self._frames[-1].offset + self._frames[-1].length if self._frames else len(_MAGIC)
        in_order = all(a.unit <= b.unit for a, b in pairwise(self._frames))
        if found != dict(enumerate(shape.units)) or end != size or not in_order:
            self.close()
            raise self._damaged(
                f"{sum(shape.units)} rows in {len(shape.units)} units",
                f"{sum(found.values())} rows in {len(found)} units, {size - end} bytes after them",
            )
        self._starts = np.concatenate([[0], np.cumsum([frame.rows for frame in self._frames])]).astype(np.int64)
        self._held: tuple[int, npt.NDArray[Any]] | None = None

    def _damaged(self, expected: str, got: str) -> TraceError:
        return TraceError(f"'{self._path}' is damaged", expected=expected, got=got, remedy=_AGAIN)

    def rows(self, start: int, stop: int) -> Iterator[npt.NDArray[Any]]:
        """Rows start … stop − 1 as blocks (rows, width), each at most about 8 MB.

        Raises:
            TraceError: a block whose checksum differs.
        """
        number = int(np.searchsorted(self._starts, start, "right")) - 1
        while start < stop:
            first = int(self._starts[number])
            block = self._load(number)[start - first : stop - first]
            yield block
            start += len(block)
            number += 1

    def _load(self, number: int) -> npt.NDArray[Any]:
        if self._held is None or self._held[0] != number:
            frame = self._frames[number]
            payload = _payload(self._file, frame)
            if payload is None:
                raise self._damaged(f"checksum {frame.crc:08x} in block {number}", "other bytes")
            try:
                self._held = (number, _unpack(payload, frame.rows, self._shape))
            except (OSError, ValueError) as problem:
                raise self._damaged(f"{frame.rows} rows in block {number}", str(problem)) from None
        return self._held[1]

    def close(self) -> None:
        self._file.close()
