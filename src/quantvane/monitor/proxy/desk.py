"""The watcher's desk: every stream that runs or lately ran, the alarms, the drift of the fleet."""

from __future__ import annotations

import heapq
import secrets
import time
from collections import deque
from typing import Any

from quantvane.errors import DataError
from quantvane.monitor.calibration import Calibration
from quantvane.monitor.martingale import FleetMartingale
from quantvane.monitor.proxy.choice import Choice, Verdict
from quantvane.monitor.records import Step, StreamSummary
from quantvane.monitor.sinks import Event, Sinks
from quantvane.monitor.sinks.metrics import Metrics
from quantvane.monitor.stream import state_table

__all__ = ["Desk", "Watch"]

_RECENT, _ALARMS, _DRIFT = 40, 100, 400
_HELD = 4096  # finished streams that wait for an older one; past that, the older one is not waited for


class Watch:
    """One watched request.

    Attributes:
        id: random; also in the events. kind: ``chat`` or ``text``. model: as the upstream calls it. reason: why
            nothing is promised for this request, or "". choices: by index. alarmed: any of them.
    """

    __slots__ = ("began", "choices", "desk", "id", "kind", "model", "reason", "started")

    def __init__(self, desk: Desk, kind: str, reason: str) -> None:
        self.desk, self.kind, self.reason = desk, kind, reason
        self.id = secrets.token_hex(6)
        self.model = ""
        self.choices: dict[int, Choice] = {}
        self.started, self.began = time.time(), time.monotonic()

    def choice(self, index: int) -> Choice:
        """The choice of a number, made when first seen."""
        found = self.choices.get(index)
        if found is None:
            found = self.choices[index] = self.desk.new_choice(index)
        return found

    def feed(self, choice: Choice, logprobs: object, *, text: bool) -> int | None:
        """Take a piece of a choice; the number of its token at which an alarm was first raised, if one was."""
        passages, first = choice.feed(logprobs, text=text)
        if not passages or self.reason:
            return None
        for step, names in passages:
            self.desk.alarm(self, choice, step, names)
        return first

    def finish(self, choice: Choice, outcome: str) -> Verdict:
        """Close a choice."""
        verdict = choice.verdict(self.reason)
        if not choice.finished:
            choice.finished = True
            self.desk.close(self, choice, verdict, outcome)
        return verdict

    def end(self, outcome: str) -> None:
        """Close whatever choice is still open."""
        for choice in self.choices.values():
            if not choice.finished:
                self.finish(choice, outcome)
        self.desk.watches.pop(self.id, None)


