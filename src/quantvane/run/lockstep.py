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

__all__ = ["Measure", "measure_unit", "units"]

Logits = npt.NDArray[np.float32]
Measure = Callable[[Logits, Logits, npt.NDArray[np.int32]], TokenMetrics]

UNIT_TOKENS = 2048


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


class _Rows:
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


def measure_unit(
    unit: Sequence[Window], reference: Engine, candidates: Sequence[tuple[str, Engine]], measure: Measure
) -> list[Any]:
    """Displacement of every candidate on the windows of one unit.

    Returns:
        record batches of `quantvane.store.tokens.SCHEMA`, window by window and candidate by candidate within.

    Raises:
        EngineError: an engine failed, or gave NaN.
    """
    targets = np.concatenate([w.targets[w.scored] for w in unit]).astype(np.int32)
    ends = np.cumsum([np.count_nonzero(w.scored) for w in unit])
    ref_rows = _Rows(reference.logits(unit), "the reference")
    readers = [_Rows(engine.logits(unit), name) for name, engine in candidates]
    kept: list[dict[str, list[Any]]] = [{f: [] for f in TOKEN_FIELDS} for _ in candidates]
    done, total = 0, len(targets)
    while done < total:
        rows = min(ref_rows.ready(), *(reader.ready() for reader in readers))
        rows = min(rows, total - done)
        ref = ref_rows.take(rows)
        for reader, keep, (name, _) in zip(readers, kept, candidates, strict=True):
            for field, values in _measured(measure, ref, reader.take(rows), targets[done : done + rows], name):
                keep[field].append(values)
        done += rows
    columns = [{f: np.concatenate(parts) for f, parts in keep.items()} for keep in kept]
    batches = []
    for window, start, end in zip(unit, [0, *ends[:-1]], ends, strict=True):
        batches += [token_batch(window, {f: c[f][start:end] for f in TOKEN_FIELDS}) for c in columns]
    return batches


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
