"""The token table: one row a scored position, one Parquet file a candidate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from quantvane.errors import OutputError
from quantvane.store.atomic import atomic_path
from quantvane.types import TOKEN_FIELDS, Window

__all__ = ["SCHEMA", "SCHEMA_VERSION", "TokenColumns", "token_batch", "write_tokens"]

SCHEMA_VERSION = 1
_INT = ("top1_ref", "top1_cand", "rank_in_cand")
# Divergences keep float64: a self-comparison must read 0 and a good quant differs in the sixth digit.
SCHEMA = pa.schema(
    [
        pa.field("corpus", pa.int16()),
        pa.field("document", pa.int32()),
        pa.field("window", pa.int32()),
        pa.field("position", pa.int32()),
        pa.field("token", pa.int32()),
        pa.field("category", pa.dictionary(pa.int16(), pa.string())),
        *[
            pa.field(name, pa.bool_() if name == "same_top1" else pa.int32() if name in _INT else pa.float64())
            for name in TOKEN_FIELDS
        ],
    ],
    metadata={"quantvane.schema": str(SCHEMA_VERSION)},
)
_ROW_GROUP = 1 << 14  # a writer holds a few copies of one
_READ_ROWS = 1 << 12


def token_batch(window: Window, metrics: Mapping[str, Any]) -> Any:
    """One window's rows as a record batch of `SCHEMA`; ``metrics`` maps `TOKEN_FIELDS` to (rows,) arrays."""
    positions = np.flatnonzero(window.scored).astype(np.int32)
    rows = len(positions)
    category = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(rows, np.int16)), pa.array([window.category], pa.string())
    )
    arrays: list[Any] = [
        pa.array(np.full(rows, window.corpus, np.int16)),
        pa.array(np.full(rows, window.document, np.int32)),
        pa.array(np.full(rows, window.index, np.int32)),
        pa.array(positions),
        pa.array(window.targets[window.scored].astype(np.int32)),
        category,
    ]
    arrays += [pa.array(np.ascontiguousarray(metrics[name])) for name in TOKEN_FIELDS]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def write_tokens(path: Path, batches: Iterable[Any]) -> int:
    """Write batches of `SCHEMA` as one Parquet file, atomically; returns the number of rows.

    Row groups have a fixed size whatever the batches' sizes are, so the bytes depend on the rows alone.
    """
    rows = 0
    held: list[Any] = []
    held_rows = 0
    with atomic_path(path) as temporary, pq.ParquetWriter(
        temporary, SCHEMA, compression="zstd", use_dictionary=["category", "corpus", "document", "window"]
    ) as writer:
        def flush(everything: bool) -> None:
            nonlocal held, held_rows
            table = pa.Table.from_batches(held, SCHEMA).unify_dictionaries().combine_chunks()
            whole = table.num_rows if everything else table.num_rows // _ROW_GROUP * _ROW_GROUP
            for start in range(0, whole, _ROW_GROUP):
                writer.write_table(table.slice(start, min(_ROW_GROUP, whole - start)))
            rest = table.slice(whole)
            held, held_rows = rest.to_batches(), rest.num_rows

        for batch in batches:
            held.append(batch)
            held_rows += batch.num_rows
            rows += batch.num_rows
            if held_rows >= _ROW_GROUP:
                flush(False)
        flush(True)
    return rows


class TokenColumns(Mapping[str, Any]):
    """The columns of a token table, each read when it is asked for and not kept.

    ``only``: (name, value) of a column; rows with another value are left out. Category labels are found with
    `categories`, not as a column.

    Raises:
        OutputError: missing, damaged, or written under another schema version.
    """

    def __init__(self, path: Path, only: tuple[str, Any] | None = None) -> None:
        self._path, self._only = path, only
        try:
            # Not memory-mapped, every page read would count as the process's memory; nor read ahead, all of a file
            # would be in it at once. (pq.read_table would import pandas.)
            self._file = pq.ParquetFile(path, pre_buffer=False)
        except (OSError, pa.ArrowInvalid) as problem:
            raise self._damaged(problem) from None
        version = (self._file.schema_arrow.metadata or {}).get(b"quantvane.schema", b"?").decode()
        if version != str(SCHEMA_VERSION):
            raise OutputError(
                f"'{path}' was written under another schema",
                expected=f"schema {SCHEMA_VERSION}",
                got=f"schema {version}",
                remedy="measure again with this version",
            )

    def _damaged(self, problem: Exception) -> OutputError:
        return OutputError(
            f"cannot read the token table '{self._path}'",
            expected="a Parquet file written by quantvane",
            got=str(problem),
            remedy="run the command that makes it again",
        )

    def __getitem__(self, name: str) -> Any:
        """(T,) numpy array of the column. Raises KeyError for a name that is no column of numbers."""
        if name not in _NUMBERS:
            raise KeyError(name)
        parts = [block[name] for block in self.blocks((name,))]
        return np.concatenate(parts) if parts else np.empty(0)

    def blocks(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The columns ``names`` as numpy arrays, a few thousand rows at a time."""
        needed = [*names, *([self._only[0]] if self._only and self._only[0] not in names else [])]
        for batch in self._batches(needed):
            rows = slice(None) if self._only is None else _equal(batch.column(self._only[0]), self._only[1])
            yield {name: batch.column(name).to_numpy(zero_copy_only=False)[rows] for name in names}

    def _batches(self, names: Sequence[str]) -> Iterator[Any]:
        try:
            yield from self._file.iter_batches(_READ_ROWS, columns=list(names), use_threads=False)
        except (OSError, pa.ArrowInvalid) as problem:
            raise self._damaged(problem) from None

    def __iter__(self) -> Iterator[str]:
        return iter(_NUMBERS)

    def __len__(self) -> int:
        return len(_NUMBERS)

    def only(self, name: str, value: Any) -> TokenColumns:
        """The same table, of the rows alone that have ``value`` in column ``name``; of the whole table."""
        return TokenColumns(self._path, (name, value))

    def categories(self) -> tuple[str, ...]:
        """The labels that occur in the whole table, sorted."""
        found: set[str] = set()
        for batch in self._batches(["category"]):
            found.update(batch.column("category").unique().to_pylist())
        return tuple(sorted(found))


_NUMBERS = tuple(name for name in SCHEMA.names if name != "category")


def _equal(column: Any, value: Any) -> Any:
    """(rows,) bool: where a batch's column has the value."""
    if not pa.types.is_dictionary(column.type):
        return column.to_numpy(zero_copy_only=False) == value
    labels = column.dictionary.to_pylist()
    code = labels.index(value) if value in labels else -1
    return column.indices.to_numpy() == code
