"""Prediction of σ from noise: formulas, agreement measures, and the promise of its interval."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quantvane.errors import DataError
from quantvane.fisher.prediction import (
    Agreement,
    Prediction,
    agreement,
    holds,
    holds_down_to,
    predict_by_draws,
    predict_by_terms,
    spearman,
)
from quantvane.types import Interval


def quadratic(rng: np.random.Generator, size: int = 30):
    """λ(θ) = 5 + b·θ + ½θᵀAθ, whose terms are exact."""
    a = rng.normal(size=(size, size))
    return rng.normal(size=size), a + a.T


def test_center_is_one_plus_half_the_trace() -> None:
    rng = np.random.default_rng(0)
    b, a = quadratic(rng)
    scale = rng.uniform(0.01, 0.03, size=30)
    draws = rng.normal(size=(4000, 30)) * scale
    slope, bend = (draws @ b)[:, None], np.einsum("ki,ij,kj->k", draws, a, draws)[:, None]
    found = predict_by_terms([5.0], slope, bend)
    trace = float(np.sum(scale**2 * np.diag(a)))
    assert found.center[0] == pytest.approx(1 + trace / 10, abs=2e-3)
    spread = (found.high - found.low)[0] / 2 / 1.96
    assert spread == pytest.approx(math.sqrt(np.sum((scale * b) ** 2)) / 5, rel=0.05)


def test_a_negative_trace_predicts_a_fall() -> None:
    """That σ rises is no assumption: the sign of the trace decides."""
    found = predict_by_terms([2.0], [[0.1], [-0.1], [0.1]], [[-0.4]] * 3)
    assert found.center[0] == pytest.approx(0.9)


@pytest.mark.slow
@pytest.mark.parametrize("probes", [4, 8])
def test_intervals_hold_their_promise_where_the_expansion_is_exact(probes: int) -> None:
    rng = np.random.default_rng(probes)
    b, a = quadratic(rng)
    scale, inside, drawn, trials = 0.03, 0, 0, 4000
    for _ in range(trials):
        draws = rng.normal(size=(probes + 1, 30)) * scale
        slope, bend = draws @ b, np.einsum("ki,ij,kj->k", draws, a, draws)
        sigma = 1 + (slope + bend / 2) / 5
        found = predict_by_terms([5.0], slope[:-1, None], bend[:-1, None])
        inside += found.low[0] <= sigma[-1] <= found.high[0]
        found = predict_by_draws([5.0], 5 * sigma[:-1, None])
        drawn += found.low[0] <= sigma[-1] <= found.high[0]
    assert 0.92 <= inside / trials <= 0.985
    assert 0.92 <= drawn / trials <= 0.97


def test_draws_are_read_on_the_logarithm() -> None:
    found = predict_by_draws([2.0, 1.0], [[4.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    assert found.center == pytest.approx([1.0, 1.0])
    assert found.low[0] * found.high[0] == pytest.approx(1.0)
    assert (found.low[1], found.high[1]) == (1.0, 1.0)


def test_refusals() -> None:
    with pytest.raises(DataError):
        predict_by_terms([1.0], [[0.1]], [[0.1]])
    with pytest.raises(DataError):
        predict_by_draws([1.0], [[0.1, 0.2]] * 4)
    with pytest.raises(DataError):
        agreement(Prediction(np.ones(2), np.ones(2), np.ones(2), 4), [1.0])


def test_agreement() -> None:
    center = np.array([1.0, 1.1, 1.2, 1.3, 1.4, 2.0])
    made = Prediction(center, center - 0.15, center + 0.15, 4)
    found = agreement(made, [1.1, 1.2, 1.3, 1.4, 1.5, math.nan])
    assert (found.windows, found.left_out) == (5, 1)
    assert found.bias == pytest.approx(-0.1)
    assert found.coverage.value == 1.0
    assert found.rank.value == pytest.approx(1.0)
    assert "exactly" in found.rank.reason
    assert 0 < found.skill < 1
    assert agreement(made, np.full(6, 9.0)).coverage.value == 0.0
    none = agreement(made, np.full(6, math.nan))
    assert none.windows == 0
    assert none.coverage.reason


def test_spearman() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=40)
    found = spearman(x, x + rng.normal(size=40))
    assert found.low < found.value < found.high
    assert math.isnan(spearman(np.ones(9), x[:9]).value)
    assert math.isnan(spearman(x[:3], x[:3]).value)


def made(coverage: float, bias: float, left_out: int = 0) -> Agreement:
    one = Interval(coverage)
    return Agreement(9, left_out, 1.0, 1.0, bias, bias, one, one, 0.0)


def test_down_to_which_width() -> None:
    assert holds(made(0.8, 0.05))
    assert not holds(made(0.79, 0.0))
    assert not holds(made(1.0, -0.06))
    assert not holds(made(1.0, 0.0, left_out=1))
    table = {8: made(1, 0), 6: made(0.9, 0.01), 4: made(1, 0.04), 3: made(0.5, 0.2), 2: made(1, 0)}
    assert holds_down_to(table) == 4  # good again at 2 does not count
    assert holds_down_to({8: made(0.1, 0)}) is None
    assert holds_down_to({}) is None
