"""Bounds of λ_max from top-k lists: never violated, attained, no wider than promised; bad input refused."""

from __future__ import annotations

import numpy as np
import pytest

from quantvane.errors import DataError
from quantvane.fisher import lambda_bounds_topk, lambda_heuristic_interval, lambda_max
from reference.lambda_reference import log_softmax

SLACK = 1 + 1e-11
ROUNDED = 1e-15  # probabilities in doubles fix the mass they leave, and so λ, only to this
TAILS = ("concentrated", "even", "spike", "geometric", "random")


def head(rng, k, size):
    """A top-k list (k,) that some distribution over ``size`` tokens has."""
    if rng.random() < 0.5:
        full = np.sort(log_softmax(rng.normal(size=size) * rng.choice([0.01, 0.5, 2.0, 6.0])))[::-1]
        return np.exp(full[:k])
    # heads with a heavy tail: shrink towards the smallest feasible mass
    p = np.sort(rng.dirichlet(np.ones(k)))[::-1] + rng.uniform(0, 1)
    least = p.sum() + (size - k) * p[-1]
    return p / rng.uniform(p.sum(), least)


def tail(rng, kind, rest, cap, count):
    """``count`` entries in [0, cap] that sum to ``rest``."""
    if count == 0 or rest <= 0:
        return np.zeros(count)
    out = np.zeros(count)
    if kind == "even":
        return np.full(count, rest / count)
    if kind == "concentrated":
        full = min(int(rest // cap), count)
        out[:full] = cap
        if full < count:
            out[full] = min(rest - full * cap, cap)
        return out
    if kind == "spike":
        out[0] = min(cap, rest)
        out[1:] = (rest - out[0]) / max(count - 1, 1)
    elif kind == "geometric":
        out = rest * rng.uniform(0.2, 0.95) ** np.arange(count)
    else:
        out = rng.exponential(size=count) ** rng.choice([1, 4])
    out *= rest / out.sum()
    for _ in range(60):  # push what exceeds the cap onto the entries that have room
        over = np.maximum(out - cap, 0).sum()
        out = np.minimum(out, cap)
        room = cap - out
        if over <= 1e-18 or room.sum() <= 0:
            break
        out += room * min(over / room.sum(), 1.0)
    return out


def violations(seed, count):
    """(violations, tails checked); each tail meets bounds with and without V, with and without rounding."""
    rng = np.random.default_rng(seed)
    bad = checked = 0
    while checked < count:
        size = int(rng.integers(2, 120))
        k = int(rng.integers(1, size + 1))
        p = head(rng, k, size)
        rest = max(1.0 - p.sum(), 0.0)
        full = np.array([np.concatenate([p, tail(rng, kind, rest, p[-1], size - k)]) for kind in TAILS])
        # a random tail that did not settle under its cap is not one that fits
        fits = (np.abs(full.sum(axis=1) - 1) < 1e-12) & (full[:, k:] <= p[-1] * (1 + 1e-12)).all(axis=1)
        with np.errstate(divide="ignore"):
            value = lambda_max(np.log(full[fits]))
        checked += len(value)
        eta = rng.choice([1e-2, 1e-4, 1e-7])
        for rounding in (0.0, eta):
            listed = rng.permutation(np.log(p) + rounding * rng.uniform(-1, 1, size=k))
            for known in (size, None):
                low, high = lambda_bounds_topk(listed, known, rounding)
                bad += int(((low > value * SLACK + ROUNDED) | (value > high * SLACK + ROUNDED)).sum())
    return bad, checked


def test_never_violated():
    bad, checked = violations(1, 4000)
    assert checked >= 4000
    assert bad == 0


@pytest.mark.slow
def test_never_violated_over_a_hundred_thousand_tails():
    bad, checked = violations(100, 100_000)
    assert checked >= 100_000
    assert bad == 0


def test_ends_are_attained():
    rng = np.random.default_rng(2)
    for _ in range(150):
        size = int(rng.integers(3, 60))
        k = int(rng.integers(1, size))
        p = head(rng, k, size)
        rest = 1.0 - p.sum()
        if rest < 1e-6:
            continue
        low, high = lambda_bounds_topk(np.log(p), size)
        with np.errstate(divide="ignore"):
            even = lambda_max(np.log(np.concatenate([p, tail(rng, "even", rest, p[-1], size - k)])))
            most = lambda_max(np.log(np.concatenate([p, tail(rng, "concentrated", rest, p[-1], size - k)])))
        assert low == pytest.approx(even, rel=1e-9)
        assert high == pytest.approx(most, rel=1e-9)
        thin = lambda_max(np.log(np.concatenate([p, np.full(20_000, rest / 20_000)])))
        assert lambda_bounds_topk(np.log(p))[0] == pytest.approx(thin, rel=5e-3)
        assert lambda_bounds_topk(np.log(p))[0] <= low * SLACK


def test_width_promise():
    rng = np.random.default_rng(3)
    reached = 0.0
    for _ in range(2000):
        size = int(rng.integers(2, 200))
        k = int(rng.integers(1, min(size, 40) + 1))
        low, high = lambda_bounds_topk(np.log(head(rng, k, size)))
        promise = 2 / (1 + np.sqrt(1 - 1 / k))
        assert high <= low * promise * (1 + 1e-9)
        reached = max(reached, high / low / promise)
    assert reached > 0.98  # the promise is not idle


def test_whole_distribution_is_exact():
    rng = np.random.default_rng(4)
    for dtype in (np.float64, np.float32):
        x = log_softmax(rng.normal(size=(50, 30)) * 4).astype(dtype)
        low, high = lambda_bounds_topk(x, 30)
        np.testing.assert_array_equal(low, high)
        np.testing.assert_allclose(low, lambda_max(x), rtol=1e-12)


def test_single_entry():
    for p in (0.9, 0.6, 0.3):
        low, high = lambda_bounds_topk([np.log(p)])
        assert low == pytest.approx(lambda_heuristic_interval(p)[0], rel=1e-12)
        expected = 2 * p * (1 - p) if p >= 0.5 else p
        assert high == pytest.approx(expected, rel=1e-12)
    tiny = 1e-30  # 1 − p₁ would be 0 here
    low, high = lambda_bounds_topk([-tiny])
    assert low == pytest.approx(tiny, rel=1e-12, abs=0)
    assert high == pytest.approx(2 * tiny, rel=1e-12, abs=0)


def test_order_shape_and_nan():
    rng = np.random.default_rng(5)
    x = log_softmax(rng.normal(size=(4, 3, 9)) * 3)
    x = -np.sort(-x, axis=-1)[..., :5]
    low, high = lambda_bounds_topk(x, 9)
    assert low.shape == high.shape == (4, 3)
    again = lambda_bounds_topk(x[..., [3, 0, 4, 2, 1]], 9)
    np.testing.assert_allclose(again, (low, high), rtol=1e-14)
    x[1, 2, 3] = np.nan
    low, high = lambda_bounds_topk(x, 9)
    assert np.isnan(low).sum() == np.isnan(high).sum() == 1
    assert np.isnan(low[1, 2])
    empty = lambda_bounds_topk(np.zeros((0, 5)), 9)
    assert empty[0].shape == empty[1].shape == (0,)


def test_zero_probabilities_close_the_list():
    low, high = lambda_bounds_topk([np.log(0.75), np.log(0.25), -np.inf], 1000)
    assert low == pytest.approx(2 * 0.75 * 0.25, rel=1e-12)
    assert high == pytest.approx(low, rel=1e-12)
    low, high = lambda_bounds_topk([0.0, -np.inf], 1000)
    assert (low, high) == (0.0, 0.0)


def test_rounding_widens_and_mass_above_one_is_clamped_within_it():
    x = np.log([0.7, 0.2, 0.1004])
    with pytest.raises(DataError, match="more than 1"):
        lambda_bounds_topk(x, 3)
    low, high = lambda_bounds_topk(x, 3, rounding=1e-3)
    assert low < lambda_max(np.log([0.7, 0.2, 0.1])) < high
    assert high / low < 1.01
    with pytest.raises(DataError, match="more than 1"):
        lambda_bounds_topk(x, 3, rounding=1e-4)
    single = np.log(np.array([0.9, 0.1], dtype=np.float32)) + np.float32(1e-6)  # what float32 leaves
    low, high = lambda_bounds_topk(single, 50)
    assert low <= 0.18 <= high


def test_rounding_beside_a_thin_tail_is_more_than_a_factor():
    """With p₁ known to ±η only, the tail's mass may be anything up to r + η: e^{±η} would be violated."""
    eta, size = 5e-4, 1002
    true = np.concatenate([[0.9994, 0.0005], np.full(1000, 1e-7)])
    given = np.log(true[:2]) + np.array([-0.9 * eta, 0.0])
    value = lambda_max(np.log(true))
    low, high = lambda_bounds_topk(given, size, rounding=eta)
    assert low <= value <= high
    plain = lambda_bounds_topk(given, size)
    assert not plain[0] * np.exp(-eta) <= value <= plain[1] * np.exp(eta)


@pytest.mark.parametrize(
    ("logprobs", "size", "rounding"),
    [
        ([0.5, -1.0], None, 0.0),  # positive log-probability
        (np.log([0.5, 0.4]), 1, 0.0),  # longer than the vocabulary
        (np.log([0.5, 0.1]), 3, 0.0),  # one token of at most 0.1 cannot hold 0.4
        (np.log([0.5, 0.4]), 2, 0.0),  # nobody left to hold 0.1
        ([np.log(0.5), -np.inf], None, 0.0),  # the rest is at most 0 each
        ([-np.inf, -np.inf], 10, 0.0),
        (np.log([0.5, 0.4]), 10, -1e-3),
        (np.log([0.5, 0.4]), 10, np.nan),
        (-1.0, 10, 0.0),
        (np.zeros((2, 0)), 10, 0.0),
        (["a"], 10, 0.0),
    ],
)
def test_refuses_what_no_distribution_fits(logprobs, size, rounding):
    with pytest.raises(DataError) as caught:
        lambda_bounds_topk(logprobs, size, rounding)
    assert caught.value.expected
    assert caught.value.remedy
