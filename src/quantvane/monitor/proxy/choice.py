"""One watched choice of an answer: the monitor, what the page draws of it, and its verdict."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

from quantvane.monitor.calibration import Calibration
from quantvane.monitor.records import Step, StreamSummary
from quantvane.monitor.shapes import observations
from quantvane.monitor.state import StateTable
from quantvane.monitor.stream import StreamMonitor

__all__ = ["TRACE", "Choice", "Verdict"]

TRACE = 240
"""Tokens of a stream that the page can draw."""

_MISSING_SHARE = 0.1
_NAN = math.nan


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is said of a choice, at its end or so far.

    Attributes:
        label: INVALID where the promise does not hold for this stream; ALARM where any statistic alarmed, even if
            the alarm ended; else the state after the last token.
        reason: why it is INVALID; "" where it is not.
        summary: the monitor's own.
        missing: tokens without a usable list.
        last: the last step, None where there was none.
    """

    label: str
    reason: str
    summary: StreamSummary
    missing: int
    last: Step | None

    def public(self, calibration: Calibration) -> dict[str, Any]:
        """The annotation that clients see; no NaN."""
        last = self.last
        seen = last is not None and last.lambda_high == last.lambda_high
        out: dict[str, Any] = {
            "label": self.label, "tokens": self.summary.tokens, "first_alarm": self.summary.first_alarm,
            "alarms": list(self.summary.alarms), "missing": self.missing,
            "sigma": last.sigma if seen and last else None,
            "lambda": [last.lambda_low, last.lambda_high] if seen and last else None,
            "alpha": calibration.alpha, "horizon": calibration.horizon,
        }  # fmt: skip
        if self.reason:
            out["reason"] = self.reason
        return out


class Choice:
    """Feeds a monitor from the server's lists.

    Args:
        number: position of the stream in the order of starts. index: the choice's number in its answer.
    """

    __slots__ = (
        "_calibration", "_entropy", "_seen", "closed", "counts", "entropy", "finished", "index", "last", "missing",
        "monitor", "number", "sigma",
    )  # fmt: skip

    def __init__(self, number: int, index: int, calibration: Calibration, table: StateTable) -> None:
        self.number, self.index = number, index
        self.monitor = StreamMonitor(calibration, table)
        self._calibration, self._entropy = calibration, calibration.base.entropy
        self._seen: set[str] = set()
        self.sigma: deque[float] = deque(maxlen=TRACE)
        self.entropy: deque[float] = deque(maxlen=TRACE)
        self.counts: dict[str, int] = {}
        self.last: Step | None = None
        self.missing = 0
        self.finished = self.closed = False

    def feed(self, logprobs: object, *, text: bool) -> tuple[list[tuple[Step, tuple[str, ...]]], int | None]:
        """Take a piece of the answer.

        Args:
            logprobs: what the server gave with it. text: whether it holds part of the answer; such a piece without
                a list is a token that was not seen.

        Returns:
            (step, statistics that alarm for the first time) for each passage, and the number of the token within
            the piece at which the first of them happened.
        """
        passages: list[tuple[Step, tuple[str, ...]]] = []
        first: int | None = None
        for i, observation in enumerate(observations(logprobs, self._calibration.fingerprint.top_k) or [None] * text):
            step = self.monitor.step(observation)
            self.last = step
            self.counts[step.label] = self.counts.get(step.label, 0) + 1
            if step.sigma != step.sigma:
                self.missing += 1
            else:
                self._entropy += self._calibration.smoothing * (step.entropy - self._entropy)
            self.sigma.append(step.sigma)
            self.entropy.append(self._entropy if step.sigma == step.sigma else _NAN)
            if step.alarms:
                new = tuple(name for name in step.alarms if name not in self._seen)
                if new:
                    self._seen.update(new)
                    passages.append((step, new))
                    first = i if first is None else first
        return passages, first

    def verdict(self, reason: str) -> Verdict:
        """The verdict so far; ``reason`` is why the promise does not hold for the whole request, if it does not."""
        summary = self.monitor.finish()
        tokens = summary.tokens
        if not reason:
            if tokens == self.missing:
                reason = "the upstream returned no usable log-probabilities"
            elif self.missing > _MISSING_SHARE * tokens:
                reason = f"{self.missing} of {tokens} tokens came without usable log-probabilities"
        label = "INVALID" if reason else "ALARM" if summary.alarms else summary.label
        return Verdict(label, reason, summary, self.missing, self.last)
