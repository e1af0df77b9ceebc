"""KL bounds from two top-k lists: never violated, tight against slow optimisers, degenerate and bad input."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from quantvane.displacement.topk import kld_bounds_topk
from quantvane.errors import DataError
from reference.lambda_reference import log_softmax
from reference.topk_reference import infimum, kl, supremum


def top(logp, k):
    ids = np.argsort(-logp, axis=-1)[:, :k]
    return np.take_along_axis(logp, ids, axis=-1), ids


def pairs(rng, size, rows=20):
    """Log-probabilities (rows, size) of a reference and a candidate: near or far, sharp or flat."""
    a = log_softmax(rng.normal(size=(rows, size)) * rng.choice([0.1, 1.0, 3.0, 8.0]))
    near = a if rng.random() < 0.6 else 0.0
    b = log_softmax(near + rng.normal(size=(rows, size)) * rng.choice([0.0, 1e-6, 0.1, 1.0, 5.0]))
    return a, b


def violations(seed, draws, largest=40):
    rng = np.random.default_rng(seed)
    bad = finite = total = 0
    for _ in range(draws):
        size = int(rng.integers(2, largest))
        a, b = pairs(rng, size)
        (lp, ip), (lq, iq) = (top(x, int(rng.integers(1, size + 1))) for x in (a, b))
        exact = (np.exp(a) * (a - b)).sum(axis=-1)
        eta = 10.0 ** -rng.integers(2, 9)
        noisy = [x + rng.uniform(-eta, eta, size=x.shape) for x in (lp, lq)]
        for low, high in (
            kld_bounds_topk(lp, ip, lq, iq, size),
            kld_bounds_topk(noisy[0], ip, noisy[1], iq, size, rounding=eta),
        ):
            slack = 1e-12 * (1 + np.abs(exact))
            bad += int((low > exact + slack).sum() + (high < exact - slack).sum() + (low > high).sum())
            finite += int(np.isfinite(high).sum())
            total += len(exact)
    return bad, finite, total


def test_never_violated():
    bad, finite, total = violations(1, 120)
    assert bad == 0
    assert 0 < finite < total


@pytest.mark.slow
def test_never_violated_long():
    assert violations(2, 3000)[0] == 0


def test_tight_against_optimisers():
    """Lower: minimum found by SLSQP over every unlisted entry; upper: maximum over all vertices."""
    rng = np.random.default_rng(3)
    finite = checked = 0
    for _ in range(150):
        size = int(rng.integers(2, 7))
        p = rng.dirichlet(np.full(size, rng.choice([0.5, 1.0, 5.0])))
        q = rng.dirichlet(np.full(size, rng.choice([0.5, 1.0, 5.0, 100.0])))
        if min(p.min(), q.min()) < 1e-5:
            continue
        ip, iq = (np.argsort(-x)[: int(rng.integers(1, size + 1))] for x in (p, q))
        low, high = kld_bounds_topk(np.log(p[ip])[None], ip[None], np.log(q[iq])[None], iq[None], size)
        assert low[0] == pytest.approx(infimum(p[ip], ip, q[iq], iq, size), abs=1e-7)
        assert high[0] == pytest.approx(supremum(p[ip], ip, q[iq], iq, size), rel=1e-8, abs=1e-9)
        checked += 1
        finite += bool(np.isfinite(high[0]))
    assert checked > 80
    assert 20 < finite < checked


def test_caps_bind():
    """Flat candidates, whose caps are what makes the lower bound large, against the optimiser."""
    rng = np.random.default_rng(4)
    for _ in range(25):
        size = 6
        p = np.sort(rng.dirichlet(np.full(size, 0.7)))[::-1] + 1e-3
        p /= p.sum()
        q = np.full(size, 1 / size)
        ip, iq = np.arange(2), rng.permutation(size)[:2]
        low, _ = kld_bounds_topk(np.log(p[ip])[None], ip[None], np.log(q[iq])[None], iq[None], size)
        assert low[0] == pytest.approx(infimum(p[ip], ip, q[iq], iq, size), abs=1e-7)


def test_whole_vocabulary_is_exact():
    rng = np.random.default_rng(5)
    a, b = pairs(rng, 12, rows=50)
    (lp, ip), (lq, iq) = top(a, 12), top(b, 12)
    low, high = kld_bounds_topk(lp, ip, lq, iq, 12)
    np.testing.assert_array_equal(low, high)
    np.testing.assert_allclose(low, (np.exp(a) * (a - b)).sum(axis=-1), rtol=1e-10, atol=1e-14)
    same = kld_bounds_topk(lp, ip, lp, ip, 12)
    np.testing.assert_array_equal(same, np.zeros((2, 50)))


def test_identical_lists_allow_zero_and_anything():
    lp, ip = top(log_softmax(np.random.default_rng(6).normal(size=(10, 200)) * 2), 5)
    low, high = kld_bounds_topk(lp, ip, lp, ip, 200)
    np.testing.assert_array_equal(low, 0.0)
    np.testing.assert_array_equal(high, np.inf)  # the rest of q may miss the rest of p


def test_lumped_log_sum_value_by_hand():
    """One id in both lists, nothing else: the two-point KL of (p, 1−p) from (q, 1−q)."""
    p, q = 0.7, 0.4
    low, high = kld_bounds_topk([[np.log(p)]], [[3]], [[np.log(q)]], [[3]], 1000)
    assert low[0] == pytest.approx(kl([p, 1 - p], [q, 1 - q]), rel=1e-12)
    assert high[0] == np.inf


def test_upper_is_finite_where_p_is_settled():
    # p lives on ids 4 and 7 only, both of them listed by the candidate
    low, high = kld_bounds_topk(np.log([[0.6, 0.4]]), [[4, 7]], np.log([[0.5, 0.3, 0.1]]), [[7, 4, 1]], 100)
    exact = kl([0.6, 0.4], [0.3, 0.5])
    assert high[0] == pytest.approx(exact, rel=1e-12)
    assert low[0] == pytest.approx(exact, rel=1e-12)
    # and one more id outside the candidate's list makes it infinite
    _, high = kld_bounds_topk(np.log([[0.6, 0.4]]), [[4, 8]], np.log([[0.5, 0.3, 0.1]]), [[7, 4, 1]], 100)
    assert high[0] == np.inf


def test_upper_is_finite_for_a_uniform_candidate():
    """A full cap leaves the candidate no zero: its tail is settled at the cap."""
    size = 1000
    p = np.exp(log_softmax(np.random.default_rng(7).normal(size=size) * 2))
    ip = np.argsort(-p)[:10]
    uniform = np.full((1, 3), -np.log(size))
    low, high = kld_bounds_topk(np.log(p[ip])[None], ip[None], uniform, [[0, 1, 2]], size)
    exact = kl(p, np.full(size, 1 / size))
    assert low[0] <= exact <= high[0] < np.inf


def test_listed_zeros_of_the_candidate():
    low, high = kld_bounds_topk(np.log([[0.6, 0.4]]), [[0, 1]], [[0.0, -np.inf]], [[0, 1]], 5)
    assert low[0] == high[0] == np.inf
    # q's list is closed by a zero, so q is 0 everywhere else, where the reference has 0.4
    low, _ = kld_bounds_topk(np.log([[0.6, 0.4]]), [[0, 1]], [[0.0, -np.inf]], [[0, 2]], 5)
    assert low[0] == np.inf
    low, high = kld_bounds_topk([[0.0, -np.inf]], [[0, 1]], np.log([[0.6, 0.4]]), [[0, 1]], 5)
    assert low[0] == pytest.approx(-np.log(0.6), rel=1e-12)
    assert high[0] == pytest.approx(-np.log(0.6), rel=1e-12)


def test_a_rounded_candidate_tail_is_no_certificate_of_infinity():
    """The candidate's mass is 1 only to double precision: its tail may still hold 1e-17."""
    low, high = kld_bounds_topk(np.log([[0.6, 0.4]]), [[0, 1]], [[0.0]], [[0]], 50)
    exact = kl([0.6, 0.4], [1.0, 1e-17])
    assert np.isfinite(low[0])
    assert 5.0 < low[0] <= exact
    assert high[0] == np.inf


