"""Doing a ``fisher`` run: models in, journals out. Runs inside a worker process."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from quantvane.engines.base import Engine
from quantvane.engines.registry import open_engine
from quantvane.run.fisher_plan import FisherSpec
from quantvane.run.fisher_spaces import Reader
from quantvane.run.lockstep import units
from quantvane.run.measure import Emit, add_model, agree, info_record, opened, processor
from quantvane.run.prepare import Prepared, check_vocabulary, prepare
from quantvane.spec import slug
from quantvane.store.atomic import make_directory
from quantvane.store.journal import Journal
from quantvane.store.manifest import package_versions
from quantvane.store.windows import model_schema

__all__ = ["fisher_journal", "measure_fisher"]


def fisher_journal(out: Path, name: str) -> Path:
    """Where a model's finished windows are kept; "" is the reference."""
    return out / "journal" / (f"candidate-{slug(name)}.journal" if name else "reference.journal")


def measure_fisher(spec: FisherSpec, out: Path, emit: Emit) -> None:
    """Read every window with every model, continuing each where its journal ends.

    Raises:
        QuantvaneError: the first thing that went wrong; finished windows stay in the journals.
    """
    make_directory(out)
    with opened(emit, "reference", spec.reference, spec.context) as reference:
        prepared = prepare(spec.as_compare(), reference)
        Reader(reference, spec)  # a space it cannot serve is refused before anything is written
        agree(out, _manifest(spec, prepared, reference))
        for name, model in spec.models:
            if not name:
                _read(name, reference, spec, prepared, out, emit)
                continue
            emit({"event": "loading", "model": name})
            engine = open_engine(model, spec.context)
            try:
                check_vocabulary(reference, engine, name, prepared.samples)
                add_model(out, "candidates", info_record(name, model, engine.info))
                _read(name, engine, spec, prepared, out, emit)
            finally:
                engine.close()


def _read(name: str, engine: Engine, spec: FisherSpec, prepared: Prepared, out: Path, emit: Emit) -> None:
    # In parameter space a window costs seconds, so each is stored as it is done.
    todo = units(prepared.windows, 1 if "params" in spec.spaces else 2048)
    schema = model_schema(spec.spaces)
    reader = Reader(engine, spec)
    total = sum(len(w.tokens) for unit in todo for w in unit)
    with Journal(fisher_journal(out, name)) as journal:
        done = sum(len(w.tokens) for unit in todo[: journal.frames] for w in unit)
        progress = {"event": "progress", "job": name or "reference", "total": total, "models": 1}
        emit({**progress, "done": done})
        for unit in todo[journal.frames :]:
            rows = [
                {
                    "corpus": window.corpus,
                    "document": window.document,
                    "window": window.index,
                    "tokens": int(np.count_nonzero(window.scored)),
                    **readings,
                }
                for window, readings in zip(unit, reader.unit(unit), strict=True)
            ]
            journal.append([pa.RecordBatch.from_pylist(rows, schema=schema)])
            done += sum(len(w.tokens) for w in unit)
            emit({**progress, "done": done})


def _manifest(spec: FisherSpec, prepared: Prepared, reference: Engine) -> dict[str, Any]:
    return {
        "schema": 1,
        "command": "fisher",
        "state": "measuring",
        "spec": spec.to_dict(),
        "spec_hash": spec.hash,
        "protocol": prepared.protocol.to_dict(),
        "corpora": list(prepared.corpora),
        "windows": len(prepared.windows),
        "reference": info_record(getattr(reference, "name", spec.reference.stem), spec.reference, reference.info),
        "candidates": {},
        "versions": package_versions(),
        "hardware": {"machine": platform.machine(), "processor": processor(), "system": platform.system()},
    }
