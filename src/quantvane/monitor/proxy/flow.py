"""Requests on their way, and the one clock that ends those that take too long."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from quantvane.monitor.proxy.settings import Limits

__all__ = ["Flow", "Sweeper"]


class Flow:
    """One request's task: who is being waited for, since when, and why it was stopped.

    Attributes:
        waiting: ``upstream`` or ``client``. since, started: seconds of the monotonic clock. patient: the upstream may
            be silent for as long as a stream may last (a whole answer is computed before its first byte).
        stopped: the fault that ended it, "" while nothing did.
    """

    __slots__ = ("patient", "since", "started", "stopped", "task", "waiting")

    def __init__(self) -> None:
        self.task = asyncio.current_task()
        self.started = self.since = time.monotonic()
        self.waiting, self.stopped, self.patient = "client", "", False

    def wait(self, whom: str) -> None:
        """From now on ``whom`` is waited for."""
        self.waiting, self.since = whom, time.monotonic()

    def stop(self, why: str) -> None:
        """Cancel the task, once, and remember why."""
        if not self.stopped and self.task is not None:
            self.stopped = why
            self.task.cancel()

    def resume(self) -> None:
        """The task has seen its cancellation and goes on to clean up."""
        if self.task is not None:
            self.task.uncancel()


class Sweeper:
    """Looks at every flow once a second: no timers are set and reset a token."""

    def __init__(self, limits: Limits, period: float = 1.0) -> None:
        self.flows: set[Flow] = set()
        self._limits = limits
        self._period = min(period, limits.idle_seconds / 4, limits.stream_seconds / 4)

    def sweep(self) -> None:
        """Stop what has taken too long."""
        now = time.monotonic()
        for flow in list(self.flows):
            if now - flow.started > self._limits.stream_seconds:
                flow.stop("stream_too_long")
            elif now - flow.since > self._limits.idle_seconds and not (flow.patient and flow.waiting == "upstream"):
                flow.stop("client_too_slow" if flow.waiting == "client" else "upstream_timeout")

    async def run(self) -> None:
        """Sweep until cancelled."""
        with suppress(asyncio.CancelledError):
            while True:
                await asyncio.sleep(self._period)
                self.sweep()
