"""The one way a file comes to be: written beside its place, flushed, then renamed onto it."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from quantvane.errors import OutputError

__all__ = ["atomic_path", "make_directory", "read_json", "to_json", "write_bytes", "write_files", "write_json"]


def make_directory(path: Path) -> Path:
    """Create a directory and prove that it can be written to.

    Raises:
        OutputError: it cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path, prefix=".probe-", suffix=".tmp"):
            pass
    except OSError as problem:
        raise OutputError(
            f"cannot write to '{path}'",
            expected="a directory that can be made and written to",
            got=problem.strerror or str(problem),
            remedy="choose another --out",
        ) from None
    return path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path in the same directory; renamed onto ``path`` on success, removed on any failure.

    Raises:
        OutputError: the directory cannot be written, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as problem:
        raise OutputError(
            f"cannot write '{path}'",
            expected="room and permission to write",
            got=problem.strerror or str(problem),
            remedy="free some space or choose another --out",
        ) from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_files(folder: Path, files: Mapping[str, bytes]) -> list[Path]:
    """Write files by relative path, each atomically; their paths."""
    for name, data in files.items():
        write_bytes(folder / name, data)
    return [folder / name for name in files]


def _plain(value: Any) -> Any:
    """The JSON form: NaN and infinities are null; a reason, where there is one, stands beside them."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence | set | frozenset):
        return [_plain(v) for v in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def to_json(data: Any, *, indent: int | None = 1) -> str:
    """JSON text without NaN or Infinity."""
    return json.dumps(_plain(data), indent=indent, ensure_ascii=False, allow_nan=False)


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file atomically."""
    write_bytes(path, (to_json(data) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file of ours.

    Raises:
        OutputError: missing or damaged.
    """
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as problem:
        raise OutputError(
            f"cannot read '{path}'",
            expected="a JSON file written by quantvane",
            got=str(problem),
            remedy="name a run directory, or run the command that makes it",
        ) from None
