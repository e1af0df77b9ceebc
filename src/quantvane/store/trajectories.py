"""Recorded trajectories: one row a token, Parquet or JSON lines, with the deployment they belong to.

Parquet: columns ``trajectory``, ``token`` and the five measured numbers, null where one is missing; the description
lies in the schema's metadata. JSON lines: the description, then ``{"trajectory": i, "steps": [[…five…], …]}``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from quantvane.errors import DataError
from quantvane.store.atomic import atomic_path, to_json, write_bytes
from quantvane.store.journal import read_journal
from quantvane.types import FloatArray

__all__ = ["NUMBERS", "journal_trajectories", "read_trajectories", "trajectory_batch", "write_trajectories"]

NUMBERS = ("lambda_low", "lambda_high", "entropy", "kl", "nll")
_KEY = b"quantvane.trajectories"
_SCHEMA = 1


def trajectory_batch(trajectories: Sequence[FloatArray], first: int) -> Any:
    """Trajectories (T, 5), numbered from ``first``, as one record batch; each must have a row."""
    lengths = [len(rows) for rows in trajectories]
    rows = np.concatenate(trajectories) if trajectories else np.empty((0, len(NUMBERS)))
    numbers = np.repeat(np.arange(first, first + len(lengths), dtype=np.int32), lengths)
    tokens = np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]) if lengths else np.empty(0, np.int32)
    columns = [pa.array(numbers), pa.array(tokens)]
    columns += [pa.array(rows[:, i], mask=np.isnan(rows[:, i])) for i in range(len(NUMBERS))]
    return pa.record_batch(columns, names=["trajectory", "token", *NUMBERS])


def _arrays(table: Any, count: int) -> list[FloatArray]:
    numbers: npt.NDArray[np.int64] = table["trajectory"].to_numpy().astype(np.int64)
    columns = [table[name].to_numpy(zero_copy_only=False).astype(np.float64) for name in NUMBERS]
    rows = np.column_stack(columns) if len(numbers) else np.empty((0, len(NUMBERS)))
    order = np.argsort(numbers, kind="stable")
    edges = np.searchsorted(numbers[order], np.arange(count + 1))
    return [rows[order[a:b]] for a, b in pairwise(edges)]


def journal_trajectories(path: Path) -> tuple[list[FloatArray], int]:
    """The whole trajectories in a journal, and how many units they were written in."""
    found: list[FloatArray] = []
    units = 0
    for batches in read_journal(path):
        table = pa.Table.from_batches(batches)
        first = len(found)
        count = int(table["trajectory"][-1].as_py()) + 1 - first if len(table) else 0
        local = table.set_column(0, "trajectory", pa.array(table["trajectory"].to_numpy() - first))
        found += _arrays(local, count)
        units += 1
    return found, units


def write_trajectories(path: Path, trajectories: Sequence[FloatArray], about: Mapping[str, Any]) -> None:
    """Write a file atomically; ``.jsonl`` gives JSON lines, anything else Parquet.

    Args:
        trajectories: (T, 5) each, columns `NUMBERS`, NaN where missing. about: the description; plain JSON.
    """
    about = {"schema": _SCHEMA, "trajectories": len(trajectories), **about}
    if path.suffix.lower() == ".jsonl":
        lines = [to_json(about, indent=None)]
        lines += [to_json({"trajectory": i, "steps": rows}, indent=None) for i, rows in enumerate(trajectories)]
        write_bytes(path, ("\n".join(lines) + "\n").encode())
        return
    table = pa.Table.from_batches([trajectory_batch(trajectories, 0)])
    table = table.replace_schema_metadata({_KEY: to_json(about, indent=None).encode()})
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_trajectories(path: Path) -> tuple[list[FloatArray], dict[str, Any]]:
    """Trajectories (T, 5) and their description.

    Raises:
        DataError: missing, damaged, or not such a file.
    """
    try:
        if path.suffix.lower() == ".jsonl":
            lines = path.read_text(encoding="utf-8").splitlines()
            about = json.loads(lines[0])
            rows = [json.loads(line)["steps"] for line in lines[1:] if line.strip()]
            found = [np.array(r, np.float64).reshape(-1, len(NUMBERS)) for r in rows]
        else:
            table = pq.read_table(path)
            about = json.loads((table.schema.metadata or {})[_KEY])
            found = _arrays(table, int(about["trajectories"]))
        if about["schema"] != _SCHEMA or len(found) != about["trajectories"]:
            raise ValueError(f"schema {about['schema']}, {len(found)} trajectories of {about['trajectories']}")
    except (OSError, ValueError, KeyError, TypeError, IndexError, pa.ArrowException) as problem:
        raise DataError(
            f"'{path}' holds no recorded trajectories",
            expected="a Parquet or JSONL file written by quantvane calibrate",
            got=f"{type(problem).__name__}: {problem}",
            remedy="record them with quantvane calibrate MODEL",
        ) from None
    return found, about
