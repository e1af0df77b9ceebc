"""Doing the jobs of a plan: models in, journals out. Runs inside a worker process."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from quantvane.engines.base import Engine, EngineInfo, require
from quantvane.engines.registry import floor_variation, open_engine
from quantvane.errors import OutputError
from quantvane.run.lockstep import FLOOR_UNIT_TOKENS, Measure, measure_unit, units
from quantvane.run.peer_taps import PeerTaps
from quantvane.run.pipeline import measure_units, workers_for
from quantvane.run.plan import CompareSpec, Job, journal_path
from quantvane.run.prepare import Prepared, check_vocabulary, prepare
from quantvane.spec import ModelSpec
from quantvane.store.atomic import make_directory, read_json, write_json
from quantvane.store.journal import Journal
from quantvane.store.manifest import package_versions, processor

__all__ = ["Emit", "add_model", "agree", "do_job", "info_record", "kernel_of", "measure",
           "opened", "processor"]  # fmt: skip

Emit = Callable[[dict[str, Any]], None]


def info_record(name: str, spec: ModelSpec, info: EngineInfo) -> dict[str, Any]:
    return {
        "name": name,
        "spec": spec.text,
        "engine": info.engine,
        "build": info.build,
        "device": info.device,
        "settings": info.settings,
        "fingerprint": info.fingerprint,
        "architecture": info.architecture,
        "file_bytes": info.weights.file_bytes,
        "parameters": info.weights.parameters,
        "bits_per_weight": info.weights.bits_per_weight,
        "tensor_types": info.weights.types,
        "context_trained": info.context_trained,
    }


def kernel_of(spec: CompareSpec) -> Measure:
    from quantvane.displacement import token_metrics

    def run(ref: Any, cand: Any, tokens: Any) -> Any:
        return token_metrics(ref, cand, tokens, backend=spec.backend, top_k=spec.top_k)

    return run


@contextmanager
def opened(emit: Emit, name: str, spec: ModelSpec, context: int) -> Iterator[Engine]:
    emit({"event": "loading", "model": name})
    engine = open_engine(spec, context)
    try:
        require(engine, "logits", "measuring displacement")
        yield engine
    finally:
        engine.close()


def measure(spec: CompareSpec, jobs: Sequence[Job], out: Path, emit: Emit) -> None:
    """Do the jobs, continuing each where its journal ends, and leave ``manifest.json`` and journals behind.

    Raises:
        QuantvaneError: the first thing that went wrong; finished units stay in the journals.
    """
    make_directory(out)
    with opened(emit, "reference", spec.reference, spec.context) as reference:
        prepared = prepare(spec, reference)
        manifest = _manifest(spec, prepared, reference)
        agree(out, manifest)
        kernel = kernel_of(spec)
        for job in jobs:
            do_job(job, spec, prepared, reference, kernel, out, emit)
            emit({"event": "measured", "journal": journal_path(out, job).name})


def do_job(
    job: Job, spec: CompareSpec, prepared: Prepared, reference: Engine, kernel: Measure, out: Path, emit: Emit
) -> None:
    if job.is_floor:
        varied = {**dict(spec.reference.settings), **floor_variation(spec.reference)}
        models = [("noise floor", replace(spec.reference, settings=tuple(varied.items())))]
        share = list(prepared.windows[: spec.floor_windows])
    else:
        models = [(spec.names[i], spec.candidates[i]) for i in job.candidates]
        share = list(prepared.windows)
    # The floor has few windows: smaller units let its two models decode at once.
    todo = units(share, FLOOR_UNIT_TOKENS) if job.is_floor else units(share)
    index, of = job.shard
    todo = todo[len(todo) * index // of : len(todo) * (index + 1) // of]
    with Journal(journal_path(out, job)) as journal, PeerTaps(journal_path(out, job), spec, job) as taps:
        if journal.frames == len(todo):
            return
        engines: list[tuple[str, Engine]] = []
        try:
            for name, model in models:
                emit({"event": "loading", "model": name})
                engine = open_engine(model, spec.context)
                engines.append((name, taps.tap(engine, reference)))
                require(engine, "logits", "measuring displacement")
                check_vocabulary(reference, engine, name, prepared.samples)
                record = info_record(name, model, engine.info)
                add_model(out, "floor" if job.is_floor else "candidates", record)
            total = sum(len(w.tokens) for unit in todo for w in unit)
            done = sum(len(w.tokens) for unit in todo[: journal.frames] for w in unit)
            progress = {"event": "progress", "job": job.id, "total": total, "models": len(models) + 1}
            rest = todo[journal.frames :]
            workers = workers_for(reference, [engine for _, engine in engines], rest)
            emit({**progress, "done": done})
            results = (
                measure_units(rest, reference, engines, kernel, workers)
                if workers > 1
                else (measure_unit(unit, reference, engines, kernel) for unit in rest)
            )
            for unit, batches in zip(rest, results, strict=True):
                taps.store(journal.frames)  # before the unit counts as done
                journal.append(batches)
                done += sum(len(w.tokens) for w in unit)
                emit({**progress, "done": done})
        finally:
            for _, engine in engines:
                engine.close()


def _manifest(spec: CompareSpec, prepared: Prepared, reference: Engine) -> dict[str, Any]:
    return {
        "schema": 1,
        "command": "compare",
        "state": "measuring",
        "spec": spec.to_dict(),
        "spec_hash": spec.hash,
        "protocol": prepared.protocol.to_dict(),
        "corpora": list(prepared.corpora),
        "windows": len(prepared.windows),
        "reference": info_record(
            getattr(reference, "name", spec.reference.stem), spec.reference, reference.info
        ),
        "noise_floor": getattr(reference, "noise_floor", None),
        "candidates": {},
        "floor": {},
        "versions": package_versions(),
        "hardware": {"machine": platform.machine(), "processor": processor(), "system": platform.system()},
    }


# A continued run must be the same measurement: these have to agree with what the directory holds.
_IDENTITY = ("spec_hash", "protocol", "reference", "versions")


def agree(out: Path, manifest: dict[str, Any]) -> None:
    path = out / "manifest.json"
    if not path.exists():
        write_json(path, manifest)
        return
    held = read_json(path)
    # Through JSON, as the held one went: tuples become lists, NaN null.
    import json

    from quantvane.store.atomic import to_json

    mine = json.loads(to_json(manifest))
    differing = [key for key in _IDENTITY if held.get(key) != mine[key]]
    if differing:
        raise OutputError(
            f"'{out}' holds another run",
            expected="; ".join(f"{k} = {_short(held.get(k))}" for k in differing),
            got="; ".join(f"{k} = {_short(mine[k])}" for k in differing),
            remedy="choose another --out, or remove that directory to measure again",
        )


def _short(value: Any) -> str:
    text = str(value.get("hash", value.get("fingerprint", value)) if isinstance(value, dict) else value)
    return text if len(text) < 120 else text[:117] + "…"


def add_model(out: Path, section: str, record: dict[str, Any]) -> None:
    """Note who computed a candidate; a continued run must have the same one."""
    path = out / "manifest.json"
    manifest = read_json(path)
    held = manifest[section].get(record["name"])
    if held is not None and (held["fingerprint"], held["build"]) != (record["fingerprint"], record["build"]):
        raise OutputError(
            f"'{record['name']}' is not the model this run was begun with",
            expected=f"fingerprint {held['fingerprint'][:16]}, {held['build']}",
            got=f"fingerprint {record['fingerprint'][:16]}, {record['build']}",
            remedy="choose another --out",
        )
    manifest[section][record["name"]] = record
    write_json(path, manifest)
