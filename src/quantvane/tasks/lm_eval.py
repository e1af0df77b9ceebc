"""lm-evaluation-harness: ``samples_TASK_DATE.jsonl``, written by ``--log_samples``.

A file may hold several filters (each item once for every filter) and several metrics; which of them counts is the
caller's word, never a guess. Rows of releases before filters were recorded have one unnamed filter.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from quantvane.errors import DataError
from quantvane.tasks.bounded import binary, damaged, jsonl_rows, text_of
from quantvane.tasks.outcomes import Outcome, first_few

__all__ = ["choose", "is_sample", "read_lm_eval", "task_of"]

# keys of a row that are no metric; needed only where a row does not list its metrics
_OTHER = {
    "doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics", "doc_hash",
    "prompt_hash", "target_hash",
}  # fmt: skip
_INVALID = "[invalid]"  # the harness's word for an output in which its pattern found no answer


def is_sample(row: Mapping[str, Any]) -> bool:
    """Does this row come from the harness."""
    return "doc_id" in row and "filtered_resps" in row


def task_of(path: Path) -> str:
    """Task of ``samples_TASK_2025-01-31T12-00-00.123456.jsonl``; the stem where the name is another."""
    stem = path.name[: -len(".jsonl")] if path.name.endswith(".jsonl") else path.stem
    match = re.fullmatch(r"samples_(.+?)(?:_\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?)?", stem)
    return match[1] if match else stem


def choose(present: list[str], wanted: Mapping[str, str], task: str, what: str, where: str) -> str:
    """The one name there is, or the one that was named for the task (or for all tasks, under "").

    Raises:
        DataError: several and none named, or one named that is not there.
    """
    name = wanted.get(task, wanted.get("", None))
    if name is None and len(present) == 1:
        return present[0]
    if name in present and name is not None:
        return name
    raise DataError(
        f"{where} holds {len(present)} {what}s of task '{task}'"
        + (f", none called '{name}'" if name else ""),
        expected=f"one {what}, or its name",
        got=first_few(present, 20) or "none",
        remedy=f"name one: --{what} NAME, or --{what} {task}=NAME for this task only",
    )


def read_lm_eval(path: Path, filters: Mapping[str, str], metrics: Mapping[str, str]) -> Iterator[Outcome]:
    """Outcomes of one file under one filter and one metric.

    Args:
        filters, metrics: task → name; the task "" stands for all others.

    Raises:
        DataError: a row that cannot be read, several filters or metrics and none named, a graded metric.
    """
    task = task_of(path)
    # first pass: which filters there are, without holding the rows
    present: dict[str, int] = {}
    for where, row in jsonl_rows(path):
        if not is_sample(row):
            raise damaged(where, "'doc_id' and 'filtered_resps'", f"fields {', '.join(map(str, row))[:200]}")
        name = text_of(row, "filter", where)
        present[name] = present.get(name, 0) + 1
    if not present:
        return
    chosen = choose(list(present), filters, task, "filter", f"'{path}'")
    for where, row in jsonl_rows(path):
        if text_of(row, "filter", where) == chosen:
            yield _outcome(row, task, metrics, where)


def _outcome(row: dict[str, Any], task: str, metrics: Mapping[str, str], where: str) -> Outcome:
    listed = row.get("metrics")
    if isinstance(listed, list):
        names = [str(name) for name in listed if name in row]
    else:
        names = [k for k, v in row.items() if k not in _OTHER and isinstance(v, bool | int | float)]
    metric = choose(names, metrics, task, "metric", where)
    answer = _answer(row, metric)
    hashes = [text_of(row, key, where) for key in ("doc_hash", "prompt_hash")]
    return Outcome(
        task=task,
        item=text_of(row, "doc_id", where),
        correct=binary(row[metric], metric, where),
        answer=answer,
        state="unparsed" if answer == _INVALID else None,
        prompt="/".join(h for h in hashes if h),
        settings=_settings(row),
        where=where,
    )


def _answer(row: dict[str, Any], metric: str) -> str | None:
    responses = row["filtered_resps"]
    if not isinstance(responses, list) or not responses:
        return None
    first = responses[0]
    if isinstance(first, str):
        # one generated text; several are samples of one item, which have no single answer
        return first if len(responses) == 1 else None
    if metric != "acc":  # only plain accuracy picks the largest log-likelihood
        return None
    try:
        scores = [float(response[0]) for response in responses]
    except (TypeError, ValueError, IndexError, KeyError):
        return None
    usable = len(scores) > 1 and not any(math.isnan(s) for s in scores)
    return str(scores.index(max(scores))) if usable else None


def _settings(row: dict[str, Any]) -> str:
    """The generation settings: the second argument of the first request, where it is a mapping."""
    arguments = row.get("arguments")
    first = arguments.get("gen_args_0") if isinstance(arguments, dict) else None
    settings = first.get("arg_1") if isinstance(first, dict) else None
    return json.dumps(settings, sort_keys=True, ensure_ascii=False) if isinstance(settings, dict) else ""
