"""The compact form of a study's input: what ``quantvane study`` needs of many runs, in a few megabytes.

A directory with ``study.json`` (names, tasks, protocols, origin), ``displacement.parquet`` (one row a candidate and
metric), ``items.parquet`` (one row an item: its task and the reference's outcome) and ``outcomes.parquet`` (one row an
item and candidate, candidate by candidate, items in their order). Answers' texts and tokens are not kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from quantvane.errors import OutputError
from quantvane.store.atomic import atomic_path, make_directory, read_json, write_json

__all__ = ["STUDY_VERSION", "is_study", "read_study", "write_study"]

STUDY_VERSION = 1
SCHEMAS: dict[str, Any] = {
    "displacement": pa.schema(
        [
            ("candidate", pa.int16()), ("variant", pa.dictionary(pa.int8(), pa.string())),
            ("corpus", pa.dictionary(pa.int8(), pa.string())), ("context", pa.int32()), ("value", pa.float64()),
        ]
    ),
    "items": pa.schema([("task", pa.int16()), ("correct", pa.bool_()), ("evidence", pa.float32())]),
    "outcomes": pa.schema([("correct", pa.bool_()), ("kld", pa.float32()), ("evidence", pa.float32())]),
}  # fmt: skip


def is_study(path: Path) -> bool:
    """Whether a directory holds the compact form."""
    return (path / "study.json").is_file()


def write_study(path: Path, document: Mapping[str, Any], tables: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the three tables (columns by name; NaN becomes null) and then ``study.json``."""
    make_directory(path)
    for name, schema in SCHEMAS.items():
        columns = [pa.array(tables[name][field.name], from_pandas=True).cast(field.type) for field in schema]
        with atomic_path(path / f"{name}.parquet") as temporary:
            floats = [field.name for field in schema if pa.types.is_float32(field.type)]
            others = [field.name for field in schema if not pa.types.is_float32(field.type)]
            pq.write_table(
                pa.Table.from_arrays(columns, schema=schema), temporary, compression="zstd", compression_level=12,
                use_dictionary=others, use_byte_stream_split=floats,
            )  # fmt: skip
    write_json(path / "study.json", {"schema": STUDY_VERSION, **document})


def read_study(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """``study.json`` and the tables as numpy columns (null becomes NaN).

    Raises:
        OutputError: missing, damaged, or written under another schema version.
    """
    document = read_json(path / "study.json")
    if document.get("schema") != STUDY_VERSION:
        raise OutputError(
            f"'{path}' was written under another schema",
            expected=f"schema {STUDY_VERSION}",
            got=f"schema {document.get('schema')}",
            remedy="export it again with this version",
        )
    tables: dict[str, dict[str, Any]] = {}
    for name, schema in SCHEMAS.items():
        try:
            table = pq.ParquetFile(path / f"{name}.parquet").read()
            tables[name] = {
                field.name: table[field.name].cast(pa.string()).to_pylist()
                if pa.types.is_dictionary(field.type)
                else table[field.name].to_numpy()
                for field in schema
            }
        except (OSError, KeyError, pa.ArrowInvalid) as problem:
            raise OutputError(
                f"cannot read '{path / name}.parquet'",
                expected="a table written by quantvane study --export",
                got=str(problem),
                remedy="export it again",
            ) from None
    return document, tables
