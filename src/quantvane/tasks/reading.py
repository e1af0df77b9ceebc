"""Outcome files of any known format, one by one or a directory of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from quantvane.errors import DataError
from quantvane.tasks.bounded import MAX_FILE, json_object, jsonl_rows
from quantvane.tasks.generic import read_generic
from quantvane.tasks.inspect_logs import is_log, read_inspect
from quantvane.tasks.lm_eval import is_sample, read_lm_eval
from quantvane.tasks.outcomes import Outcome, OutcomeSet

__all__ = ["ReadOptions", "read_outcomes"]

_SUFFIXES = (".jsonl", ".eval", ".json")


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What the caller names where a file holds several.

    Attributes:
        filters, metrics: task → name, the task "" standing for all others. A metric is an lm-eval metric or an
            inspect scorer.
        fields: our field → column of generic JSONL.
    """

    filters: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)


def read_outcomes(path: Path | str, name: str = "", options: ReadOptions | None = None) -> OutcomeSet:
    """Read a file, or every outcome file in a directory and below it.

    lm-eval samples are known by their fields, inspect logs by their suffix (``.eval``) or fields (``.json``);
    every other ``.jsonl`` is generic. In a directory, ``.json`` files that are no inspect logs are passed over.

    Args:
        name: what the set is called; by default the file's or directory's name.

    Raises:
        DataError: nothing there, or a file that cannot be read.
    """
    place = Path(path)
    options = options or ReadOptions()
    if place.is_dir():
        files = sorted(p for p in place.rglob("*") if p.suffix in _SUFFIXES and p.is_file())
        files = [p for p in files if p.suffix != ".json" or _is_inspect_json(p)]
    else:
        files = [place]
    if not files or not place.exists() or files[0].suffix not in _SUFFIXES:
        raise DataError(
            f"no outcomes at '{place}'",
            expected=f"a {', '.join(_SUFFIXES)} file, or a directory that holds some",
            got="nothing" if not place.exists() else "none of these",
            remedy="check the path; lm-eval writes samples with --log_samples",
        )
    found = tuple(outcome for file in files for outcome in _read(file, options))
    if not found:
        raise DataError(
            f"'{place}' holds no outcomes",
            expected="at least one item",
            got=f"{len(files)} empty file(s)",
            remedy="evaluate first",
        )
    return OutcomeSet(name or (place.resolve().name if place.is_dir() else place.stem), found)


def _read(path: Path, options: ReadOptions) -> Iterator[Outcome]:
    if path.suffix in (".eval", ".json"):
        return read_inspect(path, options.metrics)
    first = next(jsonl_rows(path), None)
    if first is not None and is_sample(first[1]):
        return read_lm_eval(path, options.filters, options.metrics)
    return read_generic(path, options.fields)


def _is_inspect_json(path: Path) -> bool:
    try:
        return path.stat().st_size <= MAX_FILE and is_log(json_object(path.read_bytes(), f"'{path}'"))
    except (OSError, DataError):
        return False
