"""Local JSONL files as lm-eval task configurations, made in memory.

Three forms, known by the fields of their first row:

- answers: ``{"prompt", "answer", "task"?}``: generation after "newline, prompt", up to the next newline, exact match
  after white space at both ends is taken away;
- choices: ``{"prompt", "choices", "answer", "task"?}``, ``answer`` being the right choice or its number;
- pairs: ``{"sentence_good", "sentence_bad", "UID"?}`` (BLiMP): which of two sentences is likelier.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from quantvane.tasks.bounded import damaged, jsonl_rows

__all__ = ["local_configs"]

Row = dict[str, Any]
_MOST_TOKENS = 128
_PAIR = ("sentence_good", "sentence_bad")
_FORMS: tuple[tuple[str, ...], ...] = (_PAIR, ("prompt", "choices", "answer"), ("prompt", "answer"))


def local_configs(path: Path) -> list[dict[str, Any]]:
    """One task configuration for every task in a file, in the order they first appear.

    Raises:
        DataError: a row that is none of the forms, or of another form than the first.
    """
    tasks: defaultdict[str, list[Row]] = defaultdict(list)
    fields: tuple[str, ...] = ()
    for where, row in jsonl_rows(path):
        found = next((form for form in _FORMS if set(form) <= set(row)), ())
        if not found or (fields and found != fields):
            raise damaged(
                where,
                "prompt and answer; prompt, choices and answer; or sentence_good and sentence_bad",
                f"fields {', '.join(map(str, row))[:200]}",
                "write one form to a file, or give an lm-eval task file (.yaml)",
            )
        fields = found
        tasks[str(row.get("task") or row.get("UID") or path.stem)].append(_checked(row, fields, where))
    if not tasks:
        raise damaged(f"'{path}'", "at least one row", "an empty file", "check the path")
    make = _pairs if fields == _PAIR else _choices if "choices" in fields else _answers
    return [
        {
            "task": name,
            "custom_dataset": _dataset(rows),
            "test_split": "test",
            "num_fewshot": 0,
            "target_delimiter": "",
            "metadata": {"version": 1},
            **make(),
        }
        for name, rows in tasks.items()
    ]


def _checked(row: Row, fields: tuple[str, ...], where: str) -> Row:
    kept = {name: row[name] for name in fields}
    if "choices" in kept:
        choices, answer = kept["choices"], kept["answer"]
        if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) for c in choices):
            raise damaged(where, "at least two choices, as text", str(choices)[:100])
        right = choices.index(answer) if answer in choices else answer
        if isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < len(choices):
            raise damaged(where, "as answer one of the choices, or its number from 0", str(answer)[:100])
        kept["answer"] = right
    elif "answer" in kept:
        kept["answer"] = str(kept["answer"])
    texts = [name for name in kept if name not in ("choices", "answer")]
    wrong = [name for name in texts if not isinstance(kept[name], str)]
    if wrong:
        raise damaged(where, f"text as '{wrong[0]}'", type(kept[wrong[0]]).__name__)
    return kept


def _dataset(rows: list[Row]) -> Callable[..., Mapping[str, Any]]:
    def load(**_: Any) -> Mapping[str, Any]:
        from datasets import Dataset

        return {"test": Dataset.from_list(rows)}

    return load


def _exact(doc: Row, results: list[str]) -> dict[str, int]:
    return {"exact_match": int(results[0].strip() == doc["answer"].strip())}


def _metric(name: str) -> list[dict[str, Any]]:
    return [{"metric": name, "aggregation": "mean", "higher_is_better": True}]


def _answers() -> dict[str, Any]:
    return {
        "output_type": "generate_until",
        "doc_to_text": lambda doc: "\n" + doc["prompt"],
        "doc_to_target": lambda doc: doc["answer"],
        "process_results": _exact,
        "metric_list": _metric("exact_match"),
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": _MOST_TOKENS, "do_sample": False},
    }


def _choices() -> dict[str, Any]:
    return {
        "output_type": "multiple_choice",
        "doc_to_text": lambda doc: doc["prompt"],
        "doc_to_choice": lambda doc: doc["choices"],
        "doc_to_target": lambda doc: doc["answer"],
        "metric_list": _metric("acc"),
    }


def _pairs() -> dict[str, Any]:
    return {
        "output_type": "multiple_choice",
        "doc_to_text": lambda doc: "",
        "doc_to_choice": lambda doc: [doc[name] for name in _PAIR],
        "doc_to_target": lambda doc: 0,
        "metric_list": _metric("acc"),
    }
