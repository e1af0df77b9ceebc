"""Reference and candidates read the same windows together; only statistics are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from quantvane.engines.base import Engine
from quantvane.errors import DataError, EngineError
from quantvane.store.tokens import token_batch
from quantvane.types import TOKEN_FIELDS, TokenMetrics, Window

__all__ = ["FLOOR_UNIT_TOKENS", "UNIT_TOKENS", "Measure", "Rows", "measure_unit", "units"]

Logits = npt.NDArray[np.float32]
Columns = dict[str, Any]
Measure = Callable[[Logits, Logits, npt.NDArray[np.int32]], TokenMetrics]

UNIT_TOKENS = 2048
FLOOR_UNIT_TOKENS = 512
HELD_BYTES = 32 * 2**20


def units(windows: Sequence[Window], tokens: int = UNIT_TOKENS) -> list[list[Window]]:
    """Windows in runs of at most ``tokens`` tokens (one window at least).

    A unit is what is computed and stored as a whole. Engines batch within a unit only, so a run continued
    after an interruption batches as the uninterrupted one did, and gives the same bits.
    """
    out: list[list[Window]] = []
    held = 0
    for window in windows:
        if not out or held + len(window.tokens) > tokens:
            out.append([])
            held = 0
        out[-1].append(window)
        held += len(window.tokens)
    return out


class Rows:
    """Rows of an engine's blocks, taken a few at a time."""

    def __init__(self, blocks: Iterator[Logits], name: str) -> None:
        self._blocks, self._name = blocks, name
        self._block: Logits = np.empty((0, 0), np.float32)
        self._at = 0

    def ready(self) -> int:
        """Rows that can be taken now; asks for the next block when none is left."""
        while self._at >= len(self._block):
            block = next(self._blocks, None)
            if block is None:
                raise EngineError(
                    f"'{self._name}' gave fewer logits than positions are scored",
                    remedy="this is a defect of the engine; please report it with the model's name",
                )
            self._block, self._at = block, 0
        return len(self._block) - self._at

    def take(self, rows: int) -> Logits:
        part = self._block[self._at : self._at + rows]
        self._at += rows
        return part


def _hold(reference: Rows, wanted: int) -> list[Logits]:
    """The reference's next rows, whole blocks: one, or as many as `HELD_BYTES` allows.

    A processor works faster on one model for several blocks than on all models in turn, so the reference runs
    ahead as far as its logits stay small. A block lives until the next is asked for: all but the last are
    copies.
    """
    held = [reference.take(min(reference.ready(), wanted))]
    while (got := sum(map(len, held))) < wanted and (got + len(held[-1])) * held[-1][0].nbytes <= HELD_BYTES:
        held[-1] = held[-1].copy()
        held.append(reference.take(min(reference.ready(), wanted - got)))
    return held


def measure_unit(
    unit: Sequence[Window], reference: Engine, candidates: Sequence[tuple[str, Engine]], measure: Measure
) -> list[Any]:
    """Displacement of every candidate on the windows of one unit, one model after another.

    Returns:
        record batches of `quantvane.store.tokens.SCHEMA`, window by window and candidate by candidate within.

    Raises:
        EngineError: an engine failed, or gave NaN.
    """
    total = sum(int(np.count_nonzero(w.scored)) for w in unit)
    ref_rows = Rows(reference.logits(unit), "the reference")
    steps = [_Steps(unit, name, engine, measure) for name, engine in candidates]
    done = 0
    while done < total:
        held = _hold(ref_rows, total - done)
        for step in steps:
            step.take(held)
        done += sum(map(len, held))
    return join_unit(unit, [step.columns() for step in steps])


def measure_rows(
    unit: Sequence[Window], reference: Sequence[Logits], name: str, engine: Engine, measure: Measure
) -> Columns:
    """One candidate's fields on a unit whose reference logits are at hand, as blocks."""
    step = _Steps(unit, name, engine, measure)
    step.take(reference)
    return step.columns()


def join_unit(unit: Sequence[Window], columns: Sequence[Columns]) -> list[Any]:
    """Candidates' fields on a unit → record batches, window by window and candidate by candidate within."""
    ends = np.cumsum([np.count_nonzero(w.scored) for w in unit])
    batches = []
    for window, start, end in zip(unit, [0, *ends[:-1]], ends, strict=True):
        batches += [token_batch(window, {f: c[f][start:end] for f in TOKEN_FIELDS}) for c in columns]
    return batches


class _Steps:
    """One candidate reading a unit beside the reference, a few blocks at a time."""

    def __init__(self, unit: Sequence[Window], name: str, engine: Engine, measure: Measure) -> None:
        self._targets = np.concatenate([w.targets[w.scored] for w in unit]).astype(np.int32)
        self._rows = Rows(engine.logits(unit), name)
        self._name, self._measure = name, measure
        self._kept: dict[str, list[Any]] = {f: [] for f in TOKEN_FIELDS}
        self._at = 0

    def take(self, reference: Sequence[Logits]) -> None:
        """Measure the candidate's next rows against these of the reference."""
        for block in reference:
            start = 0
            while start < len(block):
                rows = min(self._rows.ready(), len(block) - start)
                ref, cand = block[start : start + rows], self._rows.take(rows)
                targets = self._targets[self._at : self._at + rows]
                for field, values in _measured(self._measure, ref, cand, targets, self._name):
                    self._kept[field].append(values)
                start, self._at = start + rows, self._at + rows

    def columns(self) -> Columns:
        """The fields of all rows taken."""
        return {f: np.concatenate(parts) for f, parts in self._kept.items()}


def _measured(
    measure: Measure, ref: Logits, cand: Logits, targets: npt.NDArray[np.int32], name: str
) -> Iterator[tuple[str, Any]]:
    if ref.shape[1] != cand.shape[1]:
        raise EngineError(
            f"'{name}' gives logits of another width",
            expected=f"{ref.shape[1]} entries",
            got=f"{cand.shape[1]} entries",
        )
    try:
        yield from measure(ref, cand, targets).to_dict().items()
    except DataError as problem:
        side = name if np.isfinite(ref.max(axis=1)).all() else "the reference"
        raise EngineError(
            f"the logits of '{side}' cannot be used: {problem.message}",
            expected="finite logits (or -inf for impossible tokens)",
            got=problem.got,
            remedy="the model file may be damaged, or the engine's settings overflow (try flash_attn=off, "
            "cache_type_k=f32, dtype=float32)",
        ) from None
