"""One event to every sink, each with its own faults."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

__all__ = ["Event", "Sink", "Sinks"]

Event = dict[str, Any]
"""``event`` is ``alarm``, ``stream`` or ``fault``; ``time`` in seconds since 1970; the rest depends on it.

alarm:  stream, choice, index, statistics, label, sigma, entropy, consecutive_kl, lambda [low, high], model
stream: stream, choice, kind, model, tokens, label, reason, first_alarm, alarms, extremes, outcome, seconds, action
fault:  kind, stream

No event holds a prompt, an answer, a header or an address.
"""

_log = logging.getLogger("quantvane.watch")


class Sink(Protocol):
    """Takes events without blocking; what takes time happens elsewhere (a thread, a task)."""

    def take(self, event: Event) -> None: ...

    async def close(self) -> None:
        """Deliver what is still held, within a few seconds."""
        ...


class Sinks:
    """Hands every event to every sink; a sink that fails loses this event and nothing else does."""

    def __init__(self, sinks: Sequence[Sink] = ()) -> None:
        self._sinks = tuple(sinks)

    def take(self, event: Event) -> None:
        for sink in self._sinks:
            try:
                sink.take(event)
            except Exception as problem:  # an observer must never break what it observes
                _log.error("sink %s failed: %s", type(sink).__name__, type(problem).__name__)

    async def close(self) -> None:
        for sink in self._sinks:
            try:
                await sink.close()
            except Exception as problem:
                _log.error("sink %s failed to close: %s", type(sink).__name__, type(problem).__name__)
