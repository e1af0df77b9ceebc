import math

import numpy as np
import pytest

from quantvane.errors import DataError
from quantvane.monitor import FleetMartingale, StreamSummary
from quantvane.monitor.martingale import SimpleJumper


def ended(**means):
    return StreamSummary(5, None, (), "NOMINAL", {}, means)


def test_p_values_are_ranks_among_all_so_far():
    jumper = SimpleJumper([1.0, 2.0, 3.0, 4.0])
    assert 0.0 <= jumper.p_value(9.0) < 1 / 5
    assert 5 / 6 <= jumper.p_value(0.0) <= 1.0
    assert 0.0 <= jumper.p_value(9.0) < 2 / 7  # tied with the first: one of the two largest


def test_p_values_of_ties_are_spread_evenly():
    jumper = SimpleJumper([1.0] * 500, seed=3)
    values = [jumper.p_value(1.0) for _ in range(500)]
    assert np.histogram(values, 5, (0, 1))[0].min() > 70


def test_the_bet_has_mean_one():
    for shares in ([0.2] * 5, [0.5, 0.2, 0.1, 0.1, 0.1]):
        factors = []
        for p in (np.arange(20_000) + 0.5) / 20_000:
            jumper = SimpleJumper([])
            jumper._shares = list(shares)
            jumper.p_value = lambda score, p=p: p
            factors.append(math.exp(jumper.update(0.0)))
        assert np.mean(factors) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("shift", [-1.0, 1.0])
def test_drift_to_either_side_shows(shift):
    rng = np.random.default_rng(0)
    fleet = FleetMartingale({"sigma": rng.normal(size=500).tolist()}, alpha=0.01)
    for _ in range(100):
        fleet.update(ended(sigma=float(rng.normal())))
    assert fleet.crossed is None
    for _ in range(100):
        fleet.update(ended(sigma=float(rng.normal() + shift)))
    assert 100 < fleet.crossed < 180
    assert fleet.drifted


def test_streams_without_scores_are_skipped_and_counted():
    fleet = FleetMartingale({"sigma": [0.0, 1.0], "nll": [1.0, 2.0]})
    fleet.update(ended(sigma=math.nan, nll=math.nan))
    fleet.update(ended())
    fleet.update(ended(sigma=0.5, nll=math.nan))
    assert (fleet.streams, fleet.skipped) == (1, 2)
    assert math.isfinite(fleet.log_value)


def test_scores_must_be_there():
    for bad in ({}, {"sigma": []}):
        with pytest.raises(DataError):
            FleetMartingale(bad)
    with pytest.raises(DataError):
        FleetMartingale({"sigma": [1.0]}, alpha=1.5)
    with pytest.raises(DataError):
        FleetMartingale({"sigma": [1.0]}, scores=("kl",))


@pytest.mark.slow
def test_ville_holds_with_few_calibration_streams():
    rng = np.random.default_rng(1)
    crossed = 0
    for trial in range(400):
        scores = {name: rng.normal(size=30).tolist() for name in ("sigma", "entropy")}
        fleet = FleetMartingale(scores, alpha=0.1, seed=trial)
        for _ in range(300):
            fleet.update(ended(sigma=float(rng.normal()), entropy=float(rng.normal())))
        crossed += fleet.crossed is not None
    assert crossed / 400 <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / 400)
