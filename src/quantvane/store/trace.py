"""A recorded reference: a directory that stands in for the model where candidates are measured.

``manifest.json`` (who computed it, under which protocol, of what kind), ``windows.parquet``,
``vocabulary.parquet``, ``samples.json`` (text and its token ids, to check a candidate's tokenizer), ``rows.bin``
(see `quantvane.store.frames`) and, for the kind ``hidden``, ``head.npy`` and perhaps ``bias.npy``. The manifest
says "recording" until the last row is there; only a trace that says "complete" opens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from quantvane.errors import TraceError
from quantvane.store.atomic import atomic_path, write_bytes
from quantvane.store.frames import FrameReader, RowShape
from quantvane.store.trace_manifest import AGAIN, ROWS, read_manifest
from quantvane.types import Window

__all__ = [
    "HEAD", "KINDS", "Sample", "Trace", "pack_floats", "row_type",
    "unpack_floats", "write_array", "write_samples", "write_vocabulary", "write_windows",
]  # fmt: skip

KINDS = ("hidden", "logits")
HEAD, BIAS = "head.npy", "bias.npy"
_STORED = {"f32": "<f4", "f16": "<f2", "bf16": "<u2"}


def row_type(stored: str) -> str:
    """numpy's name for a stored type: "f32", "f16", or "bf16" (kept as the upper 16 bits)."""
    return _STORED[stored]


def pack_floats(values: npt.NDArray[np.float32], stored: str) -> npt.NDArray[Any]:
    """float32 → the stored type; bf16 drops the lower 16 bits, so give values that are bfloat16 already."""
    if stored == "bf16":
        return (np.ascontiguousarray(values).view(np.uint32) >> np.uint32(16)).astype("<u2")
    with np.errstate(over="ignore"):
        return values.astype(_STORED[stored])


def unpack_floats(values: npt.NDArray[Any], stored: str) -> npt.NDArray[np.float32]:
    """The stored type → float32, exactly."""
    if stored == "bf16":
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values.astype(np.float32, copy=False)


@dataclass(frozen=True, slots=True)
class Sample:
    """The beginning of a corpus and the reference's token ids for it (n,) int32."""

    text: str
    tokens: npt.NDArray[np.int32]


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


_WINDOWS = pa.schema(
    [
        ("unit", pa.int32()), ("corpus", pa.int16()), ("document", pa.int32()), ("category", pa.string()),
        ("tokens", pa.list_(pa.int32())), ("targets", pa.list_(pa.int32())), ("scored", pa.list_(pa.bool_())),
    ]
)  # fmt: skip


def write_windows(path: Path, units: Sequence[Sequence[Window]]) -> dict[str, Any]:
    """Write ``windows.parquet``; returns its size and SHA-256."""
    rows = [(number, w) for number, unit in enumerate(units) for w in unit]
    columns = [
        pa.array([number for number, _ in rows], pa.int32()),
        pa.array([w.corpus for _, w in rows], pa.int16()),
        pa.array([w.document for _, w in rows], pa.int32()),
        pa.array([w.category for _, w in rows], pa.string()),
        pa.array([w.tokens for _, w in rows], pa.list_(pa.int32())),
        pa.array([w.targets for _, w in rows], pa.list_(pa.int32())),
        pa.array([w.scored for _, w in rows], pa.list_(pa.bool_())),
    ]
    target = path / "windows.parquet"
    with atomic_path(target) as temporary:
        pq.write_table(pa.Table.from_arrays(columns, schema=_WINDOWS), temporary, compression="zstd")
    return _digest(target)


def write_vocabulary(path: Path, pieces: Sequence[str | None]) -> dict[str, Any]:
    """Write ``vocabulary.parquet``: one row a token, null for padding."""
    target = path / "vocabulary.parquet"
    with atomic_path(target) as temporary:
        pq.write_table(pa.table({"piece": pa.array(pieces, pa.string())}), temporary, compression="zstd")
    return _digest(target)


def write_samples(path: Path, samples: Sequence[Sample]) -> dict[str, Any]:
    """Write ``samples.json``."""
    rows = [{"text": s.text, "tokens": s.tokens.tolist()} for s in samples]
    write_bytes(path / "samples.json", json.dumps(rows, ensure_ascii=False).encode())
    return _digest(path / "samples.json")


def write_array(path: Path, name: str, values: npt.NDArray[Any]) -> dict[str, Any]:
    """Write an array as ``.npy``."""
    with atomic_path(path / name) as temporary, temporary.open("wb") as file:
        np.save(file, values)
    return _digest(path / name)


