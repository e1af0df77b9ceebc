"""Generic JSONL: ``{"item", "task", "correct", "answer"?, "cluster"?, "state"?, "prompt_hash"?, "settings"?}``.

Some names have a declared second spelling (``item_id``, ``prediction``); other names are mapped by the caller.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from quantvane.direction.states import STATES
from quantvane.errors import SpecError
from quantvane.tasks.bounded import binary, damaged, jsonl_rows, text_of
from quantvane.tasks.outcomes import Outcome

__all__ = ["FIELDS", "read_generic"]

FIELDS: dict[str, tuple[str, ...]] = {
    "item": ("item", "item_id"),
    "task": ("task",),
    "correct": ("correct",),
    "answer": ("answer", "prediction"),
    "cluster": ("cluster",),
    "state": ("state",),
    "prompt": ("prompt_hash",),
    "settings": ("settings",),
}
"""Our field → the names it is looked for under."""


def read_generic(path: Path, fields: Mapping[str, str] | None = None) -> Iterator[Outcome]:
    """Outcomes of one file, line by line.

    Args:
        fields: our field → column, in place of `FIELDS`; a dot reaches into an object (``metadata.subject``).

    Raises:
        SpecError: a field that does not exist.
        DataError: a line that cannot be read, with its number.
    """
    given = dict(fields or {})
    unknown = [name for name in given if name not in FIELDS]
    if unknown:
        raise SpecError(
            f"'{unknown[0]}' is no field of an outcome",
            expected=", ".join(FIELDS),
            got=unknown[0],
            remedy="for example --field cluster=metadata.subject",
        )
    for where, row in jsonl_rows(path):
        found = {name: _value(row, name, given.get(name), where) for name in FIELDS}
        item, task = text_of(found, "item", where), text_of(found, "task", where)
        if not item or not task:
            raise damaged(
                where,
                "'item' and 'task'",
                f"fields {', '.join(map(str, row))[:200]}",
                "name the columns, for example --field item=id --field task=benchmark",
            )
        yield Outcome(
            task=task,
            item=item,
            correct=_correct(found, where),
            answer=_answer(found["answer"]),
            state=_state(found["state"], where),
            cluster=text_of(found, "cluster", where) or None,
            prompt=text_of(found, "prompt", where),
            settings=_canonical(found["settings"]),
            where=where,
        )


def _value(row: dict[str, Any], name: str, column: str | None, where: str) -> Any:
    if column is not None:
        value: Any = row
        for part in [column] if column in row else column.split("."):
            if not isinstance(value, dict) or part not in value:
                raise damaged(
                    where, f"'{column}' as {name}", f"fields {', '.join(map(str, row))[:200]}", "name another"
                )
            value = value[part]
        return value
    present = [column for column in FIELDS[name] if column in row]
    if len(present) > 1:
        raise damaged(
            where,
            f"one column for '{name}'",
            " and ".join(present),
            f"name the one meant: --field {name}={present[0]}",
        )
    return row[present[0]] if present else None


def _correct(found: dict[str, Any], where: str) -> bool | None:
    if found["correct"] is not None:
        return binary(found["correct"], "correct", where)
    if found["state"] in ("correct", "wrong"):
        return bool(found["state"] == "correct")
    if found["state"] is None:
        raise damaged(where, "'correct', or a 'state' that says why there is none", "neither")
    return None


def _state(value: Any, where: str) -> str | None:
    if value is None:
        return None
    if isinstance(value, str) and value in STATES:
        return value
    raise damaged(where, f"a state of {', '.join(STATES)}", str(value)[:60], "map other words to these")


def _answer(value: Any) -> str | None:
    return None if value is None else _canonical(value)


def _canonical(value: Any) -> str:
    """Text of any JSON value; equal values have equal texts."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
