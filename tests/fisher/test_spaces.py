"""Head and hidden space against dense matrices; Lanczos against dense solvers; bounds that are never violated."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quantvane.errors import DataError
from quantvane.fisher import (
    OutputMap,
    gram_lambda,
    head_empirical,
    head_gram,
    head_sampled,
    head_true,
    hidden_lambda,
    hidden_lambda_torch,
    lambda_max,
    lanczos_lambda,
    trace_bounds,
)
from quantvane.fisher import output_map as output_map_module
from reference.fisher_dense import (
    head_empirical_matrix,
    head_logits,
    head_true_matrix,
    hidden_matrices,
    top,
)

FORMS = [(1.0, None, False), (0.6, None, True), (1.3, 4.0, True)]


def drawn(seed, scale, softcap, bias, size=1.0, shape=(40, 8, 6)):
    rng = np.random.default_rng(seed)
    vocabulary, width, count = shape
    weight, hidden = rng.normal(size=(vocabulary, width)) * size, rng.normal(size=(count, width))
    b = rng.normal(size=vocabulary) if bias else None
    head = OutputMap(weight, b, scale, softcap)
    z, slope = head_logits(weight, hidden, b, scale, softcap)
    return rng, head, hidden, z, slope, rng.integers(0, vocabulary, count)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [0.2, 1.0, 3.0])
def test_head_space_against_dense_matrices(form, size):
    rng, head, hidden, z, slope, labels = drawn(1, *form, size=size)
    exact = top(head_empirical_matrix(z, slope, hidden, labels))
    assert head_empirical(head, hidden, labels).value == pytest.approx(exact, rel=1e-12)
    matrix = head_true_matrix(z, slope, hidden)
    found = head_true(head, hidden, rng, steps=60, tolerance=1e-12)
    assert found.value == pytest.approx(top(matrix), rel=1e-10)
    assert found.fisher == "true"
    assert found.upper == pytest.approx(np.trace(matrix), rel=1e-10)
    values = np.linalg.eigvalsh(matrix)
    few = head_true(head, hidden, rng, steps=2)
    assert few.value <= values[-1] * (1 + 1e-12)
    assert np.abs(values - few.value).min() <= few.residual * (1 + 1e-9)


def test_one_token_in_head_space_is_the_kronecker_product():
    _, head, hidden, z, _, _ = drawn(2, 1.0, None, False)
    for row in range(3):
        h = hidden[row : row + 1]
        found = head_true(head, h, np.random.default_rng(0), steps=40, tolerance=1e-13)
        assert found.value == pytest.approx(float(h[0] @ h[0]) * lambda_max(z[row]), rel=1e-10)


def test_head_gram_does_not_depend_on_the_blocks(monkeypatch):
    _, head, hidden, _, _, labels = drawn(3, 1.3, 4.0, True)
    whole = head_gram(head, hidden, labels)
    monkeypatch.setattr(output_map_module, "_CHUNK_BYTES", 8 * len(hidden) * 7)  # 7 of 40 entries a block
    np.testing.assert_allclose(head_gram(head, hidden, labels), whole, rtol=1e-12)


def test_head_gram_next_to_one_hot_keeps_its_digits():
    """1 − p of the observed token lies far below the rounding of p itself."""
    weight = np.array([[60.0], [0.0], [1.0]])
    head, hidden = OutputMap(weight), np.array([[1.0]])
    rest = np.exp(-60.0) + np.exp(-59.0)
    expected = rest**2 + np.exp(-60.0) ** 2 + np.exp(-59.0) ** 2
    assert head_gram(head, hidden, np.array([0]))[0, 0] == pytest.approx(expected, rel=1e-12, abs=0.0)


@pytest.mark.parametrize("form", FORMS)
def test_hidden_space_against_dense_matrices(form):
    rng, head, hidden, z, slope, _ = drawn(4, *form)
    exact = np.array([top(m) for m in hidden_matrices(z, slope, head.weight)])
    found = hidden_lambda(head, hidden, rng, steps=8)
    np.testing.assert_allclose(found.value, exact, rtol=1e-11)
    assert (found.upper >= exact * (1 - 1e-11)).all()
    single = OutputMap(head.weight.astype(np.float32), head.bias, head.scale, head.softcap)
    np.testing.assert_allclose(hidden_lambda(single, hidden, rng, steps=8).value, exact, rtol=1e-4)


def test_hidden_space_in_torch_agrees():
    torch = pytest.importorskip("torch")
    rng, head, hidden, z, slope, _ = drawn(5, 1.3, 4.0, True, shape=(60, 12, 5))
    ours = hidden_lambda(head, hidden, rng, steps=12, top=9)
    theirs = hidden_lambda_torch(
        torch.tensor(head.weight), torch.tensor(z), slope=torch.tensor(slope), steps=12, top=9
    )
    np.testing.assert_allclose(theirs.value, ours.value, rtol=1e-9)
    np.testing.assert_allclose(theirs.upper, ours.upper, rtol=1e-6)
    with pytest.raises(DataError):
        hidden_lambda_torch(torch.zeros(4, 2), torch.zeros(3, 5))


def hidden_bounds(seed, count):
    """Violations of value ≤ λ ≤ upper and of the residual's promise over random heads, few steps, small brackets."""
    rng = np.random.default_rng(seed)
    bad = 0
    for _ in range(count):
        vocabulary, width = int(rng.integers(2, 60)), int(rng.integers(1, 12))
        weight = rng.normal(size=(vocabulary, width)) * rng.choice([0.1, 1.0, 4.0])
        hidden = rng.normal(size=(8, width)) * rng.choice([0.1, 1.0, 3.0])
        z, slope = head_logits(weight, hidden)
        steps, bracket = int(rng.integers(1, 8)), int(rng.integers(1, vocabulary + 1))
        found = hidden_lambda(OutputMap(weight), hidden, rng, steps=steps, top=bracket)
        # the dense twin subtracts probabilities: next to one-hot it keeps fewer digits than what it is to judge
        for i, matrix in enumerate(hidden_matrices(z, slope, weight)):
            values = np.linalg.eigvalsh(matrix)
            slack = 1e-9 * values[-1] + 1e-13 * float((weight**2).sum(axis=1).max())
            bad += found.value[i] > values[-1] + slack
            bad += found.upper[i] < values[-1] - slack
            bad += np.abs(values - found.value[i]).min() > found.residual[i] + slack
    return bad


