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


@pytest.mark.parametrize("history", [(), (0.1, 0.2, 0.05), (0.9,) * 20, (0.5,) * 400])
def test_a_bet_has_mean_one_whatever_came_before(history):
    before, factors = 0.0, []
    for p in [*(np.arange(200) + 0.5) / 200]:
        jumper = SimpleJumper([])
        for q in history:
            jumper.p_value = lambda score, q=q: q
            before = jumper.update(0.0)
        jumper.p_value = lambda score, p=p: p
        factors.append(math.exp(jumper.update(0.0) - before))
    assert np.mean(factors) == pytest.approx(1.0, abs=1e-9)


def test_a_long_healthy_past_leaves_enough_to_show_a_drift():
    rng = np.random.default_rng(5)
    jumper = SimpleJumper(rng.normal(size=200).tolist())
    for x in rng.normal(size=5000):
        jumper.update(float(x))
    assert jumper.log_capital > -2 * math.log(5000)
    late = [jumper.update(float(x)) for x in rng.normal(size=300) + 1.0]
    assert max(late) > math.log(100)


def test_no_drift_is_too_plain_to_be_counted():
    jumper = SimpleJumper([0.0] * 10_000)
    for i in range(3000):
        jumper.update(float(i))
    assert 230 < jumper.log_capital < math.inf


@pytest.mark.parametrize("shift", [-1.0, 1.0])
def test_drift_to_either_side_shows(shift):
    rng = np.random.default_rng(0)
    fleet = FleetMartingale({"sigma": rng.normal(size=500).tolist()}, alpha=0.01)
    for _ in range(100):
        fleet.update(ended(sigma=float(rng.normal())))
    assert fleet.crossed is None
    for _ in range(100):
        fleet.update(ended(sigma=float(rng.normal() + shift)))
    assert 100 < fleet.crossed < 190
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
