"""Stored tables into a cohort: runs of ``compare`` and ``bench``, or the compact form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from quantvane.direction.states import count_as
from quantvane.errors import DataError, OutputError, ProtocolMismatchError
from quantvane.run.bench import outcome_path
from quantvane.run.bench_plan import REFERENCE
from quantvane.run.finish import token_path
from quantvane.store.atomic import read_json
from quantvane.store.outcomes import outcome_rows
from quantvane.store.study import is_study, read_study, write_study
from quantvane.store.tokens import TokenColumns
from quantvane.study.cohort import Cohort, Displacement
from quantvane.study.variants import VARIANTS, variant_value

__all__ = ["StudyInput", "export_input", "read_input"]


@dataclass(frozen=True, slots=True)
class StudyInput:
    """A cohort and where it came from (stored in the compact form, shown in the report)."""

    cohort: Cohort
    document: dict[str, Any] = field(default_factory=dict)


def read_input(paths: Sequence[str | Path]) -> StudyInput:
    """Read runs of one cohort, or one directory of the compact form.

    Raises:
        OutputError: a directory that holds no finished run. ProtocolMismatchError: runs of other references or
            candidates. DataError: two runs that say the same, or items that differ between the candidates.
    """
    places = [Path(p) for p in paths]
    compact = [p for p in places if is_study(p)]
    if compact:
        if len(places) > 1:
            raise DataError(
                "the compact form stands alone",
                expected="one directory with study.json, or run directories",
                got=", ".join(map(str, places)),
                remedy="name one or the other",
            )
        return _from_compact(places[0])
    manifests = [_manifest(place) for place in places]
    _same_cohort(places, manifests)
    compares = [(p, m) for p, m in zip(places, manifests, strict=True) if m["command"] == "compare"]
    benches = [(p, m) for p, m in zip(places, manifests, strict=True) if m["command"] == "bench"]
    first = manifests[0]
    names = tuple(first["spec"]["names"])
    displacement, floor, corpora = _displacement(compares, names)
    outcomes = _outcomes(benches, names)
    cohort = Cohort(
        reference=first["reference"]["name"],
        names=names,
        bits=np.array([first["candidates"][n]["bits_per_weight"] or math.nan for n in names], float),
        displacement=tuple(displacement),
        floor=floor,
        **outcomes,
    )
    document = {
        "corpora": corpora,
        "protocols": [m["protocol"]["hash"] for m in manifests],
        "versions": first["versions"],
        "hardware": first["hardware"],
        "specs": {n: _plain_spec(first["candidates"][n]) for n in names},
    }
    return StudyInput(cohort, document)


def _plain_spec(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "fingerprint": record["fingerprint"], "settings": record["settings"], "file_bytes": record["file_bytes"],
        "tensor_types": record["tensor_types"],
    }  # fmt: skip


def _manifest(place: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = read_json(place / "manifest.json")
    if manifest.get("command") not in ("compare", "bench") or manifest.get("state") != "complete":
        raise OutputError(
            f"'{place}' holds no finished run a study can read",
            expected="a finished compare or bench",
            got=f"command {manifest.get('command')}, state {manifest.get('state')}",
            remedy="finish it with the command that began it",
        )
    if manifest["spec"].get("until_decided"):
        raise OutputError(
            f"'{place}' stopped its candidates at different items",
            expected="a bench of all items",
            got="--until-decided",
            remedy="run quantvane bench without --until-decided",
        )
    return manifest


def _same_cohort(places: Sequence[Path], manifests: Sequence[Mapping[str, Any]]) -> None:
    if not manifests:
        raise DataError("there is nothing to study", expected="at least one run directory", got="none", remedy="")
    first = manifests[0]
    for place, other in zip(places[1:], manifests[1:], strict=True):
        found = _differences(first, other)
        if found:
            raise ProtocolMismatchError(
                f"'{places[0]}' and '{place}' are not of one cohort",
                expected="the same reference and candidates, by name, weights and settings",
                got="; ".join(found[:8]) + (f"; and {len(found) - 8} more" if len(found) > 8 else ""),
                remedy="run compare and bench on the same models under the same settings",
            )


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    out = []
    if one["reference"]["fingerprint"] != other["reference"]["fingerprint"]:
        out.append(f"reference {one['reference']['name']} against {other['reference']['name']}")
    ours, theirs = one["candidates"], other["candidates"]
    sides = (("only in the first", set(ours) - set(theirs)), ("only in the other", set(theirs) - set(ours)))
    for words, names in sides:
        if names:
            out.append(f"{words}: {', '.join(sorted(names))}")
    for name in sorted(set(ours) & set(theirs)):
        if ours[name]["fingerprint"] != theirs[name]["fingerprint"]:
            out.append(f"'{name}' has other weights")
        elif ours[name]["settings"] != theirs[name]["settings"]:
            out.append(f"'{name}' has other settings")
    return out


def _displacement(
    runs: Sequence[tuple[Path, Mapping[str, Any]]], names: Sequence[str]
) -> tuple[list[Displacement], float, list[dict[str, Any]]]:
    out: list[Displacement] = []
    corpora: list[dict[str, Any]] = []
    floor = math.nan
    for place, manifest in runs:
        summary = read_json(place / "summary.json")
        entries = {entry["name"]: entry for entry in summary["candidates"]}
        context = int(manifest["protocol"]["context"])
        held = summary.get("noise_floor", {}).get("kld_mean")
        if math.isnan(floor) and isinstance(held, int | float):
            floor = float(held)
        many = len(summary["corpora"]) > 1
        extras = {name: _token_extras(place, name) for name in names}
        for number, corpus in enumerate(summary["corpora"]):
            corpora.append({"name": corpus["name"], "context": context, "tokens": corpus["tokens"]})
            parts = [entries[n]["corpora"][corpus["name"]] if many else entries[n] for n in names]
            for variant in VARIANTS:
                if any((d.variant, d.corpus, d.context) == (variant, corpus["name"], context) for d in out):
                    raise DataError(
                        f"two runs measure '{corpus['name']}' at context {context}",
                        expected="one run for each corpus and context",
                        got=str(place),
                        remedy="leave one of them out",
                    )
                values = np.array(
                    [variant_value(variant, p, extras[n].get(number, {})) for n, p in zip(names, parts, strict=True)]
                )
                reason = "" if np.isfinite(values).any() else "not stored in this run"
                out.append(Displacement(variant, corpus["name"], context, values, reason))
    return out, floor, corpora


def _token_extras(place: Path, name: str) -> dict[int, dict[str, float]]:
    """Corpus number → what only the token table gives; nothing where the table was removed."""
    path = token_path(place, name)
    if not path.exists():
        return {}
    columns = TokenColumns(path)
    moved, corpus = np.abs(columns["nll_cand"] - columns["nll_ref"]), columns["corpus"]
    return {int(c): {"abs_dnll": float(moved[corpus == c].mean())} for c in np.unique(corpus)}


def _outcomes(runs: Sequence[tuple[Path, Mapping[str, Any]]], names: Sequence[str]) -> dict[str, Any]:
    tasks: list[str] = []
    groups: list[str] = []
    group_of: list[int] = []
    blocks: list[dict[str, Any]] = []
    for place, _ in runs:
        group = place.resolve().name
        group = group if group not in groups else f"{group} #{len(groups) + 1}"
        groups.append(group)
        reference = outcome_rows(outcome_path(place, REFERENCE))
        keys = [(row["task"], row["item"]) for row in reference]
        known: dict[str, int] = {}
        for task in dict.fromkeys(task for task, _ in keys):
            known[task] = len(tasks)
            tasks.append(task if task not in tasks else f"{task} ({group})")
            group_of.append(len(groups) - 1)
        candidates = [_aligned(place, name, keys) for name in names]
        blocks.append(
            {
                "task": np.array([known[task] for task, _ in keys], np.int32),
                "choice": np.array([row["margin"] is not None for row in reference], bool),
                "ref_correct": _right(reference),
                "ref_evidence": _evidence(reference),
                "correct": np.array([_right(rows) for rows in candidates], bool),
                "kld": np.array([[_float(row["kld"]) for row in rows] for rows in candidates], np.float32),
                "evidence": np.array([_evidence(rows) for rows in candidates], np.float32),
            }
        )
    out: dict[str, Any] = {"tasks": tuple(tasks), "groups": tuple(groups), "group": np.array(group_of, np.int32)}
    count = len(names)
    empty = {
        "task": np.empty(0, np.int32), "choice": np.empty(0, bool), "ref_correct": np.empty(0, bool),
        "ref_evidence": np.empty(0, np.float32), "correct": np.empty((count, 0), bool),
        "kld": np.empty((count, 0), np.float32), "evidence": np.empty((count, 0), np.float32),
    }  # fmt: skip
    for name, nothing in empty.items():
        out[name] = np.concatenate([nothing, *[block[name] for block in blocks]], axis=-1)
    return out


def _aligned(place: Path, name: str, keys: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
    rows = {(row["task"], row["item"]): row for row in outcome_rows(outcome_path(place, name))}
    missing = [key for key in keys if key not in rows]
    if missing or len(rows) != len(keys):
        raise DataError(
            f"'{name}' and the reference do not share their items in '{place}'",
            expected=f"{len(keys)} items",
            got=f"{len(rows)} items, {len(missing)} of the reference's missing",
            remedy="run the bench again on all of them",
        )
    return [rows[key] for key in keys]


def _right(rows: Sequence[Mapping[str, Any]]) -> Any:
    right, _ = count_as([bool(row["correct"]) for row in rows], [row["state"] for row in rows])
    return np.asarray(right, bool)


def _float(value: Any) -> float:
    return math.nan if value is None else float(value)


def _evidence(rows: Sequence[Mapping[str, Any]]) -> Any:
    return np.array([_float(r["margin"] if r["margin"] is not None else r["log_prob"]) for r in rows], np.float32)


def export_input(found: StudyInput, path: Path) -> None:
    """Write the compact form; `read_input` of it gives the same cohort."""
    cohort = found.cohort
    count = len(cohort.names)
    displacement: dict[str, list[Any]] = {k: [] for k in ("candidate", "variant", "corpus", "context", "value")}
    for metric in cohort.displacement:
        for at, value in enumerate(metric.values):
            for key, cell in zip(
                displacement, (at, metric.variant, metric.corpus, metric.context, value), strict=True
            ):
                displacement[key].append(cell)
    choice = [bool(cohort.choice[cohort.task == t].all()) for t in range(len(cohort.tasks))]
    document = {
        "reference": cohort.reference,
        "candidates": [
            {"name": n, "bits_per_weight": b} for n, b in zip(cohort.names, cohort.bits.tolist(), strict=True)
        ],
        "groups": list(cohort.groups),
        "tasks": [
            {"name": n, "group": int(g), "choice": c}
            for n, g, c in zip(cohort.tasks, cohort.group, choice, strict=True)
        ],
        "noise_floor": {"kld_mean": cohort.floor},
        "metrics": [
            {"variant": d.variant, "corpus": d.corpus, "context": d.context, "reason": d.reason}
            for d in cohort.displacement
        ],
        **found.document,
    }
    tables: dict[str, dict[str, Any]] = {
        "displacement": displacement,
        "items": {"task": cohort.task, "correct": cohort.ref_correct, "evidence": cohort.ref_evidence},
        "outcomes": {
            "correct": cohort.correct.ravel(), "kld": cohort.kld.ravel(), "evidence": cohort.evidence.ravel(),
        },
    }  # fmt: skip
    _check_form(count, cohort)
    write_study(path, document, tables)


def _check_form(count: int, cohort: Cohort) -> None:
    mixed = [t for i, t in enumerate(cohort.tasks) if len(np.unique(cohort.choice[cohort.task == i])) > 1]
    if mixed or count > 2**15 - 1:
        raise DataError("this cohort has no compact form", expected="tasks of one kind", got=", ".join(mixed))


_OWN = ("schema", "reference", "candidates", "groups", "tasks", "noise_floor", "metrics")


def _from_compact(path: Path) -> StudyInput:
    document, tables = read_study(path)
    names = tuple(c["name"] for c in document["candidates"])
    count = len(names)
    values = np.asarray(tables["displacement"]["value"], float).reshape(-1, count)
    tasks = document["tasks"]
    task = np.asarray(tables["items"]["task"], np.int32)
    choice = np.array([t["choice"] for t in tasks], bool)
    shape = (count, len(task))
    floor = document["noise_floor"]["kld_mean"]
    cohort = Cohort(
        reference=document["reference"],
        names=names,
        bits=np.array([_float(c["bits_per_weight"]) for c in document["candidates"]]),
        displacement=tuple(
            Displacement(m["variant"], m["corpus"], int(m["context"]), row, m["reason"])
            for m, row in zip(document["metrics"], values, strict=True)
        ),
        tasks=tuple(t["name"] for t in tasks),
        groups=tuple(document["groups"]),
        task=task,
        group=np.array([t["group"] for t in tasks], np.int32),
        choice=choice[task] if len(task) else np.empty(0, bool),
        ref_correct=np.asarray(tables["items"]["correct"], bool),
        ref_evidence=np.asarray(tables["items"]["evidence"], np.float32),
        correct=np.asarray(tables["outcomes"]["correct"], bool).reshape(shape),
        kld=np.asarray(tables["outcomes"]["kld"], np.float32).reshape(shape),
        evidence=np.asarray(tables["outcomes"]["evidence"], np.float32).reshape(shape),
        floor=_float(floor),
    )
    return StudyInput(cohort, {k: v for k, v in document.items() if k not in _OWN})
