"""``bench``: outcomes per item by running the models, then their flips."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantvane.engines.registry import check_model
from quantvane.errors import OutputError, QuantvaneError
from quantvane.run.bench_plan import FLOOR, REFERENCE, BenchSpec, jobs_of
from quantvane.run.bench_work import bench_journal
from quantvane.run.compare import default_out, is_complete
from quantvane.run.flips import FlipsResult, compare_sets
from quantvane.run.local import OnEvent, run_worker
from quantvane.run.plan import candidate_names
from quantvane.spec import ModelSpec, slug
from quantvane.stats.sequential import betting
from quantvane.store.atomic import make_directory, read_json, to_json, write_json
from quantvane.store.journal import read_journal
from quantvane.store.outcomes import outcome_rows, write_outcomes, write_outcomes_jsonl
from quantvane.tasks.harness import require_lm_eval
from quantvane.tasks.outcomes import Outcome, OutcomeSet

__all__ = ["Bench", "bench", "load_bench", "outcome_path", "run_bench"]

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Bench:
    """A finished bench.

    Attributes:
        out: the run directory. summary: the JSON document of ``bench --json``.
        flips: every candidate's paired comparison.
    """

    out: Path
    summary: dict[str, Any]
    flips: tuple[FlipsResult, ...]

    def to_json(self) -> str:
        """The JSON document as text."""
        return to_json(self.summary)

    def to_arrow(self) -> Any:
        """All outcome tables in one `pyarrow.Table`, with the model's name as first column."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        tables = []
        for name in (REFERENCE, *[c["name"] for c in self.summary["candidates"]]):
            table = pq.read_table(outcome_path(self.out, name))
            tables.append(table.add_column(0, "model", pa.array([name] * table.num_rows, pa.string())))
        return pa.concat_tables(tables)

    def to_pandas(self) -> Any:
        """`to_arrow` as a data frame (needs pandas)."""
        return self.to_arrow().to_pandas()


def outcome_path(out: Path, name: str) -> Path:
    """A model's outcome table."""
    return out / "outcomes" / f"{slug(name)}.parquet"


def bench(
    ref: str,
    candidates: Sequence[str],
    *,
    tasks: Sequence[str] | str,
    out: str | Path | None = None,
    settings: dict[str, str] | None = None,
    on_event: OnEvent = lambda event: None,
    **options: Any,
) -> Bench:
    """Run lm-eval tasks on a reference and its candidates, and compare the outcomes item by item.

    Args:
        ref, candidates: model specs. tasks: names, task files, ``.jsonl`` files or directories of them.
        out: run directory; an interrupted run continues there.
        settings: engine settings for every model that does not set them itself.
        options: further fields of `quantvane.run.bench_plan.BenchSpec` (replay, limit, margin, until_decided, …).

    Raises:
        QuantvaneError: see `quantvane.errors`.
    """
    reference = ModelSpec.parse(str(ref)).with_defaults(settings or {})
    given = [ModelSpec.parse(str(c)).with_defaults(settings or {}) for c in candidates]
    named = (tasks,) if isinstance(tasks, str) else tuple(tasks)
    spec = BenchSpec(
        reference=reference,
        candidates=tuple(given),
        names=candidate_names(reference, given),
        tasks=named,
        **{k: v for k, v in options.items() if v is not None},
    )
    return run_bench(spec, Path(out) if out is not None else default_out(reference, spec.to_dict()), on_event)


def run_bench(spec: BenchSpec, out: Path, on_event: OnEvent = lambda event: None) -> Bench:
    """Carry out a spec in a run directory; continues there after an interruption.

    Raises:
        QuantvaneError: what went wrong; finished items stay for the next attempt.
    """
    require_lm_eval()
    for model in (spec.reference, *spec.candidates):
        check_model(model)
    make_directory(out)
    _claim(out, spec)
    if not is_complete(out):
        try:
            run_worker({"task": "bench", "spec": spec.to_dict(), "out": str(out)}, on_event)
        except QuantvaneError:
            _discard_if_empty(out, spec)
            raise
        on_event({"event": "summarizing"})
        _merge(out, spec)
    return load_bench(out)


