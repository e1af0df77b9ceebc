"""The tensor table of a GGUF file: names, types, sizes. Nothing in the file is trusted before it is checked.

The gguf package reads the same and more, but walks every string of the vocabulary in Python: seconds for a
vocabulary of 150,000. A table needs none of them, so arrays are stepped over here.

Layout (little-endian): ``GGUF``, u32 version, u64 tensors, u64 keys; per key: string, u32 type, value; per
tensor: string, u32 dimensions, u64 each, u32 type, u64 offset into the data; padding; data. Source: the format's
description in ggml's docs/gguf.md.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["TensorEntry", "TensorTable", "read_table"]

_SCALARS = {0: "B", 1: "b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor: its name, the number of its elements, ggml's number for its type, and its place in the data."""

    name: str
    elements: int
    type_id: int
    offset: int


@dataclass(frozen=True, slots=True)
class TensorTable:
    """All tensors, the scalar and string metadata, and the offset in the file at which the data begin."""

    tensors: tuple[TensorEntry, ...]
    metadata: dict[str, Any]
    data_start: int


class _Cursor:
    """Reads forward through a buffer; every step is checked against its end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at, self.end = data, 4, len(data)

    def skip(self, size: int) -> int:
        """Step over ``size`` bytes; returns where they began."""
        begun = self.at
        if size > self.end - begun:
            raise ValueError(f"{size} bytes wanted at offset {begun} of {self.end}")
        self.at = begun + size
        return begun

    def scalar(self, form: str) -> Any:
        return struct.unpack_from(form, self.data, self.skip(struct.calcsize(form)))[0]

    def string(self) -> str:
        length = self.scalar("<Q")
        begun = self.skip(length)
        return self.data[begun : begun + length].decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        """A scalar or string; None for an array, which is stepped over."""
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            if kind not in _SCALARS:
                raise ValueError(f"value type {kind} is unknown")
            return self.scalar(_SCALARS[kind])
        inner, count = self.scalar("<I"), self.scalar("<Q")
        if inner in _SCALARS:
            self.skip(struct.calcsize(_SCALARS[inner]) * count)
        elif inner == _STRING:
            self._skip_strings(count)
        elif depth < 4:
            for _ in range(count):
                self.value(inner, depth + 1)
        else:
            raise ValueError("arrays nested too deeply")
        return None

    def _skip_strings(self, count: int) -> None:
        at, end, read = self.at, self.end, struct.Struct("<Q").unpack_from
        for _ in range(count):
            if at + 8 > end:
                raise ValueError(f"{count} strings claimed, the file ends before")
            at += 8 + read(self.data, at)[0]
        if at > end:
            raise ValueError("a string reaches beyond the end of the file")
        self.at = at


def read_table(path: Path) -> TensorTable:
    """Read the table of one file.

    Raises:
        ValueError: what does not fit; OSError: what cannot be read.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor = _Cursor(data)
        version, tensors, keys = cursor.scalar("<I"), cursor.scalar("<Q"), cursor.scalar("<Q")
        if version not in (2, 3):
            raise ValueError(f"version {version}")
        metadata = {}
        for _ in range(keys):
            key = cursor.string()
            value = cursor.value(cursor.scalar("<I"))
            if value is not None:
                metadata[key] = value
        entries = tuple(_entry(cursor) for _ in range(tensors))
        alignment = int(metadata.get("general.alignment", 32))
        if alignment <= 0 or alignment > 1 << 20:
            raise ValueError(f"alignment {alignment}")
        return TensorTable(entries, metadata, -(-cursor.at // alignment) * alignment)


def _entry(cursor: _Cursor) -> TensorEntry:
    name = cursor.string()
    dimensions = cursor.scalar("<I")
    if dimensions > 8:
        raise ValueError(f"tensor '{name}' has {dimensions} dimensions")
    elements = 1
    for _ in range(dimensions):
        elements *= cursor.scalar("<Q")
    if elements > 1 << 48:
        raise ValueError(f"tensor '{name}' has {elements} elements")
    return TensorEntry(name, elements, cursor.scalar("<I"), cursor.scalar("<Q"))