def test_hidden_bounds_are_never_violated():
    assert hidden_bounds(6, 60) == 0


@pytest.mark.slow
def test_hidden_bounds_are_never_violated_over_ten_thousand_positions():
    assert hidden_bounds(7, 1300) == 0


def test_hidden_bounds_can_fail():
    """The check above is no tautology: the exact λ_max lies strictly inside for few steps and small brackets."""
    rng, head, hidden, z, slope, _ = drawn(8, 1.0, None, False)
    exact = np.array([top(m) for m in hidden_matrices(z, slope, head.weight)])
    found = hidden_lambda(head, hidden, rng, steps=2, top=3)
    assert (found.value < exact * (1 - 1e-6)).any()
    assert (found.upper > exact * (1 + 1e-6)).any()


def test_degenerate_positions_in_hidden_space():
    weight = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    flat = hidden_lambda(OutputMap(np.ones((5, 2))), np.ones((1, 2)), np.random.default_rng(0))
    assert flat.value[0] == pytest.approx(0.0, abs=1e-15)  # equal rows: moving h moves all logits alike
    sharp = hidden_lambda(OutputMap(weight * 1e3), np.array([[1.0, -1.0]]), np.random.default_rng(0))
    assert sharp.value[0] == 0.0  # one-hot in doubles
    with pytest.raises(DataError):
        hidden_lambda(OutputMap(weight), np.ones((2, 3)), np.random.default_rng(0))


def test_sampled_is_biased_upward_and_empirical_differs():
    rng, head, hidden, z, slope, _ = drawn(9, 1.0, None, False, size=0.7)
    true = top(head_true_matrix(z, slope, hidden))
    found = head_sampled(head, hidden, rng, draws=200)
    assert found.value - 4 * found.spread * found.value > true  # Jensen, far beyond the draws' own noise
    assert math.isnan(head_sampled(head, hidden, rng).spread)


def test_drawn_labels_follow_the_model():
    """The mean of the sampled F over draws is the true F: checked on its trace."""
    rng, head, hidden, z, slope, _ = drawn(10, 1.0, None, False)
    trace = np.trace(head_true_matrix(z, slope, hidden))
    from quantvane.fisher.head import _drawn

    traces = [np.trace(head_gram(head, hidden, _drawn(head, hidden, rng))) for _ in range(3000)]
    assert abs(np.mean(traces) - trace) < 4 * np.std(traces) / math.sqrt(len(traces))


def test_gram_against_lanczos_and_trace_bounds():
    rng = np.random.default_rng(11)
    for rank in (1, 3, 20):
        g = rng.normal(size=(rank, 50)) * rng.exponential(size=(rank, 1))
        gram, matrix = g @ g.T / rank, g.T @ g / rank
        exact = gram_lambda(gram)
        found = lanczos_lambda(lambda v, m=matrix: m @ v, 50, rng, steps=50, tolerance=1e-13)
        assert found.value == pytest.approx(exact.value, rel=1e-11)
        bounds = trace_bounds(gram)
        assert bounds.trace == pytest.approx(np.trace(matrix), rel=1e-12)
        slack = 1 + 1e-12
        assert bounds.lower <= exact.value * slack
        assert exact.value <= bounds.upper * slack
        assert bounds.upper <= bounds.trace * slack
    assert bounds.lower < exact.value * 0.99
    one = trace_bounds([[2.0]])
    assert one.lower == one.upper == one.trace == 2.0
    zero = trace_bounds(np.zeros((2, 2)))
    assert math.isnan(zero.lower)
    assert zero.upper == 0.0


def test_nan_is_nan_with_a_reason():
    assert math.isnan(gram_lambda([[math.nan]]).value)
    assert gram_lambda([[math.nan]]).reason
    found = lanczos_lambda(lambda v: v * math.nan, 3, np.random.default_rng(0))
    assert math.isnan(found.value)
    assert found.reason
    assert lanczos_lambda(lambda v: 0 * v, 4, np.random.default_rng(0)).value == 0.0


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 2, 3, 4, 40], [0, 1, 2, 3, 4, -1]])
def test_labels_must_fit(labels):
    _, head, hidden, *_ = drawn(12, 1.0, None, False)
    with pytest.raises(DataError):
        head_gram(head, hidden, np.array(labels))
