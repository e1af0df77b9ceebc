"""Events as JSON lines, written by a thread of its own so that a slow disk holds nobody up."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from pathlib import Path

from quantvane.errors import OutputError
from quantvane.monitor.sinks.fan import Event
from quantvane.monitor.sinks.metrics import Metrics
from quantvane.store.lines import RotatingLines

__all__ = ["JsonLines"]

_log = logging.getLogger("quantvane.watch")


class JsonLines:
    """A rotating file of events; what the queue cannot hold is dropped and counted.

    Raises:
        OutputError: the file cannot be opened.
    """

    def __init__(
        self, path: Path, metrics: Metrics, max_bytes: int = 64 << 20, keep: int = 5, held: int = 10_000
    ) -> None:
        self._lines = RotatingLines(path, max_bytes, keep)
        self._lost = metrics.lost.labels("jsonl")
        self._queue: queue.Queue[Event | None] = queue.Queue(held)
        self._thread = threading.Thread(target=self._write, name="quantvane-jsonl", daemon=True)
        self._thread.start()

    def take(self, event: Event) -> None:
        try:
            self._queue.put_nowait(event)
        except queue.Full:
            self._lost.inc()

    def _write(self) -> None:
        failed = False
        while (event := self._queue.get()) is not None:
            try:
                self._lines.append(event)
                failed = False
            except OutputError as problem:
                self._lost.inc()
                if not failed:  # once, not once an event
                    _log.error("%s", problem)
                failed = True
        self._lines.close()

    async def close(self) -> None:
        # From another thread: the queue may be full, and the loop must not wait for it.
        await asyncio.to_thread(self._queue.put, None)
        await asyncio.to_thread(self._thread.join, 5.0)
