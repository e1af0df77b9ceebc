"""The outcome table: one row an item, one Parquet file a model, and the generic JSONL that ``flips`` reads."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from quantvane.errors import OutputError
from quantvane.store.atomic import atomic_path, write_bytes

__all__ = ["OUTCOMES", "OUTCOMES_VERSION", "outcome_batch", "outcome_rows", "write_outcomes", "write_outcomes_jsonl"]

OUTCOMES_VERSION = 1
OUTCOMES = pa.schema(
    [
        pa.field("task", pa.string()),
        pa.field("item", pa.int32()),
        pa.field("correct", pa.bool_()),
        pa.field("state", pa.string()),
        pa.field("answer", pa.string()),
        pa.field("prompt", pa.string()),
        pa.field("settings", pa.string()),
        pa.field("finish", pa.string()),
        pa.field("tokens", pa.list_(pa.int32())),
        pa.field("margin", pa.float64()),
        pa.field("log_prob", pa.float64()),
        pa.field("kld", pa.float64()),
        pa.field("scored", pa.int32()),
        pa.field("agreed", pa.int32()),
        pa.field("divergence", pa.int32()),
        pa.field("unsure", pa.list_(pa.int32())),
        pa.field("note", pa.string()),
    ],
    metadata={"quantvane.schema": str(OUTCOMES_VERSION)},
)


_NAMED = ("item", "task", "correct", "answer", "state", "prompt", "tokens")


def outcome_batch(rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any] | None = None) -> Any:
    """Rows (fields of `OUTCOMES`; NaN becomes null) as a record batch; ``facts`` travel as metadata."""
    columns = []
    for field in OUTCOMES:
        values = [row[field.name] for row in rows]
        if pa.types.is_floating(field.type):
            values = [None if v is None or math.isnan(v) else float(v) for v in values]
        elif pa.types.is_list(field.type):
            values = [[int(v) for v in value] for value in values]
        columns.append(pa.array(values, field.type))
    schema = OUTCOMES.with_metadata({**(OUTCOMES.metadata or {}), b"facts": json.dumps(dict(facts or {})).encode()})
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def write_outcomes(path: Path, batches: Iterable[Any]) -> int:
    """Write record batches as one Parquet file, atomically; returns the number of rows."""
    table = pa.Table.from_batches([b.replace_schema_metadata(OUTCOMES.metadata) for b in batches], OUTCOMES)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return int(table.num_rows)


def outcome_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of an outcome table.

    Raises:
        OutputError: missing, damaged, or written under another schema version.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as problem:
        raise OutputError(
            f"cannot read the outcome table '{path}'",
            expected="a Parquet file written by quantvane bench",
            got=str(problem),
            remedy="run the command that makes it again",
        ) from None
    version = (table.schema.metadata or {}).get(b"quantvane.schema", b"?").decode()
    if version != str(OUTCOMES_VERSION):
        raise OutputError(
            f"'{path}' was written under another schema",
            expected=f"schema {OUTCOMES_VERSION}",
            got=f"schema {version}",
            remedy="run the bench again with this version",
        )
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def write_outcomes_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """The same outcomes in the generic form: item, task, correct, answer, state, prompt_hash, then the rest."""
    lines = []
    for row in rows:
        rest = {k: v for k, v in row.items() if k not in _NAMED}
        out = {
            "item": row["item"],
            "task": row["task"],
            "correct": row["correct"],
            "answer": row["answer"],
            "state": row["state"],
            "prompt_hash": row["prompt"],
            "generated": len(row["tokens"]),
            **{k: v for k, v in rest.items() if v not in (None, "", [])},
        }
        lines.append(json.dumps({k: v for k, v in out.items() if v is not None}, ensure_ascii=False))
    write_bytes(path, ("\n".join(lines) + "\n").encode())
