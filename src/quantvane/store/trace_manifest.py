"""What a trace says of itself: light to ask, so that naming a model loads no table library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from quantvane.errors import TraceError

__all__ = ["AGAIN", "ROWS", "SCHEMA", "is_trace", "read_manifest"]

SCHEMA = 1
ROWS = "rows.bin"
AGAIN = "record the reference again, or copy the trace again from where it was made"


def is_trace(path: str | Path) -> bool:
    """Whether a path is a directory that ``quantvane record`` began."""
    try:
        held = json.loads((Path(path) / "manifest.json").read_bytes())
    except (OSError, ValueError):
        return (Path(path) / ROWS).exists()
    return isinstance(held, dict) and held.get("command") == "record"


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The manifest of a complete trace.

    Raises:
        TraceError: missing, damaged, written under another schema, or not finished.
    """
    place = Path(path) / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(place.read_bytes())
        found = (manifest["command"], manifest["schema"], manifest["state"])
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise TraceError(
            f"'{path}' is no trace, or its manifest is damaged",
            expected="a directory made by quantvane record",
            got=f"{type(problem).__name__}: {problem}",
            remedy=AGAIN,
        ) from None
    if found[:2] != ("record", SCHEMA):
        raise TraceError(
            f"'{path}' cannot be read by this version",
            expected=f"a trace of schema {SCHEMA}",
            got=f"'{found[0]}' of schema {found[1]}",
            remedy="record the reference again with this version",
        )
    if found[2] != "complete":
        raise TraceError(
            f"the trace '{path}' is not finished",
            expected="a complete trace",
            got=f"state '{found[2]}'",
            remedy="run the same record command again; it continues",
        )
    return manifest
