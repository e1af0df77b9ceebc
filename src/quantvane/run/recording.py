"""The reference's pass alone: model in, trace out. Runs inside a worker process."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quantvane.engines.base import Engine
from quantvane.engines.output_head import OutputHead
from quantvane.errors import DataError, EngineError
from quantvane.run.fidelity import Fidelity, Unfaithful, prove_head
from quantvane.run.finish import floor_of, merge
from quantvane.run.lockstep import units
from quantvane.run.measure import Emit, agree, do_job, info_record, kernel_of, opened, processor
from quantvane.run.plan import Job
from quantvane.run.prepare import Prepared, prepare
from quantvane.run.record import FILES, RecordSpec
from quantvane.store.atomic import read_json, write_json
from quantvane.store.frames import FrameWriter, RowShape
from quantvane.store.kld_writer import KldWriter
from quantvane.store.manifest import package_versions
from quantvane.store.trace import (
    BIAS,
    HEAD,
    Sample,
    Trace,
    pack_floats,
    row_type,
    unpack_floats,
    write_array,
    write_samples,
    write_vocabulary,
    write_windows,
)  # fmt: skip
from quantvane.store.trace_manifest import ROWS
from quantvane.types import Window

__all__ = ["record_reference"]

Array = npt.NDArray[np.float32]
Units = list[list[Window]]


def record_reference(spec: RecordSpec, out: Path, emit: Emit) -> None:
    """Record, continuing where an interrupted recording stopped.

    Raises:
        QuantvaneError: the first thing that went wrong; finished units stay.
    """
    with opened(emit, spec.reference.stem, spec.reference, spec.context) as engine:
        prepared = prepare(spec.as_compare(), engine)
        if spec.store == "kld":
            _base_file(spec, prepared, engine, out, emit)
            return
        recorder = _Recorder(spec, prepared, engine, out, emit)
        if recorder.begin():
            Trace.open(out).close()
            return
        try:
            recorder.rows()
        except Unfaithful as problem:
            recorder.begin_again(problem)
            recorder.rows()
        recorder.finish()


class _Recorder:
    """One trace in the making. A manifest is there as soon as its kind is decided, and says "recording"."""

    def __init__(self, spec: RecordSpec, prepared: Prepared, engine: Engine, out: Path, emit: Emit) -> None:
        self.spec, self.prepared, self.engine, self.out, self.emit = spec, prepared, engine, out, emit
        self.units = units(list(prepared.windows))
        self.head: OutputHead | None = None
        self.manifest: dict[str, Any] = {}

    def begin(self) -> bool:
        """Decide what to keep, or take over what an earlier attempt decided; True where it was finished."""
        path = self.out / "manifest.json"
        if path.exists():
            agree(self.out, self._identity())
            self.manifest = read_json(path)
            if self.manifest["state"] == "complete":
                return True
            if self.manifest["kind"] == "hidden":
                self.head = prove_head(self.engine, self.units[0])[0]
        elif self.spec.store == "logits":
            self._write_tables("")
        else:
            try:
                self.head, fidelity = prove_head(self.engine, self.units[0])
            except Unfaithful as problem:
                self._fall_back(problem)
            else:
                self._write_tables("", fidelity)
        return False

    def begin_again(self, problem: Unfaithful) -> None:
        """Hidden states failed a check after the first unit: nothing recorded so far can be trusted."""
        for name in FILES:
            if (self.out / name).is_file():
                (self.out / name).unlink()
        self.head = None
        self._fall_back(problem)

    def _fall_back(self, problem: Unfaithful) -> None:
        self.emit({"event": "notice", "text": f"storing logits instead of hidden states: {problem}"})
        self._write_tables(str(problem))

    def _identity(self) -> dict[str, Any]:
        spec, prepared = self.spec, self.prepared
        return {
            "schema": 1,
            "command": "record",
            "state": "recording",
            "spec": spec.to_dict(),
            "spec_hash": spec.hash,
            "protocol": prepared.protocol.to_dict(),
            "corpora": list(prepared.corpora),
            "tokens": int(sum(np.count_nonzero(w.scored) for w in prepared.windows)),
            "reference": info_record(spec.reference.stem, spec.reference, self.engine.info),
            "floor": {},
            "noise_floor": None,
            "versions": package_versions(),
            "hardware": {"machine": platform.machine(), "processor": processor(), "system": platform.system()},
        }

    def _write_tables(self, reason: str, fidelity: Fidelity | None = None) -> None:
        vocabulary, out, head = self.engine.vocabulary, self.out, self.head
        files = {
            "windows.parquet": write_windows(out, self.units),
            "vocabulary.parquet": write_vocabulary(out, vocabulary.pieces),
            "samples.json": write_samples(
                out, [Sample(text, self.engine.tokenize(text)) for text in self.prepared.samples]
            ),
        }
        held = None
        if head is not None:
            kind = _exact_type(head.weight)
            files[HEAD] = write_array(out, HEAD, pack_floats(head.weight, kind))
            if head.bias is not None:
                files[BIAS] = write_array(out, BIAS, head.bias)
            held = {
                "stored": kind, "rounding": head.rounding, "tensor_type": head.tensor_type, "scale": head.scale,
                "softcap": head.softcap, "bias": head.bias is not None,
            }  # fmt: skip
        self.manifest = {
            **self._identity(),
            "requested": self.spec.store,
            "kind": "hidden" if head is not None else "logits",
            "reason": reason,
            "width": len(vocabulary) if head is None else head.weight.shape[1],
            "stored": self.spec.dtype if head is None else _row_kind(head),
            "head": held,
            "vocabulary": {
                "size": len(vocabulary), "bos": vocabulary.bos, "eos": vocabulary.eos, "add_bos": vocabulary.add_bos,
            },
            "verification": (fidelity or Fidelity()).to_dict(),
            "files": files,
        }  # fmt: skip
        write_json(out / "manifest.json", self.manifest)

    def rows(self) -> None:
        """Write the units that are not there yet."""
        held = self.manifest
        counts = tuple(int(sum(np.count_nonzero(w.scored) for w in unit)) for unit in self.units)
        fidelity = Fidelity.from_dict(held["verification"])
        lengths = [sum(len(w.tokens) for w in unit) for unit in self.units]
        with FrameWriter(self.out / ROWS, RowShape(counts, held["width"], row_type(held["stored"]))) as writer:
            while (number := writer.units_done) < len(self.units):
                self._progress(sum(lengths[:number]), sum(lengths))
                unit = self.units[number]
                if self.head is None:
                    writer.append(self._logits(unit, fidelity if number == 0 else None))
                else:
                    checked = int(np.random.default_rng(number).integers(counts[number])) if number else -1
                    writer.append(self._hidden(self.head, unit, checked, fidelity))
                held["verification"] = fidelity.to_dict()
                write_json(self.out / "manifest.json", held)
            self._progress(sum(lengths), sum(lengths))

    def _progress(self, done: int, total: int) -> None:
        self.emit({"event": "progress", "job": "recording", "done": done, "total": total, "models": 1})

    def _logits(self, unit: Sequence[Window], fidelity: Fidelity | None) -> Iterator[npt.NDArray[Any]]:
        kind = self.manifest["stored"]
        for block in self.engine.logits(unit):
            _check_numbers(block, self.spec)
            if kind == "f16":
                # KL divergence does not see a constant, and half precision is finest near 0: where p is largest.
                shifted = block - block.max(axis=1, keepdims=True)
                packed = pack_floats(shifted, kind)
                if fidelity is not None:
                    fidelity.add(unpack_floats(packed, kind), block, limits=False)
            else:
                packed = pack_floats(block, kind)
                if fidelity is not None:
                    fidelity.add(unpack_floats(packed, kind), block)
            yield packed.copy()

    def _hidden(
        self, head: OutputHead, unit: Sequence[Window], checked: int, fidelity: Fidelity
    ) -> Iterator[npt.NDArray[Any]]:
        kind, at = self.manifest["stored"], 0
        for logits, states in self._states(unit):
            _check_numbers(states, self.spec)
            rounded = head.round(states)
            if at <= checked < at + len(states) and logits is not None:
                row = slice(checked - at, checked - at + 1)
                fidelity.add(head.logits(rounded[row]), logits[row])
            elif at <= checked < at + len(states):
                own = next(iter(self.engine.logits([_only(unit, checked)])))
                fidelity.add(head.logits(rounded[checked - at : checked - at + 1]), own)
            at += len(states)
            yield pack_floats(rounded, kind)

    def _states(self, unit: Sequence[Window]) -> Iterator[tuple[Array | None, Array]]:
        """(logits where they come for nothing, hidden states)."""
        engine: Any = self.engine
        if hasattr(engine, "logits_and_hidden"):
            yield from engine.logits_and_hidden(unit)
        else:
            yield from ((None, states.copy()) for states in engine.hidden(unit))

    def finish(self) -> None:
        """Measure the noise floor as a live comparison would, and declare the trace complete."""
        spec, out = self.spec.as_compare(), self.out
        if spec.floor_windows:
            job = Job("floor", ())
            do_job(job, spec, self.prepared, self.engine, kernel_of(spec), out, self.emit)
            merge(out, spec, [job])
        manifest = read_json(out / "manifest.json")
        manifest["noise_floor"] = floor_of(out, manifest)
        manifest["state"] = "complete"
        write_json(out / "manifest.json", manifest)
        for name in ("journal", "tokens"):
            shutil.rmtree(out / name, ignore_errors=True)


def _only(unit: Sequence[Window], row: int) -> Window:
    """The window of a unit's row, with only that row scored."""
    for window in unit:
        positions = np.flatnonzero(window.scored)
        if row < len(positions):
            return replace(window, scored=np.arange(len(window.tokens)) == positions[row])
        row -= len(positions)
    raise IndexError(row)