def _claim(out: Path, spec: BenchSpec) -> None:
    path = out / "plan.json"
    mine = json.loads(to_json(spec.to_dict()))
    if not path.exists():
        if (out / "manifest.json").exists() or (out / "outcomes").exists():
            raise OutputError(
                f"'{out}' holds files of something else",
                expected="an empty directory or a run directory of the same bench",
                got="tables without this plan",
                remedy="choose another --out",
            )
        write_json(path, {"schema": 1, "command": "bench", "spec": mine})
        return
    held = read_json(path)["spec"]
    keys = [key for key in mine if mine[key] != held.get(key)]
    if keys:
        raise OutputError(
            f"'{out}' holds another run",
            expected="; ".join(f"{k} = {held.get(k)}" for k in keys),
            got="; ".join(f"{k} = {mine[k]}" for k in keys),
            remedy="choose another --out, or remove that directory to run again",
        )


def _discard_if_empty(out: Path, spec: BenchSpec) -> None:
    """After a failure before the first finished items there is nothing to continue: leave nothing behind."""
    if any(next(read_journal(bench_journal(out, name)), None) for name in jobs_of(spec)):
        return
    shutil.rmtree(out / "journal", ignore_errors=True)
    for name in ("plan.json", "manifest.json"):
        (out / name).unlink(missing_ok=True)
    with suppress(OSError):  # not empty: it was the user's own
        out.rmdir()


def _merge(out: Path, spec: BenchSpec) -> None:
    """Journals into tables; the cost of each model goes into the manifest."""
    manifest = read_json(out / "manifest.json")
    costs = {}
    for name in jobs_of(spec):
        batches = [frame[0] for frame in read_journal(bench_journal(out, name))]
        facts = [json.loads((b.schema.metadata or {}).get(b"facts", b"{}")) for b in batches]
        write_outcomes(outcome_path(out, name), batches)
        costs[name] = {
            **{key: sum(f[key] for f in facts) for key in ("seconds", "calls", "steps", "tokens")},
            **{key: sum(f.get(key, 0) for f in facts) for key in ("ahead", "vain")},
            "noise": next((f["noise"] for f in facts if f.get("noise") is not None), None),
            "call_cost": next((f["call_cost"] for f in facts if f.get("call_cost")), None),
        }
        write_outcomes_jsonl(outcome_path(out, name).with_suffix(".jsonl"), outcome_rows(outcome_path(out, name)))
    if spec.until_decided:
        # A candidate that was decided early has fewer items: its part of the reference's, for `flips`.
        for name in spec.names:
            keys = {(row["task"], row["item"]) for row in outcome_rows(outcome_path(out, name))}
            rows = [r for r in outcome_rows(outcome_path(out, REFERENCE)) if (r["task"], r["item"]) in keys]
            write_outcomes_jsonl(out / "outcomes" / "paired" / f"reference-for-{slug(name)}.jsonl", rows)
    manifest |= {"state": "complete", "costs": costs}
    write_json(out / "manifest.json", manifest)
    shutil.rmtree(out / "journal", ignore_errors=True)


def load_bench(out: Path) -> Bench:
    """A finished bench, compared again from its stored outcomes.

    Raises:
        OutputError: no finished bench in the directory.
    """
    manifest = read_json(out / "manifest.json")
    if manifest.get("command") != "bench" or manifest.get("state") != "complete":
        raise OutputError(
            f"'{out}' holds no finished bench",
            expected="a run directory of quantvane bench",
            got=f"command {manifest.get('command')}, state {manifest.get('state')}",
            remedy="run quantvane bench --out there first",
        )
    spec = BenchSpec.from_dict(manifest["spec"])
    rows = {name: outcome_rows(outcome_path(out, name)) for name in jobs_of(spec)}
    found = tuple(_flips(name, rows, spec) for name in spec.names)
    summary = _summary(manifest, spec, rows, found)
    write_json(out / "summary.json", summary)
    return Bench(out, summary, found)


def _set(name: str, rows: Sequence[Row], keep: set[tuple[str, int]] | None = None) -> OutcomeSet:
    return OutcomeSet(
        name,
        tuple(
            Outcome(
                task=row["task"], item=str(row["item"]), correct=row["correct"], answer=row["answer"],
                state=row["state"], prompt=row["prompt"], settings=row["settings"],
            )
            for row in rows
            if keep is None or (row["task"], row["item"]) in keep
        ),
    )  # fmt: skip


