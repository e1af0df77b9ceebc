"""The rule of the verdicts, both ways, on constructed numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantvane.errors import DataError
from quantvane.fisher.verdict import Departure, WindowEvidence, auroc, verdict
from quantvane.types import Interval


def window(slope: float, curvature: float, third: float, **more: float) -> WindowEvidence:
    """A window whose λ moves from 1 by exactly slope + curvature/2 + third."""
    return WindowEvidence(1.0, 1.0 + slope + curvature / 2 + third, slope, curvature, **more)


RISING = [window(0.0, 0.2, 0.01) for _ in range(6)]


def test_a_strict_rise_everywhere_supports_the_theorem() -> None:
    found = verdict(RISING, space="logit")
    assert found.theorem.outcome == "supported"
    assert "rose by more than that in 6" in found.theorem.sentence
    assert "λ_max (logit)" in found.theorem.sentence


def test_one_fall_beyond_third_order_contradicts_it() -> None:
    found = verdict([*RISING, window(-0.2, 0.1, 0.01)])
    assert found.theorem.outcome == "contradicted"
    assert "fell in 1 of 7 windows, in 1 of them by more than third" in found.theorem.sentence


def test_a_fall_within_third_order_does_not() -> None:
    found = verdict([*RISING, window(0.02, 0.0, -0.05)])
    assert found.theorem.outcome == "not contradicted"
    assert "fell in 1 of 7 windows, in 0 of them" in found.theorem.sentence


def test_no_change_is_neither_rise_nor_fall() -> None:
    found = verdict([window(0.0, 0.0, 0.0)] * 6)
    assert found.theorem.outcome == "not contradicted"
    assert "fell in 0 of 6" in found.theorem.sentence


def test_few_windows_are_undecided_unless_one_contradicts() -> None:
    assert verdict(RISING[:4]).theorem.outcome == "undecided"
    assert verdict([window(-0.5, 0.0, 0.0)]).theorem.outcome == "contradicted"
    assert verdict([]).theorem.outcome == "undecided"
    assert verdict([window(math.nan, 0.0, 0.0)] * 9).theorem.outcome == "undecided"


def test_leading_terms_are_reported() -> None:
    some = [window(0.1, 0.2, 0.0, lowest_first=-0.3, lowest_second=0.1)] * 3
    more = [window(0.0, 0.2, 0.0, lowest_first=0.0, lowest_second=-0.1)] * 2
    text = verdict([*some, *more]).theorem.sentence
    assert "not zero in 3" in text
    assert "positive semidefinite in 2 of 5 windows, the second-order change in 3" in text


@settings(deadline=None)
@given(st.integers(0, 10**6))
def test_outcomes_are_exclusive_and_follow_the_declared_rule(seed: int) -> None:
    rng = np.random.default_rng(seed)
    windows = [window(*rng.normal(size=3) * 0.1) for _ in range(rng.integers(1, 9))]
    below = [w.moved < w.value - w.remainder - 1e-5 for w in windows]
    above = [w.moved > w.value + w.remainder + 1e-5 for w in windows]
    outcome = verdict(windows).theorem.outcome
    if any(below):
        assert outcome == "contradicted"
    elif len(windows) < 5:
        assert outcome == "undecided"
    else:
        assert outcome == ("supported" if all(above) else "not contradicted")


def test_weyl_checks_the_numbers() -> None:
    assert verdict(RISING).weyl_holds is None
    assert verdict([window(-0.2, 0.0, 0.0, weyl=-0.3)]).weyl_holds is True
    assert verdict([window(-0.2, 0.0, 0.0, weyl=-0.1)]).weyl_holds is False


def departure(kind: str, value: float, low: float, high: float) -> Departure:
    return Departure(kind, Interval(value, low, high))


def test_departures() -> None:
    up, down = departure("other text", 0.8, 0.7, 0.9), departure("random tokens", 0.0, 0.0, 0.1)
    unclear = departure("code", 0.55, 0.4, 0.7)
    assert verdict(RISING, [up]).proposition.outcome == "supported"
    found = verdict(RISING, [up, down, unclear]).proposition
    assert found.outcome == "contradicted"
    assert "random tokens lower λ_max" in found.sentence
    assert verdict(RISING, [up, unclear]).proposition.outcome == "undecided"
    assert verdict(RISING).proposition.outcome == "undecided"
    assert verdict(RISING, [up, departure("x", math.nan, math.nan, math.nan)]).proposition.outcome == "undecided"


def test_auroc_counts_pairs() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 9, 12).astype(float), rng.integers(3, 12, 15).astype(float)
    slow = np.mean([1.0 if b > a else 0.5 if b == a else 0.0 for a in x for b in y])
    found = auroc(x, y)
    assert found.value == pytest.approx(slow)
    assert 0 < found.low < found.value < found.high < 1
    back = auroc(y, x)
    assert (back.value, back.low) == (pytest.approx(1 - slow), pytest.approx(1 - found.high))
    assert auroc([1.0, 2], [3.0, 4]).value == 1.0
    assert auroc([3.0, 4], [1.0, 2]).high < 1.0
    assert math.isnan(auroc([1.0], [2.0, 3]).value)
    with pytest.raises(DataError):
        auroc(np.ones((2, 2)), [1.0])


@pytest.mark.slow
def test_auroc_interval_covers() -> None:
    rng = np.random.default_rng(1)
    truth, inside, trials = 0.76024993890652, 0, 2000  # Φ(1/√2)
    for _ in range(trials):
        found = auroc(rng.normal(size=30), rng.normal(size=30) + 1)
        inside += found.low <= truth <= found.high
    assert 0.93 <= inside / trials <= 0.97