class Desk:
    """What the proxy knows. Memory is bounded, but for the drift martingale's eight bytes a stream and score.

    Attributes:
        reason: why the calibration does not hold for anything now ("" where it does); set by the upstream's check.
    """

    def __init__(self, calibration: Calibration, metrics: Metrics, sinks: Sinks) -> None:
        self.calibration, self.metrics, self.sinks = calibration, metrics, sinks
        self.reason = "the upstream has not been compared with the calibration yet"
        self.unchecked: tuple[str, ...] = ()
        self.watches: dict[str, Watch] = {}
        self.recent: deque[dict[str, Any]] = deque(maxlen=_RECENT)
        self.alarms: deque[Event] = deque(maxlen=_ALARMS)
        self.drift_trace: deque[float] = deque(maxlen=_DRIFT)
        self.totals = {"streams": 0, "alarmed": 0, "invalid": 0, "tokens": 0, "faults": 0}
        self.since = time.time()
        self._table = state_table(calibration)
        self._number = self._next = 0
        self._done: list[tuple[int, StreamSummary | None]] = []
        self.martingale: FleetMartingale | None
        try:
            self.martingale = FleetMartingale(calibration)
        except DataError:  # a calibration without fleet scores: streams are watched, drift is not
            self.martingale = None

    def watch(self, kind: str, reason: str) -> Watch:
        """A new watched request; ``reason`` as in `Watch`."""
        watch = Watch(self, kind, self.reason or reason)
        self.watches[watch.id] = watch
        return watch

    def new_choice(self, index: int) -> Choice:
        self._number += 1
        self.metrics.active.inc()
        return Choice(self._number - 1, index, self.calibration, self._table)

    def fault(self, kind: str, watch: Watch | None = None) -> None:
        """Something went wrong; counted and told."""
        self.totals["faults"] += 1
        event = {"event": "fault", "time": time.time(), "kind": kind, "stream": watch.id if watch else None}
        self.metrics.take(event)
        self.sinks.take(event)

    def alarm(self, watch: Watch, choice: Choice, step: Step, names: tuple[str, ...]) -> None:
        """A first passage."""
        event = {
            "event": "alarm", "time": time.time(), "stream": watch.id, "choice": choice.index, "index": step.index,
            "statistics": list(names), "label": step.label, "sigma": step.sigma, "entropy": step.entropy,
            "consecutive_kl": step.consecutive_kl, "lambda": [step.lambda_low, step.lambda_high],
            "model": watch.model,
        }  # fmt: skip
        self.alarms.append(event)
        self.metrics.take(event)
        self.sinks.take(event)

    def close(self, watch: Watch, choice: Choice, verdict: Verdict, outcome: str) -> None:
        """A finished stream: counted, told, and taken into the fleet."""
        summary = verdict.summary
        self.count_tokens(watch, choice)
        self.metrics.active.dec()
        self.totals["streams"] += 1
        self.totals["alarmed"] += verdict.label == "ALARM"
        self.totals["invalid"] += verdict.label == "INVALID"
        event = {
            "event": "stream", "time": time.time(), "stream": watch.id, "choice": choice.index, "kind": watch.kind,
            "model": watch.model, "tokens": summary.tokens, "missing": verdict.missing, "label": verdict.label,
            "reason": verdict.reason, "first_alarm": None if watch.reason else summary.first_alarm,
            "alarms": [] if watch.reason else list(summary.alarms), "extremes": dict(summary.extremes),
            "outcome": outcome, "seconds": time.monotonic() - watch.began,
        }  # fmt: skip
        self.metrics.take(event)
        self.sinks.take(event)
        self.recent.appendleft(self._shown(watch, choice, verdict, outcome))
        fits = verdict.label != "INVALID" and outcome in ("complete", "truncated")
        self._fleet(choice.number, summary if fits else None)

    def _fleet(self, number: int, summary: StreamSummary | None) -> None:
        """Streams enter the martingale in the order in which they started, whatever order they end in."""
        heapq.heappush(self._done, (number, summary))  # numbers are unique: summaries are never compared
        while self._done and (self._done[0][0] <= self._next or len(self._done) > _HELD):
            number, first = heapq.heappop(self._done)
            self._next = max(self._next, number + 1)
            if first is None or self.martingale is None:
                continue
            before = self.martingale.crossed
            value = self.martingale.update(first)
            self.drift_trace.append(value)
            self.metrics.drift.set(value)
            if before is None and self.martingale.crossed is not None:
                self.metrics.drifted.set(1)
                event = {
                    "event": "drift", "time": time.time(), "streams": self.martingale.streams,
                    "log_martingale": value, "alpha": self.martingale.alpha,
                }  # fmt: skip
                self.sinks.take(event)

    def count_tokens(self, watch: Watch, choice: Choice) -> None:
        """Move a choice's counts to the metrics."""
        for label, count in choice.counts.items():
            self.metrics.tokens.labels("INVALID" if watch.reason else label).inc(count)
            self.totals["tokens"] += count
        choice.counts.clear()

    def count_all(self) -> None:
        """Move every running stream's counts to the metrics."""
        for watch in self.watches.values():
            for choice in watch.choices.values():
                self.count_tokens(watch, choice)

    def _shown(self, watch: Watch, choice: Choice, verdict: Verdict, outcome: str) -> dict[str, Any]:
        return {
            "id": watch.id, "choice": choice.index, "kind": watch.kind, "model": watch.model[-80:],
            "started": watch.started, "tokens": verdict.summary.tokens, "label": verdict.label,
            "reason": verdict.reason, "outcome": outcome, "missing": verdict.missing,
            "first_alarm": None if watch.reason else verdict.summary.first_alarm,
            "alarms": [] if watch.reason else list(verdict.summary.alarms),
            "sigma": _plain(choice.sigma), "entropy": _plain(choice.entropy),
        }  # fmt: skip

    def state(self) -> dict[str, Any]:
        """All that the page shows; numbers only, no text of anyone's."""
        self.count_all()
        cal, drift = self.calibration, self.martingale
        running = [
            self._shown(watch, choice, choice.verdict(watch.reason), "running")
            for watch in sorted(self.watches.values(), key=lambda w: -w.started)
            for choice in watch.choices.values()
            if not choice.finished
        ]
        return {
            "time": time.time(), "since": self.since, "reason": self.reason, "unchecked": list(self.unchecked),
            "totals": self.totals, "running": len(running), "streams": running[:_RECENT] + list(self.recent),
            "alarms": list(reversed(self.alarms)),
            "calibration": {
                "model": cal.fingerprint.model, "quantization": cal.fingerprint.quantization,
                "engine": cal.fingerprint.engine, "temperature": cal.fingerprint.temperature,
                "top_k": cal.fingerprint.top_k, "alpha": cal.alpha, "delta": cal.delta, "horizon": cal.horizon,
                "n": cal.n, "thresholds": dict(cal.thresholds), "base_entropy": cal.base.entropy,
            },
            "drift": None if drift is None else {
                "trace": _plain(self.drift_trace), "alpha": drift.alpha, "streams": drift.streams,
                "crossed": drift.crossed,
            },
        }  # fmt: skip


def _plain(values: deque[float]) -> list[float | None]:
    return [round(v, 4) if v - v == 0.0 else None for v in values]
