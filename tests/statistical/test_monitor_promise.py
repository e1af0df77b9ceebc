"""The false-alarm promise on streams of the bundled model, fresh from the engine."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from quantvane.engines.decoding import open_decoder
from quantvane.engines.registry import open_engine
from quantvane.monitor import Measured, StreamMonitor, state_table
from quantvane.monitor.fit import Settings, binomial_band, fit
from quantvane.monitor.trajectories import stack
from quantvane.run.calibrate_work import fingerprint_of
from quantvane.run.trajectories import Sampling, generate_group, prompts_of_text
from quantvane.spec import ModelSpec

BUNDLED = Path(__file__).parents[2] / "src" / "quantvane" / "assets" / "lm10m-f16.gguf"
HORIZON, SLOTS = 32, 16


def record(engine, text, count, seed):
    sampling = Sampling(1.0, 20, HORIZON, "raw", seed)
    prompts = prompts_of_text(engine, [text], count, 16, seed)
    decoder = open_decoder(engine, 64, SLOTS)
    rows = []
    for at in range(0, count, SLOTS):
        rows += generate_group(decoder, prompts[at : at + SLOTS], at, sampling)
    decoder.close()
    return stack(rows, HORIZON), fingerprint_of(engine, sampling)


@pytest.mark.slow
def test_a_thousand_fresh_streams_alarm_at_the_promised_rate(shared):
    text = (shared / "text" / "books-a.txt").read_text()
    engine = open_engine(ModelSpec.parse(f"{BUNDLED}?cache_type_k=f16&cache_type_v=f16&n_threads=1"), 64)
    made, mark = record(engine, text, 1600, 0)
    fresh, again = record(engine, text, 1000, 1)
    engine.close()
    assert asdict(mark) == asdict(again)
    calibration = fit(made, mark, Settings(0.05))
    table = state_table(calibration)
    alarms = 0
    for rows in fresh:
        monitor = StreamMonitor(calibration, table)
        for row in rows:
            monitor.advance(None if np.isnan(row[0]) else Measured(*map(float, row)))
        alarms += monitor.finish().first_alarm is not None
    # the calibration's own rate lies within about ±0.008 of α; the band is that of 1,000 streams at either end
    low, high = binomial_band(1000, 0.042)[0], binomial_band(1000, 0.058)[1]
    assert low <= alarms / 1000 <= high
