import math
import random

import numpy as np
import pytest

from quantvane.fisher import lambda_bounds_topk, lambda_max
from quantvane.monitor import Observation
from quantvane.monitor.processors import measure_logits
from quantvane.monitor.statistic import KL_CAP, lambda_bounds, look, measure
from reference.monitor_twin import entropy, kl, lambda_dense, lumped_kl_minimum
from support_monitor import distribution, observe


def test_the_scalar_bounds_are_the_vectorised_ones():
    rng = np.random.default_rng(0)
    for trial in range(600):
        logp = distribution(rng, v=int(rng.integers(30, 400)))
        k = int(rng.integers(1, 30))
        found = lambda_bounds(look(observe(logp, k)))
        wanted = lambda_bounds_topk(np.sort(logp)[::-1][:k])
        assert found == pytest.approx([float(x) for x in wanted], rel=1e-12), trial


@pytest.mark.parametrize("excess", [3e-7, 2e-6, 5e-5, 3e-3])
def test_a_mass_above_one_widens_as_the_vectorised_bounds_do(excess):
    rng = np.random.default_rng(1)
    for _ in range(50):
        logp = np.sort(distribution(rng, v=25))[::-1][:20]
        logp = logp - np.log(np.exp(logp).sum()) + math.log1p(excess)
        seen = look(observe(logp))
        wanted = lambda_bounds_topk(logp, rounding=seen.excess)
        assert lambda_bounds(seen) == pytest.approx([float(x) for x in wanted], rel=1e-9)


def test_the_bounds_hold_the_truth_and_the_whole_is_exact():
    rng = np.random.default_rng(2)
    for _ in range(60):
        logp = distribution(rng, v=80)
        truth = lambda_dense(np.exp(logp))
        low, high = lambda_bounds(look(observe(logp, 10)))
        assert low * (1 - 1e-12) <= truth <= high * (1 + 1e-12)
        whole = lambda_bounds(look(observe(logp, None)))
        assert whole[0] == whole[1] == pytest.approx(float(lambda_max(logp)), rel=1e-12)


def test_edges_of_lambda():
    two = Observation((math.log(0.5), math.log(0.5)), (1, 2), 0.0)
    assert lambda_bounds(look(two)) == pytest.approx((0.5, 0.5))
    assert lambda_bounds(look(Observation((0.0, -math.inf), (1, 2), 0.0))) == (0.0, 0.0)
    assert lambda_bounds(look(Observation((0.0,), (1,), 0.0))) == (0.0, 0.0)
    sentinel = look(Observation((-1e-9, -9999.0), (1, 2), 0.0))  # a floor that servers use
    low, high = lambda_bounds(sentinel)
    assert 0.0 <= low <= high < 1e-8


@pytest.mark.parametrize(
    "logprobs",
    [(), (math.nan, -1.0), (-1.0, math.nan), (math.inf,), (5.0, -1.0), (-0.1, -0.1), (-math.inf, -math.inf)],
)
def test_what_is_no_distribution_is_not_looked_at(logprobs):
    assert look(Observation(logprobs, tuple(range(len(logprobs))), 0.0)) is None


def test_keys_that_do_not_match_the_list_are_refused():
    assert look(Observation((-0.5, -2.0), (1,), 0.0)) is None


def test_called_complete_and_is_not():
    assert look(Observation((math.log(0.5), math.log(0.3)), (0, 1), 0.0, complete=True)) is None


def test_order_does_not_matter():
    rng = np.random.default_rng(3)
    seen = observe(distribution(rng))
    pairs = list(zip(seen.logprobs, seen.keys, strict=True))
    random.Random(0).shuffle(pairs)
    mixed = Observation(tuple(x for x, _ in pairs), tuple(k for _, k in pairs), seen.chosen)
    before = look(observe(distribution(rng)))
    a, b = measure(look(seen), before), measure(look(mixed), before)
    assert (a.lambda_low, a.lambda_high) == (b.lambda_low, b.lambda_high)
    assert (a.entropy, a.kl) == pytest.approx((b.entropy, b.kl), rel=1e-12)


def test_entropy_and_divergence_are_lower_bounds_and_exact_on_the_whole():
    rng = np.random.default_rng(4)
    gap = []
    for _ in range(200):
        first = distribution(rng, v=120)
        second = 0.6 * first + rng.normal(size=120)
        second -= np.logaddexp.reduce(second)
        p, q = np.exp(second), np.exp(first)
        whole = measure(look(observe(second, None)), look(observe(first, None)))
        assert whole.entropy == pytest.approx(entropy(p), rel=1e-10)
        assert whole.kl == pytest.approx(kl(p, q), rel=1e-9, abs=1e-12)
        part = measure(look(observe(second, 10)), look(observe(first, 10)))
        assert part.entropy <= entropy(p) * (1 + 1e-12)
        assert part.kl <= kl(p, q) * (1 + 1e-9) + 1e-12
        gap.append(part.kl / kl(p, q))
    assert np.median(gap) > 0.3  # a bound that says something


def test_the_divergence_is_the_smallest_that_the_lumps_allow():
    now = Observation(tuple(map(math.log, (0.5, 0.3, 0.1))), ("a", "b", "c"), 0.0)
    before = Observation(tuple(map(math.log, (0.7, 0.1, 0.05))), ("d", "a", "e"), 0.0)
    found = measure(look(now), look(before)).kl
    # a is common; b and c are in A (0.4), unseen before: at most min(0.15, 2 · 0.05) = 0.1; the rest is 0.1
    assert found == pytest.approx(lumped_kl_minimum([0.5, 0.4, 0.1], [0.1], 0.1), rel=1e-6)


def test_tokens_are_matched_by_key_not_by_rank():
    p = tuple(map(math.log, (0.6, 0.3, 0.1)))
    same = measure(look(Observation(p, (7, 8, 9), 0.0, True)), look(Observation(p, (7, 8, 9), 0.0, True)))
    moved = measure(look(Observation(p, (8, 7, 9), 0.0, True)), look(Observation(p, (7, 8, 9), 0.0, True)))
    assert same.kl == 0.0
    assert moved.kl == pytest.approx(0.6 * math.log(2) + 0.3 * math.log(0.5))


def test_a_token_that_was_impossible_costs_the_cap_and_no_more():
    now = Observation((math.log(0.5), math.log(0.5)), (1, 2), 0.0, True)
    before = Observation((0.0, -math.inf), (1, 2), 0.0, True)
    assert measure(look(now), look(before)).kl == KL_CAP
    assert measure(look(before), look(now)).kl == pytest.approx(math.log(2))


def test_the_processors_numbers_are_the_exact_ones():
    rng = np.random.default_rng(5)
    before_obs = before = None
    for _ in range(20):
        logits = rng.normal(size=200).astype(np.float32) * 4
        logits[rng.integers(0, 200, 20)] = -np.inf
        if before is not None:
            logits[np.isneginf(before)] = -np.inf  # else the divergence is infinite
        found, before = measure_logits(logits, before)
        logp = logits.astype(np.float64) - np.logaddexp.reduce(logits.astype(np.float64))
        now = look(observe(logp, None))
        wanted = measure(now, before_obs)
        before_obs = now
        assert (found.lambda_low, found.entropy) == pytest.approx((wanted.lambda_low, wanted.entropy), rel=1e-9)
        assert found.kl == pytest.approx(wanted.kl, rel=1e-9, abs=1e-12, nan_ok=True)
    assert measure_logits(np.full(4, np.nan), None) == (None, None)
