import math
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from quantvane.monitor import Measured, StreamMonitor
from reference.monitor_twin import stream
from support_monitor import NAMES, calibration, distribution, observe

CAL = calibration()


def rows(rng, n=40):
    out = []
    for _ in range(n):
        if rng.random() < 0.1:
            out.append(None)
            continue
        lam = float(rng.uniform(0.005, 0.45))
        kl = math.nan if rng.random() < 0.05 else float(rng.exponential(3.0))
        out.append((lam, lam * 1.01, float(rng.exponential(1.8)), kl, float(rng.exponential(2.0))))
    return out


def test_steps_alarms_and_extremes_are_those_of_the_twin():
    rng = np.random.default_rng(0)
    alarmed = cleared = 0
    for _ in range(200):
        made = rows(rng)
        monitor = StreamMonitor(CAL)
        steps = [monitor.advance(None if row is None else Measured(*row)) for row in made]
        first, order, extremes, shown = stream(
            made, CAL.base, CAL.thresholds, CAL.lower, CAL.smoothing, CAL.horizon, NAMES
        )
        summary = monitor.finish()
        assert (summary.first_alarm, list(summary.alarms), summary.tokens) == (first, order, len(made))
        assert summary.extremes == pytest.approx(extremes, nan_ok=True)
        assert [frozenset(step.alarms) for step in steps] == shown
        assert all((step.label == "INVALID") == (row is None) for step, row in zip(steps, made, strict=True))
        assert all((step.label == "ALARM") == bool(step.alarms) for step in steps if step.label != "INVALID")
        alarmed += first is not None
        cleared += any(a and not b for a, b in pairwise(shown))
    assert 20 < alarmed < 190
    assert cleared > 5


def test_an_alarm_is_exactly_an_extreme_above_its_threshold():
    rng = np.random.default_rng(1)
    for _ in range(200):
        monitor = StreamMonitor(CAL)
        for row in rows(rng):
            monitor.advance(None if row is None else Measured(*row))
        summary = monitor.finish()
        over = {name for name in NAMES if summary.extremes[name] > CAL.thresholds[name]}
        assert set(summary.alarms) == over


def test_beyond_the_horizon_nothing_new_alarms():
    monitor = StreamMonitor(CAL)
    calm, wild = Measured(0.2, 0.2, 1.5, 2.0, 2.0), Measured(0.2, 0.2, 9.0, 40.0, 2.0)
    for _ in range(CAL.horizon):
        assert monitor.covered
        monitor.advance(calm)
    assert not monitor.covered
    steps = [monitor.advance(wild) for _ in range(20)]
    assert {step.label for step in steps} == {"WATCH"}
    assert monitor.finish().first_alarm is None
    assert monitor.finish().extremes["kl_high"] == pytest.approx(2.0)


def test_an_alarm_ends_after_three_quiet_steps_and_not_before():
    monitor = StreamMonitor(calibration(smoothing=1.0, horizon=100))
    calm, wild = Measured(0.2, 0.2, 1.5, 2.0, 2.0), Measured(0.2, 0.2, 1.5, 9.0, 2.0)
    labels = [monitor.advance(m).label for m in (calm, wild, calm, calm, wild, calm, calm, calm, calm)]
    assert labels == ["NOMINAL", "ALARM", "ALARM", "ALARM", "ALARM", "ALARM", "ALARM", "NOMINAL", "NOMINAL"]


def test_a_stream_without_observations_is_invalid_never_nominal():
    monitor = StreamMonitor(CAL)
    assert monitor.finish().label == "INVALID"
    assert [monitor.step(None).label for _ in range(3)] == ["INVALID"] * 3
    summary = monitor.finish()
    assert (summary.label, summary.tokens, summary.first_alarm) == ("INVALID", 3, None)
    assert all(math.isnan(x) for x in (*summary.extremes.values(), *summary.means.values()))


def test_a_gap_breaks_the_comparison_with_the_step_before():
    rng = np.random.default_rng(2)
    a, b = observe(distribution(rng)), observe(distribution(rng))
    monitor = StreamMonitor(CAL)
    steps = [monitor.step(x) for x in (a, b, None, b, a)]
    assert [math.isnan(step.consecutive_kl) for step in steps] == [True, False, True, True, False]


def test_only_the_past_enters():
    rng = np.random.default_rng(3)
    seen = [observe(distribution(rng)) for _ in range(20)]
    short, long = StreamMonitor(CAL), StreamMonitor(CAL)
    first = [short.step(x) for x in seen[:10]]
    assert [repr(long.step(x)) for x in seen][:10] == [repr(step) for step in first]


def test_a_step_costs_less_than_a_tenth_of_a_millisecond():
    import time

    rng = np.random.default_rng(4)
    seen = [observe(distribution(rng)) for _ in range(300)]
    best = math.inf
    for _ in range(5):
        monitor = StreamMonitor(CAL)
        begun = time.process_time()
        for x in seen:
            monitor.step(x)
        best = min(best, (time.process_time() - begun) / len(seen))
    assert best < 1e-4


def test_importing_the_monitor_is_light():
    heavy = ["torch", "llama_cpp", "numba", "transformers", "scipy", "pyarrow"]
    code = (
        "import sys, quantvane.monitor as m; cal = m.StreamMonitor\n"
        f"print([x for x in {heavy!r} if x in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
