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
    flights: deque[tuple[Sequence[Window], list[Future[Columns]]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="quantvane-models")
    # A task waits only for tasks submitted before it, and the pool starts them in that order: the oldest
    # unfinished one never waits, so there is always progress.
    try:
        # The reference runs one unit ahead: no candidate then waits for it, but at the very start.
        ahead = pool.submit(_reference, reference, todo[0], None)
        previous: list[Future[Columns] | None] = [None] * len(candidates)
        for number, unit in enumerate(todo):
            own = ahead
            if number + 1 < len(todo):
                ahead = pool.submit(_reference, reference, todo[number + 1], own)
            tasks = [
                pool.submit(_candidate, measure, unit, own, name, engine, before)
                for (name, engine), before in zip(candidates, previous, strict=True)
            ]
            previous = list(tasks)
            flights.append((unit, tasks))
            if len(flights) > _IN_FLIGHT:
                yield _landed(flights.popleft())
        while flights:
            yield _landed(flights.popleft())
    finally:
        pool.shutdown(cancel_futures=True)
        for _, engine in (("", reference), *candidates):
            if isinstance(engine, LlamaCpp):
                engine.share_threads(1)


def _reference(engine: Engine, unit: Sequence[Window], before: Future[Any] | None) -> list[Logits]:
    if before is not None:
        before.result()
    return [block.copy() for block in engine.logits(unit)]


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


def _landed(flight: tuple[Sequence[Window], list[Future[Columns]]]) -> list[Any]:
    unit, tasks = flight
    return join_unit(unit, [task.result() for task in tasks])
