"""An append-only text file of JSON lines that rotates by size and is whole after a crash, but for its last line."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

from quantvane.errors import OutputError
from quantvane.store.atomic import to_json

__all__ = ["RotatingLines"]


class RotatingLines:
    """Appends one line a record, each in a single write at the file's end; not safe for several threads.

    When the file would pass ``max_bytes`` it is renamed to ``NAME.1``, an older ``NAME.1`` to ``NAME.2``, and what
    would become ``NAME.(keep+1)`` is dropped. A last line without an end, left by a crash, is closed on opening, so
    that it spoils no other.

    Raises:
        OutputError: the file cannot be opened or written.
    """

    def __init__(self, path: Path, max_bytes: int = 64 << 20, keep: int = 5) -> None:
        self.path, self._max, self._keep = path, max(1, max_bytes), max(0, keep)
        self._fd = -1
        self._open()

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Readable by its owner alone: model names and rates are nobody else's business.
            self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._size = os.fstat(self._fd).st_size
            if self._size and os.pread(self._fd, 1, self._size - 1) != b"\n":
                self._size += os.write(self._fd, b"\n")
        except OSError as problem:
            raise self._cannot(problem) from None

    def append(self, record: Any) -> None:
        """Write one record; NaN and infinities become null."""
        data = to_json(record, indent=None).encode() + b"\n"
        try:
            if self._size and self._size + len(data) > self._max:
                self._rotate()
            written = os.write(self._fd, data)
            self._size += written
            if written < len(data):  # a full disk: the piece must not swallow the next line
                raise OSError(28, "No space left on device")
        except OSError as problem:
            raise self._cannot(problem) from None

    def _rotate(self) -> None:
        os.close(self._fd)
        self._fd = -1
        names = [self.path, *(self.path.with_name(f"{self.path.name}.{i}") for i in range(1, self._keep + 1))]
        for old, new in reversed(list(pairwise(names))):
            if old.exists():
                os.replace(old, new)
        if not self._keep:
            self.path.unlink(missing_ok=True)
        self._open()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _cannot(self, problem: OSError) -> OutputError:
        return OutputError(
            f"cannot write '{self.path}'",
            expected="room and permission to write",
            got=problem.strerror or str(problem),
            remedy="free some space or name another file",
        )
