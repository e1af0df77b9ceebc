"""Several models decode at once, each on its share of the processors.

Two threads on one small model wait for each other hundreds of times a pass; two models on one thread each never
do. Measured on two cores with a 10 M model and seven quants, decoding takes about 15% less time. The numbers are
the same to the bit: units, batches and kernels are those of `lockstep`, and llama.cpp's results do not depend on
its number of threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from quantvane.engines.base import Engine
from quantvane.engines.llamacpp import LlamaCpp
from quantvane.run.lockstep import UNIT_TOKENS, Columns, Logits, Measure, join_unit, measure_rows
from quantvane.types import Window

__all__ = ["measure_units", "workers_for"]

# of the reference's logits, a few units of which are in flight at once; a unit of one long window is measured block by
# block instead
_UNIT_BYTES = 256 * 2**20
_IN_FLIGHT = 2


def workers_for(reference: Engine, candidates: Sequence[Engine], todo: Sequence[Sequence[Window]]) -> int:
    """How many models may decode at once: 1 unless all are llama.cpp's, on the CPU, with one number of threads."""
    models = [reference, *candidates]
    if not all(isinstance(m, LlamaCpp) and m.info.device == "cpu" for m in models) or not todo:
        return 1
    threads = {int(m.info.settings["n_threads"]) for m in models}
    rows = max(sum(int(np.count_nonzero(w.scored)) for w in unit) for unit in todo)
    if len(threads) > 1 or rows > UNIT_TOKENS or rows * len(reference.vocabulary) * 4 > _UNIT_BYTES:
        return 1
    return min(threads.pop(), len(models))


def measure_units(
    todo: Sequence[Sequence[Window]],
    reference: Engine,
    candidates: Sequence[tuple[str, Engine]],
    measure: Measure,
    workers: int,
) -> Iterator[list[Any]]:
    """The record batches of every unit, in order; see `lockstep.measure_unit` for their layout and errors."""
    for _, engine in (("", reference), *candidates):
        if isinstance(engine, LlamaCpp):
            engine.share_threads(workers)
    flights: deque[_Flight] = deque()
    copies = _Copies()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="quantvane-models")
    # A task waits only for tasks submitted before it, and the pool starts them in that order: the oldest
    # unfinished one never waits, so there is always progress.
    try:
        # The reference runs one unit ahead: no candidate then waits for it, but at the very start.
        ahead = pool.submit(_reference, reference, todo[0], None, copies)
        previous: list[Future[Columns] | None] = [None] * len(candidates)
        for number, unit in enumerate(todo):
            own = ahead
            if number + 1 < len(todo):
                ahead = pool.submit(_reference, reference, todo[number + 1], own, copies)
            tasks = [
                pool.submit(_candidate, measure, unit, own, name, engine, before)
                for (name, engine), before in zip(candidates, previous, strict=True)
            ]
            previous = list(tasks)
            flights.append((unit, own, tasks))
            if len(flights) > _IN_FLIGHT:
                yield _landed(flights.popleft(), copies)
        while flights:
            yield _landed(flights.popleft(), copies)
    finally:
        pool.shutdown(cancel_futures=True)
        for _, engine in (("", reference), *candidates):
            if isinstance(engine, LlamaCpp):
                engine.share_threads(1)


_Flight = tuple[Sequence[Window], Future[list[Logits]], list[Future[Columns]]]


class _Copies:
    """Copies of an engine's blocks, in memory that is used again: were it asked for anew with each unit, the allocator
    would keep one to four units' worth of it, as it happens."""

    def __init__(self) -> None:
        self._free: list[Logits] = []

    def of(self, block: Logits) -> Logits:
        """A copy of the block; one caller at a time."""
        for i, buffer in enumerate(self._free):
            if len(buffer) >= len(block) and buffer.shape[1] == block.shape[1]:
                copy = self._free.pop(i)[: len(block)]
                break
        else:
            copy = np.empty_like(block)
        copy[...] = block
        return copy

    def give_back(self, copies: Sequence[Logits]) -> None:
        """Take the memory of copies that nobody reads any more."""
        self._free += [copy if copy.base is None else copy.base for copy in copies]


def _reference(
    engine: Engine, unit: Sequence[Window], before: Future[Any] | None, copies: _Copies
) -> list[Logits]:
    if before is not None:
        before.result()
    return [copies.of(block) for block in engine.logits(unit)]


def _candidate(
    measure: Measure,
    unit: Sequence[Window],
    own: Future[list[Logits]],
    name: str,
    engine: Engine,
    before: Future[Any] | None,
) -> Columns:
    if before is not None:
        before.result()
    return measure_rows(unit, own.result(), name, engine, measure)


def _landed(flight: _Flight, copies: _Copies) -> list[Any]:
    unit, own, tasks = flight
    columns = [task.result() for task in tasks]
    copies.give_back(own.result())
    return join_unit(unit, columns)