def _flips(name: str, rows: Mapping[str, list[Row]], spec: BenchSpec) -> FlipsResult:
    keep = {(row["task"], row["item"]) for row in rows[name]}
    # In the candidate's own order, which is the order items were looked at.
    ours = {(row["task"], row["item"]): row for row in rows[REFERENCE]}
    reference = _set(spec.reference.stem, [ours[row["task"], row["item"]] for row in rows[name]])
    # The floor stops with the last candidate: only items that both have can be compared.
    floor = [_set(FLOOR, rows[FLOOR], keep)] if FLOOR in rows else []
    return compare_sets(reference, [_set(name, rows[name])], margin=spec.margin, alpha=spec.alpha, noise=floor)


def _summary(
    manifest: dict[str, Any], spec: BenchSpec, rows: Mapping[str, list[Row]], found: Sequence[FlipsResult]
) -> dict[str, Any]:
    candidates = []
    for name, result in zip(spec.names, found, strict=True):
        held = manifest["candidates"][name]
        entry = result.to_dict()["candidates"][0] | {
            "file_bytes": held["file_bytes"],
            "bits_per_weight": held["bits_per_weight"],
            "items": len(rows[name]),
            "kld_mean": _mean_kld(rows[name]),
            "cost": manifest["costs"][name],
        }
        if spec.replay:
            entry["replay"] = _replay(rows[name], manifest["costs"][name]["noise"])
        if spec.until_decided:
            entry["decision"] = _decision(rows[name], rows[REFERENCE], spec)
        candidates.append(entry)
    reference = manifest["reference"]
    return {
        "schema": 1,
        "protocol": manifest["protocol"],
        "margin": spec.margin,
        "alpha": spec.alpha,
        "reference": {
            "name": reference["name"],
            "file_bytes": reference["file_bytes"],
            "bits_per_weight": reference["bits_per_weight"],
            "items": len(rows[REFERENCE]),
            "score": float(np.mean([bool(row["correct"]) for row in rows[REFERENCE]])),
            "cost": manifest["costs"][REFERENCE],
        },
        "noise_floor": {"kld_mean": _mean_kld(rows[FLOOR])} if FLOOR in rows else None,
        "candidates": candidates,
        "versions": manifest["versions"],
        "hardware": manifest["hardware"],
    }


def _mean_kld(rows: Sequence[Row]) -> float | None:
    """Mean over all scored positions, nats; None where nothing was measured."""
    held = [(row["kld"], row["scored"]) for row in rows if row["kld"] is not None]
    positions = sum(n for _, n in held)
    return sum(k * n for k, n in held) / positions if positions else None


def _replay(rows: Sequence[Row], noise: float | None) -> dict[str, Any]:
    generated = [row for row in rows if row["finish"]]
    unsure = [row for row in generated if row["unsure"]]
    return {
        "answers": len(generated),
        "same_answer": sum(row["divergence"] is None for row in generated),
        "tokens": sum(len(row["tokens"]) for row in generated),
        "tokens_from_draft": sum(row["agreed"] for row in generated),
        "batch_shape_noise": noise,
        "unsure_positions": sum(len(row["unsure"]) for row in unsure),
        "unsure_items": [{"task": r["task"], "item": r["item"], "positions": r["unsure"]} for r in unsure],
    }


def _decision(rows: Sequence[Row], reference: Sequence[Row], spec: BenchSpec) -> dict[str, Any]:
    right = {(row["task"], row["item"]): bool(row["correct"]) for row in reference}
    ref = np.array([right[row["task"], row["item"]] for row in rows], bool)
    cand = np.array([bool(row["correct"]) for row in rows], bool)
    found = betting(ref, cand, spec.margin, alpha=spec.each_alpha)
    finite = not (math.isnan(found.low) or math.isnan(found.high))
    return {
        "decision": found.decision,
        "decided_at": found.decided_at,
        "items": len(rows),
        "delta": {"value": float(cand.mean() - ref.mean()), "ci": [found.low, found.high] if finite else None},
        "alpha": spec.each_alpha,
    }
