"""``choose``: verdicts over the stored outcomes of a bench."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from quantvane.choose.verdicts import Choice, Entry, Rules, choose_among
from quantvane.direction.states import count_as
from quantvane.run.bench import load_bench, outcome_path
from quantvane.run.bench_plan import FLOOR, REFERENCE
from quantvane.store.atomic import read_json
from quantvane.store.outcomes import outcome_rows

__all__ = ["choice_document", "choose"]


def choose(run: str | Path, *, margin: float, alpha: float = 0.05, max_bytes: float = float("inf")) -> Choice:
    """The smallest candidate of a bench that is certified equivalent within the margin.

    Args:
        run: directory of a finished bench. margin: loss in score that would not matter, declared beforehand.
        alpha: error probability for all candidates together. max_bytes: largest weights file that will do.

    Raises:
        OutputError: no finished bench there. DataError: margin or alpha out of range.
    """
    out = Path(run)
    load_bench(out)
    manifest = read_json(out / "manifest.json")
    reference = _entry(out, REFERENCE, manifest["reference"])
    candidates = [_entry(out, name, manifest["candidates"][name]) for name in manifest["spec"]["names"]]
    flips = 0
    if manifest["spec"]["floor"]:
        floor = _entry(out, FLOOR, manifest["reference"])
        flips = sum(right != reference.correct[key] for key, right in floor.correct.items())
    rules = Rules(margin, alpha, max_bytes, bool(manifest["spec"]["until_decided"]), flips)
    return choose_among(reference, candidates, rules)


def _entry(out: Path, name: str, record: dict[str, Any]) -> Entry:
    rows = outcome_rows(outcome_path(out, name))
    right, _ = count_as([bool(row["correct"]) for row in rows], [row["state"] for row in rows])
    keys = [(row["task"], row["item"]) for row in rows]
    return Entry(record["name"], int(record["file_bytes"]), dict(zip(keys, right.tolist(), strict=True)))


def choice_document(choice: Choice) -> dict[str, Any]:
    """The JSON document of ``choose --json``; sizes in bytes."""
    rules = choice.rules
    return {
        "schema": 1,
        "rules": asdict(rules),
        "chosen": choice.chosen,
        "reason": choice.reason,
        **{word: choice.of(word) for word in ("equivalent", "better", "undecided", "worse")},
        "pareto_front": list(choice.front),
        "candidates": [asdict(v) | {"qualifies": v.qualifies} for v in choice.verdicts],
    }
