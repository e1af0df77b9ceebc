"""The monitor of one stream: a step a token, an alarm at first passage."""

from __future__ import annotations

import math
from functools import partial

from quantvane.monitor.averages import STATISTICS, Averages, ln_lambda
from quantvane.monitor.calibration import Base, Calibration
from quantvane.monitor.records import Observation, Step, StreamSummary
from quantvane.monitor.state import StateTable, fill
from quantvane.monitor.statistic import Measured, Seen, look, measure

__all__ = ["CLEAR_AFTER", "FLEET_SCORES", "StreamMonitor", "state_table"]

CLEAR_AFTER = 3
"""Steps in a row at or below the lower threshold that end an alarm."""

FLEET_SCORES = ("sigma", "entropy", "kl", "nll")
_NAN = math.nan


class StreamMonitor:
    """Watches one stream under a calibration.

    A statistic alarms when its average first exceeds its threshold within the horizon, and stays in alarm until it
    has been at or below its lower threshold for `CLEAR_AFTER` steps in a row. P(any alarm in a fresh stream) ≤ α is
    what the calibration promises. **Beyond the horizon** nothing is promised, so no new alarm is raised there: what
    would have been one is labelled WATCH, and an alarm that was raised before may still end. So the promise holds for
    streams of any length; calibrate with the horizon you want watched.

    A missing or unusable observation is INVALID, changes no average and no alarm, and breaks the comparison with
    the next step. Memory is constant; one instance serves one stream and one thread at a time.

    >>> from quantvane.monitor import load_calibration, StreamMonitor      # doctest: +SKIP
    >>> monitor = StreamMonitor(load_calibration("cal.json"))               # doctest: +SKIP
    """

    __slots__ = (
        "_active", "_averages", "_before", "_below", "_cal", "_count", "_extremes", "_first", "_index", "_label",
        "_passed", "_sums", "_table", "_valid",
    )  # fmt: skip

    def __init__(self, calibration: Calibration, table: StateTable | None = None) -> None:
        """``table``: of `state_table`, so that many streams share one."""
        self._cal = calibration
        self._table = state_table(calibration) if table is None else table
        self._averages = Averages(calibration.base, calibration.smoothing)
        self._before: Seen | None = None
        self._active: dict[str, bool] = {}
        self._below: dict[str, int] = {}
        self._passed: list[str] = []
        self._first: int | None = None
        self._extremes = dict.fromkeys(calibration.statistics, _NAN)
        self._sums = [0.0] * len(FLEET_SCORES)
        self._count = [0] * len(FLEET_SCORES)
        self._index = self._valid = 0
        self._label = "INVALID"

    @property
    def covered(self) -> bool:
        """Whether the next step lies within the horizon of the promise."""
        return self._index < self._cal.horizon

    def step(self, observation: Observation | None) -> Step:
        """Take one token's distribution, or None where it is missing."""
        now = None if observation is None else look(observation)
        if now is None or observation is None:
            self._before = None
            return self.advance(None)
        measured = measure(now, self._before, observation.chosen)
        self._before = now
        return self.advance(measured)

    def advance(self, measured: Measured | None) -> Step:
        """Take one token's numbers, where someone else computed them (exactly, from all logits); None for missing."""
        index = self._index
        self._index = index + 1
        if measured is None or not (measured.lambda_high >= 0.0 and measured.entropy >= 0.0):
            self._label = "INVALID"
            alarms = tuple(self._active)
            return Step(index, _NAN, _NAN, _NAN, _NAN, _NAN, "INVALID", alarms)
        self._valid += 1
        m = self._averages
        m.update(measured)
        covered = index < self._cal.horizon
        if covered:
            self._tally(measured)
        self._passages(index, covered)
        label = "ALARM" if self._active else self._table.label(m.sigma, m.kl, m.entropy)
        if label == "ALARM" and not self._active:
            label = "WATCH"  # beyond the horizon
        self._label = label
        return Step(
            index, measured.lambda_low, measured.lambda_high, math.exp(m.sigma), measured.entropy, measured.kl, label,
            tuple(self._active),
        )  # fmt: skip

    def _tally(self, measured: Measured) -> None:
        sigma = ln_lambda(measured) - math.log(self._cal.base.lambda_max)
        values = (sigma, measured.entropy, measured.kl, measured.nll)
        for i, value in enumerate(values):
            if value == value:
                self._sums[i] += value
                self._count[i] += 1

    def _passages(self, index: int, covered: bool) -> None:
        cal, active, below = self._cal, self._active, self._below
        for name in cal.statistics:
            value = STATISTICS[name](self._averages)
            if covered and not value <= self._extremes[name]:
                self._extremes[name] = value
            if name in active:
                below[name] = below[name] + 1 if value <= cal.lower[name] else 0
                if below[name] >= CLEAR_AFTER:
                    del active[name]
            elif covered and value > cal.thresholds[name]:
                active[name], below[name] = True, 0
                if name not in self._passed:
                    self._passed.append(name)
                if self._first is None:
                    self._first = index

    def finish(self) -> StreamSummary:
        """The stream as a whole."""
        means = {
            name: total / count if count else _NAN
            for name, total, count in zip(FLEET_SCORES, self._sums, self._count, strict=True)
        }
        return StreamSummary(
            self._index, self._first, tuple(self._passed), self._label if self._valid else "INVALID",
            dict(self._extremes), means,
        )  # fmt: skip