class Trace:
    """A complete trace. Use `open`, and `close` it.

    Attributes:
        manifest: see the module. windows: all of them, in order. pieces: the vocabulary's token texts.
        samples: see `Sample`. units: number of windows of each unit.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path, self.manifest = path, manifest
        self._check_files()
        try:
            self.windows, self.units = self._read_windows()
            self.pieces: tuple[str | None, ...] = tuple(
                pq.read_table(path / "vocabulary.parquet")["piece"].to_pylist()
            )
            self.samples = tuple(
                Sample(row["text"], np.array(row["tokens"], np.int32))
                for row in json.loads((path / "samples.json").read_bytes())
            )
            counts = np.array([np.count_nonzero(w.scored) for w in self.windows], np.int64)
            self._starts = np.concatenate([[0], np.cumsum(counts)])
            ends = self._starts[np.cumsum([0, *self.units])]
            self.shape = RowShape(
                tuple(int(n) for n in np.diff(ends)), int(manifest["width"]), row_type(manifest["stored"])
            )
        except (KeyError, ValueError, TypeError, pa.ArrowException) as problem:
            raise TraceError(
                f"the trace '{path}' is damaged",
                expected="the tables quantvane record writes",
                got=f"{type(problem).__name__}: {problem}",
                remedy=AGAIN,
            ) from None
        self._rows = FrameReader(path / ROWS, self.shape)

    @classmethod
    def open(cls, path: str | Path) -> Trace:
        """Open a trace and check that all of it is there.

        Every file but the rows is checked byte for byte; rows when they are read.

        Raises:
            TraceError: no trace, unfinished, truncated or altered.
        """
        return cls(Path(path), read_manifest(path))

    def _check_files(self) -> None:
        for name, expected in self.manifest.get("files", {}).items():
            try:
                got: Any = _digest(self.path / name)
            except OSError as problem:
                got = problem.strerror
            if got != expected:
                raise TraceError(
                    f"'{self.path / name}' is missing or not as it was written",
                    expected=f"{expected['bytes']} bytes, SHA-256 {expected['sha256'][:16]}…",
                    got=f"{got['bytes']} bytes, SHA-256 {got['sha256'][:16]}…" if isinstance(got, dict) else str(got),
                    remedy=AGAIN,
                )

    def _read_windows(self) -> tuple[tuple[Window, ...], tuple[int, ...]]:
        table = pq.read_table(self.path / "windows.parquet")
        lists = {
            name: _lists(table[name], dtype)
            for name, dtype in (("tokens", np.int32), ("targets", np.int32), ("scored", np.bool_))
        }
        plain = {name: table[name].to_pylist() for name in ("unit", "corpus", "document", "category")}
        windows = tuple(
            Window(
                lists["tokens"][i], lists["targets"][i], lists["scored"][i], i,
                plain["corpus"][i], plain["document"][i], plain["category"][i],
            )
            for i in range(table.num_rows)
        )  # fmt: skip
        return windows, tuple(np.bincount(plain["unit"]).tolist())

    def rows_of(self, window: Window) -> tuple[int, int]:
        """(first, one past the last) row of a window.

        Raises:
            TraceError: not a window of this trace.
        """
        known = 0 <= window.index < len(self.windows)
        held = self.windows[window.index] if known else None
        if (
            held is None
            or not np.array_equal(held.tokens, window.tokens)
            or not np.array_equal(held.scored, window.scored)
        ):
            raise TraceError(
                f"window {window.index} is not in the trace '{self.path}'",
                expected="windows as the trace gives them",
                got="other tokens or other scored positions",
                remedy="record the reference again for this text",
            )
        return int(self._starts[window.index]), int(self._starts[window.index + 1])

    def rows(self, start: int, stop: int) -> Any:
        """Stored rows start … stop − 1 in blocks; see `FrameReader.rows`."""
        return self._rows.rows(start, stop)

    def array(self, name: str) -> npt.NDArray[Any]:
        """``head.npy`` or ``bias.npy``."""
        values: npt.NDArray[Any] = np.load(self.path / name, allow_pickle=False)
        return values

    def close(self) -> None:
        self._rows.close()


def _lists(column: Any, dtype: Any) -> list[npt.NDArray[Any]]:
    """A list column as arrays, without a Python object for every entry."""
    joined = column.combine_chunks()
    flat = joined.values.to_numpy(zero_copy_only=False).astype(dtype)
    ends = joined.offsets.to_numpy()
    return [flat[a:b] for a, b in pairwise(ends)]
