"""Reading files that others wrote: nothing is read without a bound, and every complaint names its line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quantvane.errors import DataError

__all__ = ["MAX_FILE", "MAX_LINE", "MAX_ROWS", "binary", "damaged", "json_object", "jsonl_rows", "text_of"]

MAX_LINE = 64 << 20
MAX_ROWS = 5_000_000
MAX_FILE = 1 << 30
"""Bytes of one line, rows of one file, bytes of one JSON document held whole."""


def damaged(where: str, expected: str, got: str, remedy: str = "export the file again") -> DataError:
    """The error of an outcome file that cannot be read."""
    return DataError(f"{where} cannot be read as outcomes", expected=expected, got=got, remedy=remedy)


def json_object(data: bytes, where: str) -> dict[str, Any]:
    """Parse one JSON object.

    Raises:
        DataError: no JSON, not an object, or nested too deeply.
    """
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as problem:  # UnicodeDecodeError is a ValueError
        raise damaged(where, "one JSON object", str(problem) or type(problem).__name__) from None
    if not isinstance(found, dict):
        raise damaged(where, "one JSON object", type(found).__name__)
    return found


def jsonl_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(``file line N``, object) for every line that is not empty.

    Raises:
        DataError: unreadable file, too long a line, too many lines, a line that is no JSON object.
    """
    try:
        with path.open("rb") as file:
            for number in range(1, MAX_ROWS + 2):
                line = file.readline(MAX_LINE + 1)
                if not line:
                    return
                where = f"'{path}' line {number}"
                if len(line) > MAX_LINE or number > MAX_ROWS:
                    raise damaged(where, f"at most {MAX_LINE} bytes a line and {MAX_ROWS} lines", "more")
                if line.strip():
                    yield where, json_object(line, where)
    except OSError as problem:
        raise damaged(
            f"'{path}'", "a readable file", problem.strerror or str(problem), "check the path"
        ) from None


def text_of(row: dict[str, Any], field: str, where: str) -> str:
    """A string or whole number of a row, as text; "" where it is missing or null.

    Raises:
        DataError: another type.
    """
    value = row.get(field)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise damaged(
            where, f"text or a whole number as '{field}'", f"{type(value).__name__} {str(value)[:60]}"
        )
    return str(value)


def binary(value: Any, field: str, where: str) -> bool:
    """True or False, 1 or 0.

    Raises:
        DataError: anything else, graded scores among them.
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and not math.isnan(value) and value in (0, 1):
        return value == 1
    raise damaged(
        where,
        f"true or false, 1 or 0 as '{field}'",
        str(value)[:60],
        "name a metric that says right or wrong; a graded score needs a threshold of your own",
    )