def _check_numbers(block: Array, spec: RecordSpec) -> None:
    if np.isnan(block).any():
        raise EngineError(
            f"'{spec.reference.stem}' gave NaN",
            expected="numbers",
            got=f"NaN in {int(np.isnan(block).any(axis=1).sum())} of {len(block)} rows",
            remedy="the model file may be damaged, or the engine's settings overflow (try flash_attn=off, "
            "cache_type_k=f32, dtype=float32)",
        )


def _exact_type(weight: Array) -> str:
    """The smallest stored type that holds the values exactly."""
    for kind in ("f16", "bf16"):
        if np.array_equal(unpack_floats(pack_floats(weight, kind), kind), weight):
            return kind
    return "f32"


def _row_kind(head: OutputHead) -> str:
    return head.rounding if head.rounding in ("f16", "bf16") else "f32"


def _base_file(spec: RecordSpec, prepared: Prepared, engine: Engine, out: Path, emit: Emit) -> None:
    """llama.cpp's own base file; see `KldWriter`."""
    windows = prepared.windows
    # A window's last target is the text's own first token, which BOS may have replaced.
    tokens = np.stack([np.append(w.targets[-1:], w.targets[:-1]) for w in windows]).astype(np.int32)
    info = engine.info
    key = repr((info.fingerprint, info.build, sorted(info.settings.items()), package_versions()))
    total = sum(len(w.tokens) for w in windows)
    with KldWriter(out, tokens, len(engine.vocabulary), resume_key=key) as writer:
        for unit in units(list(windows)):
            done = writer.chunks_done
            emit({"event": "progress", "job": "recording", "done": done * spec.context, "total": total, "models": 1})
            if unit[-1].index < done:
                continue
            # A unit is computed from its first window on, as the uninterrupted recording batched it.
            skip = max(0, done - unit[0].index) * writer.header.rows_per_chunk
            for block in engine.logits(unit):
                try:
                    writer.append(np.ascontiguousarray(block[min(skip, len(block)) :]))
                except DataError as problem:
                    raise EngineError(
                        f"the logits of '{spec.reference.stem}' cannot be stored: {problem.message}",
                        expected=problem.expected, got=problem.got, remedy=problem.remedy,
                    ) from None  # fmt: skip
                skip = max(0, skip - len(block))
    summary = {
        "schema": 1, "kind": "kld", "requested": "kld", "reason": "", "protocol": prepared.protocol.to_dict(),
        "tokens": writer.rows_done, "verification": None, "noise_floor": None,
        "reference": info_record(spec.reference.stem, spec.reference, info),
    }  # fmt: skip
    emit({"event": "recorded", "summary": summary})