def state_table(calibration: Calibration) -> StateTable:
    """The table of a calibration: its thresholds as cuts, and what each cell is called.

    In this order: ALARM where a statistic is above its threshold ("low σ, high entropy", the statistic ``flat``, among
    them), DEGENERATE where entropy and divergence both lie in the lowest hundredth, WATCH above a lower threshold,
    CONFIDENT where σ and entropy lie in their lowest tenth, else NOMINAL.
    """
    base = calibration.base
    high, lower = (_above(t, base) for t in (calibration.thresholds, calibration.lower))
    quiet = [x for x in (base.sigma_calm,) if math.isfinite(x)]
    still = [x for x in (base.entropy_calm, base.entropy_still) if math.isfinite(x)]
    sigma = (*high["sigma"], *lower["sigma"], *quiet)
    kl = (*high["kl"], *lower["kl"], *(x for x in (base.kl_still,) if math.isfinite(x)))
    entropy = (*high["entropy"], *lower["entropy"], *still)
    return fill(sigma, kl, entropy, partial(_rule, calibration))


def _up(value: float) -> float:
    """The cut that makes "≥ cut" mean "> value"."""
    return math.nextafter(value, math.inf)


def _flat_corner(limit: float, base: Base) -> tuple[float, float]:
    """(cut of ln σ, cut of entropy): ``flat`` > limit where σ is below the first and entropy above the second."""
    return -limit * base.sigma_spread, _up(base.entropy + limit * base.entropy_spread)


def _above(limits: object, base: Base) -> dict[str, list[float]]:
    cuts: dict[str, list[float]] = {"sigma": [], "kl": [], "entropy": []}
    for name, limit in dict(limits).items():  # type: ignore[call-overload]
        axis, _, side = name.partition("_")
        if name == "flat":
            sigma, entropy = _flat_corner(limit, base)
            cuts["sigma"].append(sigma)
            cuts["entropy"].append(entropy)
        elif axis in cuts:
            cuts[axis].append(_up(limit) if side == "high" else -limit)
    return cuts


def _rule(calibration: Calibration, sigma: float, kl: float, entropy: float) -> str:
    base = calibration.base
    place = {"sigma": sigma, "kl": kl, "entropy": entropy}

    def beyond(limits: object) -> bool:
        for name, limit in dict(limits).items():  # type: ignore[call-overload]
            axis, _, side = name.partition("_")
            if name == "flat":
                low, high = _flat_corner(limit, base)
                if sigma < low and entropy >= high:
                    return True
            elif axis in place and (place[axis] >= _up(limit) if side == "high" else place[axis] < -limit):
                return True
        return False

    if beyond(calibration.thresholds):
        return "ALARM"
    if entropy < base.entropy_still and kl < base.kl_still:
        return "DEGENERATE"
    if beyond(calibration.lower):
        return "WATCH"
    if sigma < base.sigma_calm and entropy < base.entropy_calm:
        return "CONFIDENT"
    return "NOMINAL"
