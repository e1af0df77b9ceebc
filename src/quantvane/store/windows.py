"""The window tables of ``fisher``: one row a window, one Parquet file a candidate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from quantvane.errors import OutputError
from quantvane.store.atomic import atomic_path

__all__ = ["KEYS", "READINGS", "join_models", "model_schema", "read_windows", "write_windows"]

SCHEMA_VERSION = 1
KEYS = ("corpus", "document", "window", "tokens")
READINGS = ("lambda", "upper", "residual")


def model_schema(spaces: Sequence[str]) -> Any:
    """One model's rows: the window's place, mean NLL and entropy (nats), and per space λ, its bound and residual."""
    fields = [pa.field(name, pa.int32()) for name in KEYS]
    fields += [pa.field(name, pa.float64()) for name in ("nll", "entropy")]
    fields += [pa.field(f"{what}_{space}", pa.float64()) for space in spaces for what in READINGS]
    return pa.schema(fields)


def join_models(reference: Any, candidate: Any, spaces: Sequence[str]) -> Any:
    """Two tables of `model_schema` over the same windows → one, with ``sigma_SPACE`` = λ_cand/λ_ref.

    σ is null where λ_ref is 0 or either is not finite.

    Raises:
        OutputError: the tables hold different windows.
    """
    if reference.select(KEYS) != candidate.select(KEYS):
        raise OutputError(
            "the journals of two models hold different windows",
            expected=f"{reference.num_rows} windows",
            got=f"{candidate.num_rows} windows",
            remedy="remove the run directory and measure again",
        )
    columns: dict[str, Any] = {name: reference[name] for name in KEYS}
    for name in ("nll", "entropy"):
        columns |= {f"{name}_ref": reference[name], f"{name}_cand": candidate[name]}
    for space in spaces:
        pairs = zip(reference[f"lambda_{space}"].to_pylist(), candidate[f"lambda_{space}"].to_pylist(), strict=True)
        ratios = [b / a if a > 0 and b >= 0 else None for a, b in pairs]  # NaN compares false
        columns[f"sigma_{space}"] = pa.array(ratios, pa.float64())
        for what in READINGS:
            key = f"{what}_{space}"
            columns |= {f"{key}_ref": reference[key], f"{key}_cand": candidate[key]}
    return pa.table(columns)


def write_windows(path: Path, table: Any) -> None:
    """Write one table as Parquet, atomically."""
    tagged = table.replace_schema_metadata({"quantvane.schema": str(SCHEMA_VERSION)})
    with atomic_path(path) as temporary:
        pq.write_table(tagged, temporary, compression="zstd")


def read_windows(path: Path) -> Any:
    """A table written by `write_windows`.

    Raises:
        OutputError: missing or damaged, or of another schema version.
    """
    try:
        table = pq.ParquetFile(path).read()
    except (OSError, pa.ArrowInvalid) as problem:
        raise OutputError(
            f"cannot read the window table '{path}'",
            expected="a Parquet file written by quantvane",
            got=str(problem),
            remedy="run the command that makes it again",
        ) from None
    version = (table.schema.metadata or {}).get(b"quantvane.schema", b"?").decode()
    if version != str(SCHEMA_VERSION):
        raise OutputError(
            f"'{path}' was written under another schema",
            expected=f"schema {SCHEMA_VERSION}",
            got=f"schema {version}",
            remedy="measure again with this version",
        )
    return table