def test_underflow_is_no_zero():
    """Log-probabilities below −745, sentinels of −9999 too, exponentiate to 0 without being 0."""
    ref, cand = np.log([[0.6, 0.4]]), [[0.0, -9999.0]]
    low, high = kld_bounds_topk(ref, [[0, 1]], cand, [[0, 1]], 2)
    assert low[0] == high[0] == pytest.approx(0.6 * np.log(0.6) + 0.4 * (np.log(0.4) + 9999.0), rel=1e-12)
    low, high = kld_bounds_topk(ref, [[0, 1]], cand, [[0, 2]], 50)  # id 1 has at most e^-9999
    assert 200.0 < low[0] < np.inf
    assert high[0] == np.inf
    low, high = kld_bounds_topk(np.log([[0.6]]), [[0]], cand, [[0, 1]], 2)
    assert low[0] <= 0.6 * np.log(0.6) + 0.4 * (np.log(0.4) + 9999.0) <= high[0] * (1 + 1e-12)
    assert np.isfinite(high[0])


def test_rounding_loosens_the_lower_bound_only_a_little():
    rng = np.random.default_rng(8)
    a, _ = pairs(rng, 30, rows=40)
    (lp, ip), (lq, iq) = top(a, 10), top(log_softmax(a + rng.normal(size=a.shape)), 10)
    sharp, _ = kld_bounds_topk(lp, ip, lq, iq, 30)
    loose, high = kld_bounds_topk(lp, ip, lq, iq, 30, rounding=1e-6)
    assert (loose <= sharp + 1e-15).all()
    assert (loose >= sharp - 1e-4).all()
    np.testing.assert_array_equal(high, np.inf)


