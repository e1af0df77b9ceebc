from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantvane.errors import DataError
from quantvane.stats.sequential import betting, log_capital
from reference.paired_slow import capital

differences = st.lists(st.sampled_from([-1.0, 0.0, 0.0, 1.0]), min_size=1, max_size=40)


def _pair(d):
    d = np.asarray(d)
    return d < 0, d > 0


@given(differences, st.floats(-0.95, 0.95), st.sampled_from([1, -1]))
def test_capital_is_the_bettors_money(d, delta, sign):
    found = np.exp(log_capital(np.array(d), np.ones(len(d)), delta, sign))
    assert found == pytest.approx(capital(d, [1.0] * len(d), delta, sign), rel=1e-9)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("delta", [-0.7, -0.02, 0.0, 0.1, 0.6])
def test_a_fair_game_has_expectation_one(delta, sign):
    # every law on {−1, 0, 1} with mean delta, two items in a row, summed over outcomes
    for flips in np.linspace(abs(delta), 1, 4):
        law = {1.0: (flips + delta) / 2, -1.0: (flips - delta) / 2, 0.0: 1 - flips}
        expected = sum(
            p * q * math.exp(log_capital(np.array([a, b]), np.ones(2), delta, sign)[-1])
            for a, p in law.items()
            for b, q in law.items()
        )
        assert expected == pytest.approx(1, rel=1e-9)


@settings(max_examples=40)
@given(differences)
def test_capital_falls_in_the_hypothesis(d):
    d, ones = np.array(d), np.ones(len(d))
    up = [log_capital(d, ones, delta, 1)[-1] for delta in np.linspace(-0.99, 0.99, 41)]
    down = [log_capital(d, ones, delta, -1)[-1] for delta in np.linspace(-0.99, 0.99, 41)]
    assert np.all(np.diff(up) <= 1e-9)
    assert np.all(np.diff(down) >= -1e-9)


def test_decisions_and_when_they_fell():
    d = np.zeros(400)
    d[::2] = -1
    found = betting(*_pair(d), 0.02)
    assert found.decision == "worse"
    prefix = betting(*_pair(d[: found.decided_at]), 0.02)
    assert prefix.value >= 20
    assert prefix.decided_at == found.decided_at
    assert betting(*_pair(d[: found.decided_at - 1]), 0.02).decided_at is None
    assert betting(*_pair(-d), 0.02).decision == "better"
    assert found.high < 0


def test_equivalence_is_decided_without_a_flip():
    found = betting(*_pair(np.zeros(2000)), 0.02)
    assert found.decision == "equivalent"
    assert found.value == 1
    again = betting(*_pair(np.zeros(found.decided_at)), 0.02)
    assert -0.02 < again.low < 0 < again.high < 0.02
    before = betting(*_pair(np.zeros(found.decided_at - 1)), 0.02)
    assert before.decided_at is None
    assert max(-before.low, before.high) >= 0.02 - 1e-5


def test_the_order_moves_the_decision_but_not_the_value():
    d = np.array([-1.0] * 30 + [0.0] * 150)
    early, late = betting(*_pair(d), 0.02), betting(*_pair(d[::-1]), 0.02)
    assert early.value == pytest.approx(late.value, rel=1e-9)
    assert early.decided_at < 30
    assert late.decided_at > 150


def test_clusters_bet_once():
    d = np.repeat([-1.0] * 12 + [0.0] * 20, 4)
    labels = np.repeat(np.arange(32), 4)
    alone, together = betting(*_pair(d), 0.02), betting(*_pair(d), 0.02, labels)
    once = betting(*_pair([-1.0] * 12 + [0.0] * 20), 0.02)
    assert together.value == pytest.approx(once.value, rel=1e-9)
    assert alone.value > 1e3 * together.value
    assert together.decided_at == 4 * once.decided_at
    # interleaved clusters count when they are complete
    mixed = betting(*_pair(np.tile([-1.0] * 12 + [0.0] * 20, 4)), 0.02, np.tile(np.arange(32), 4))
    assert mixed.value == pytest.approx(once.value, rel=1e-9)
    assert mixed.decided_at == 96 + once.decided_at


def test_long_runs_do_not_overflow():
    found = betting(*_pair(np.full(5000, 1.0)), 0.02)
    assert math.isfinite(found.value)
    assert found.value > 1e300
    assert found.low > 0.9
    assert found.high == 1


def test_degenerate_data_and_settings():
    empty = betting(np.zeros(0, bool), np.zeros(0, bool), 0.02)
    assert empty.to_dict() == {"value": None, "decided_at": None, "reason": "no items"}
    for margin, alpha in ((0.0, 0.05), (0.02, 0.0), (0.02, 1.0), (math.nan, 0.05)):
        with pytest.raises(DataError):
            betting(np.ones(2, bool), np.ones(2, bool), margin, alpha=alpha)
