"""λ_max of the logit-space Fisher information: dense and multiple-precision twins, edges, brackets."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantvane.errors import DataError
from quantvane.fisher import (
    lambda_bracket,
    lambda_heuristic_interval,
    lambda_max,
    lambda_max_from_logprobs,
    published_heuristic,
)
from quantvane.fisher.secular import solve_atoms
from reference.lambda_reference import dense, log_softmax, precise, probabilities


def draws(count, seed, largest=500):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        size = int(rng.integers(2, largest + 1))
        yield rng.normal(size=size) * rng.choice([0.01, 0.3, 1.0, 3.0, 8.0, 30.0])


def test_agrees_with_dense_solver():
    worst = 0.0
    for x in [*draws(25, 1, 150), *draws(3, 2, 500)]:
        exact = dense(x)
        worst = max(worst, abs(lambda_max(x) - exact) / exact)
    assert worst < 1e-12


@pytest.mark.parametrize("gap", [1.0, 10.0, 40.0, 200.0, 600.0])
def test_agrees_with_multiple_precision_towards_one_hot(gap):
    rng = np.random.default_rng(int(gap))
    for size in (2, 3, 10, 60):
        x = np.concatenate([[0.0], -gap - rng.exponential(2.0, size=size - 1)])
        assert lambda_max(x) == pytest.approx(precise(x), rel=1e-14, abs=0.0)


@pytest.mark.parametrize("gap", [1e-3, 1e-8, 1e-12, 1e-15])
def test_agrees_with_multiple_precision_towards_a_tie(gap):
    for others in ([], [-1.0, -2.0], [-gap, -2 * gap, -3.0]):
        x = [0.0, -gap, *others]
        assert lambda_max(x) == pytest.approx(precise(x), rel=1e-14, abs=0.0)


def test_flat_rows_of_a_large_vocabulary():
    rng = np.random.default_rng(3)
    x = np.append(rng.normal(size=2000) * 1e-6, 1e-4)
    assert lambda_max(x) == pytest.approx(precise(x, 40), rel=1e-13)


def test_ties_give_the_probability_itself():
    for size in (2, 3, 7, 1000, 151_936):
        assert lambda_max(np.full(size, 3.25)) == pytest.approx(1 / size, rel=1e-12)
    x = np.array([1.0, 1.0, 0.5, -2.0])
    assert lambda_max(x) == pytest.approx(probabilities(x)[0][0], rel=1e-15)


def test_zero_only_at_one_hot():
    assert lambda_max([5.0]) == 0.0
    assert lambda_max([0.0, -np.inf, -np.inf]) == 0.0
    assert lambda_max([0.0, -700.0]) > 0.0
    assert lambda_max([0.0, -np.inf, -300.0]) == pytest.approx(2 * np.exp(-300.0), rel=1e-13, abs=0.0)


def test_rows_that_are_no_distribution_are_nan():
    rows = np.array([[0.0, np.nan, 1.0], [np.inf, 0.0, 0.0], [-np.inf] * 3, [0.0, 0.0, -np.inf]])
    np.testing.assert_array_equal(lambda_max(rows), [np.nan, np.nan, np.nan, 0.5])
    np.testing.assert_array_equal(np.isnan(published_heuristic(rows)), [True, True, True, False])


def test_shapes_and_dtypes():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(3, 2, 5)) * 2
    out = lambda_max(x)
    assert out.shape == (3, 2)
    assert out.dtype == np.float64
    assert out[1, 1] == lambda_max(x[1, 1])
    assert lambda_max(np.zeros((0, 4))).shape == (0,)
    for dtype in (np.float16, np.float32):
        y = x.astype(dtype)
        np.testing.assert_array_equal(lambda_max(y), lambda_max(y.astype(np.float64)))
    assert lambda_max([1, 0, 0]) == pytest.approx(dense([1, 0, 0]))


def test_chunks_do_not_show():
    x = np.random.default_rng(5).normal(size=(70, 9001)).astype(np.float32)
    before = x.copy()
    together = lambda_max(x)
    np.testing.assert_array_equal(x, before)
    np.testing.assert_allclose(together, [lambda_max(row) for row in x], rtol=1e-14)


@pytest.mark.parametrize("bad", [1.0, np.zeros((3, 0)), np.array(["a"]), np.zeros(3, dtype=complex)])
def test_refuses_what_is_no_row_of_scores(bad):
    with pytest.raises(DataError):
        lambda_max(bad)


def test_half_half_is_the_global_maximum():
    """The counterexample to "quantization elevates λ": from (½, ½) every change of p lowers it."""
    peak = lambda_max([0.0, 0.0])
    assert peak == 0.5
    rng = np.random.default_rng(6)
    changed = rng.normal(size=(2000, 2)) * rng.choice([1e-3, 0.1, 3.0], size=(2000, 1))
    assert (lambda_max(changed) < peak).all()
    third = np.column_stack([np.zeros((2000, 2)), rng.uniform(-30, 30, size=2000)])
    assert (lambda_max(third) < peak).all()
    # and the same through logits nudged around the tie in a larger vocabulary
    x = np.array([0.0, 0.0] + [-np.inf] * 6)
    assert lambda_max(x) == 0.5
    x[2:] = -30.0
    assert lambda_max(x) < 0.5


@settings(max_examples=150, deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=2, max_size=40))
def test_properties(values):
    x = np.array(values)
    value = float(lambda_max(x))
    p, rest = probabilities(x)
    order = np.argsort(-p)
    first, second, mass = p[order[0]], p[order[1]], rest[order[0]]
    slack = 1 + 1e-12
    assert 0.0 < value <= 0.5
    low, high = lambda_bracket(first, second, mass)
    assert low <= value * slack
    assert value <= high * slack
    assert high / low <= 4 - 2 * np.sqrt(2) + 1e-12
    wide_low, wide_high = lambda_heuristic_interval(first, mass)
    assert wide_low <= value * slack
    assert value <= wide_high * slack
    assert lambda_max(x + 7.0) == pytest.approx(value, rel=1e-11)
    assert lambda_max(x[::-1]) == pytest.approx(value, rel=1e-13)
    assert lambda_max_from_logprobs(log_softmax(x)) == pytest.approx(value, rel=1e-11)


def test_monotone_and_homogeneous():
    """λ of an unnormalised vector grows with every entry: what the rounding bounds rest on."""
    rng = np.random.default_rng(7)
    for _ in range(200):
        x = np.sort(rng.exponential(size=6))[::-1]
        grown = x * np.exp(rng.uniform(0, 0.3, size=6))
        top = np.sort(grown)[::-1]
        one = solve_atoms(x[:1], x[None, 1:], x[None, 1:])[0]
        two = solve_atoms(top[:1], top[None, 1:], top[None, 1:])[0]
        step = np.log(grown / x)
        assert step.min() - 1e-12 <= np.log(two / one) <= step.max() + 1e-12
        triple = solve_atoms(3 * x[:1], 3 * x[None, 1:], 3 * x[None, 1:])[0]
        assert triple == pytest.approx(3 * one, rel=1e-13)


def test_bracket_is_exact_for_two_tokens_and_refuses_nonsense():
    low, high = lambda_bracket(0.8, 0.2)
    assert low == pytest.approx(0.32, rel=1e-15)
    assert high == pytest.approx(0.32, rel=1e-15)
    tiny = 1e-30
    low, high = lambda_bracket(1.0, tiny, tiny)
    assert low == pytest.approx(2 * tiny, rel=1e-14, abs=0)
    assert high == pytest.approx(2 * tiny, rel=1e-14, abs=0)
    assert np.isnan(lambda_bracket(np.nan, 0.1)).all()
    for p1, p2 in ((0.3, 0.4), (0.8, 0.3), (0.5, -0.1)):
        with pytest.raises(DataError):
            lambda_bracket(p1, p2)
    with pytest.raises(DataError):
        lambda_heuristic_interval([-0.2])


def test_published_heuristic_is_not_a_bound():
    below = above = 0
    for x in draws(200, 8, 60):
        p, rest = probabilities(x)
        order = np.argsort(-p)
        low, high = lambda_bracket(p[order[0]], p[order[1]], rest[order[0]])
        guess = published_heuristic(x)
        entropy = -np.sum(p[p > 0] * np.log(p[p > 0]))
        formula = p.max() * rest[order[0]] * (1 + 0.5 * entropy / np.log(len(p)))
        assert guess == pytest.approx(formula, rel=1e-9)
        below += guess < low
        above += guess > high
    assert below + above > 20
    assert np.isnan(published_heuristic([1.0]))


def test_log_probabilities_must_be_a_distribution():
    with pytest.raises(DataError, match="do not sum"):
        lambda_max_from_logprobs(np.log([0.5, 0.3]))
    with pytest.raises(DataError, match="do not sum"):
        lambda_max_from_logprobs([1000.0, 0.0])
    assert np.isnan(lambda_max_from_logprobs([np.nan, 0.0]))
    assert lambda_max_from_logprobs([0.0, -np.inf]) == 0.0


def test_torch_agrees():
    torch = pytest.importorskip("torch")
    from quantvane.fisher import lambda_max_torch

    for x in draws(40, 9, 100):
        assert float(lambda_max_torch(torch.tensor(x))) == pytest.approx(float(lambda_max(x)), rel=1e-13)
    nan, inf = float("nan"), float("inf")
    rows = torch.tensor([[0.0, nan], [0.0, 0.0], [0.0, -inf], [-inf, -inf], [0.0, -600.0]])
    np.testing.assert_allclose(lambda_max_torch(rows).numpy(), lambda_max(rows.numpy()), rtol=1e-14)
    assert tuple(lambda_max_torch(torch.zeros(2, 3, 1)).shape) == (2, 3)
    assert tuple(lambda_max_torch(torch.zeros(2, 3, 4, dtype=torch.bfloat16)).shape) == (2, 3)
    with pytest.raises(DataError):
        lambda_max_torch(torch.tensor(1.0))


def test_import_loads_no_torch():
    code = "import sys, quantvane.fisher; sys.exit('torch' in sys.modules or 'numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_row_does_not_depend_on_the_rows_beside_it():
    rng = np.random.default_rng(12)
    rows = rng.normal(size=(40, 700)) * rng.uniform(0.1, 12, (40, 1))
    together = lambda_max(rows)
    np.testing.assert_array_equal(together, [float(lambda_max(row)) for row in rows])