def test_single_precision_lists_are_accepted():
    rng = np.random.default_rng(9)
    a, b = pairs(rng, 50)
    a32, b32 = a.astype(np.float32), b.astype(np.float32)
    for k in (1, 20, 50):
        (lp, ip), (lq, iq) = top(a32, k), top(b32, k)
        low, high = kld_bounds_topk(lp, ip, lq, iq, 50)
        assert (low <= high).all()
        assert np.isfinite(low).all()


def test_nan_rows_and_different_k():
    rng = np.random.default_rng(10)
    a, b = pairs(rng, 20, rows=4)
    (lp, ip), (lq, iq) = top(a, 6), top(b, 9)
    whole = kld_bounds_topk(lp, ip, lq, iq, 20)
    lp[1, 2] = np.nan
    lq[3, 0] = np.nan
    low, high = kld_bounds_topk(lp, ip, lq, iq, 20)
    np.testing.assert_array_equal(np.isnan(low), [False, True, False, True])
    np.testing.assert_array_equal(np.isnan(high), [False, True, False, True])
    np.testing.assert_array_equal(low[[0, 2]], whole[0][[0, 2]])
    empty = kld_bounds_topk(lp[:0], ip[:0], lq[:0], iq[:0], 20)
    assert empty[0].shape == empty[1].shape == (0,)


def test_order_within_a_list_does_not_matter():
    rng = np.random.default_rng(11)
    a, b = pairs(rng, 20)
    (lp, ip), (lq, iq) = top(a, 6), top(b, 7)
    first = kld_bounds_topk(lp, ip, lq, iq, 20)
    mix = rng.permutation(6)
    mixed = kld_bounds_topk(lp[:, mix], ip[:, mix], lq, iq, 20)
    np.testing.assert_allclose(mixed, first, rtol=1e-10, atol=1e-14)


LP = np.log([[0.5, 0.3]])


@pytest.mark.parametrize(
    ("args", "size"),
    [
        ((LP, [[0, 0]], LP, [[0, 1]]), 9),  # listed twice
        ((LP, [[0, 9]], LP, [[0, 1]]), 9),  # outside the vocabulary
        ((LP, [[0, -1]], LP, [[0, 1]]), 9),
        ((LP, [[0, 1, 2]], LP, [[0, 1]]), 9),  # shapes differ
        ((LP[0], [0, 1], LP[0], [0, 1]), 9),  # no position axis
        ((LP, [[0.0, 1.0]], LP, [[0, 1]]), 9),  # ids that are no integers
        ((LP, [[0, 1]], np.tile(LP, (2, 1)), [[0, 1], [0, 1]]), 9),  # positions differ
        ((np.log([[0.9, 0.3]]), [[0, 1]], LP, [[0, 1]]), 9),  # mass above 1
        ((LP, [[0, 1]], np.log([[0.5, 0.01]]), [[0, 1]]), 9),  # seven tokens of 0.01 cannot hold 0.49
        ((LP, [[0, 1]], LP, [[0, 1]]), 1),
    ],
)
def test_refuses_lists_that_fit_nothing(args, size):
    with pytest.raises(DataError) as caught:
        kld_bounds_topk(*args, size)
    assert caught.value.expected
    assert caught.value.remedy


def test_no_floor_can_be_asked_for():
    assert not any("floor" in name for name in inspect.signature(kld_bounds_topk).parameters)
