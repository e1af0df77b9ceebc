"""Extreme eigenvalues and their derivatives against dense matrices."""

from __future__ import annotations

import numpy as np
import pytest

from quantvane.fisher.eigen import eigen_terms, extremes, lowest_in_span, solve_deflated
from reference.curve_dense import derivatives


def symmetric(rng: np.random.Generator, rows: int, n: int) -> np.ndarray:
    a = rng.normal(size=(rows, n, n))
    return a + a.swapaxes(1, 2)


def product(stack: np.ndarray):
    return lambda v: np.einsum("rij,rj->ri", stack, v)


def test_full_steps_give_both_ends_exactly() -> None:
    rng = np.random.default_rng(0)
    a = symmetric(rng, 5, 12)
    found = extremes(product(a), (5, 12), 99, rng)
    values = np.linalg.eigvalsh(a)
    np.testing.assert_allclose(found.low, values[:, 0], rtol=1e-12)
    np.testing.assert_allclose(found.high, values[:, -1], rtol=1e-12)
    np.testing.assert_allclose(product(a)(found.vector), found.high[:, None] * found.vector, atol=1e-10)


def test_few_steps_stay_inside_and_their_residual_reaches_an_eigenvalue() -> None:
    rng = np.random.default_rng(1)
    a = symmetric(rng, 20, 60)
    found = extremes(product(a), (20, 60), 8, rng)
    values = np.linalg.eigvalsh(a)
    assert (found.high <= values[:, -1]).all()
    assert (found.low >= values[:, 0]).all()
    assert (np.abs(values - found.high[:, None]).min(axis=1) <= found.high_residual * (1 + 1e-9)).all()
    assert (np.abs(values - found.low[:, None]).min(axis=1) <= found.low_residual * (1 + 1e-9)).all()


@pytest.mark.parametrize("matrix", [np.zeros((6, 6)), np.eye(6), np.diag([3.0, 3, 3, -1, -1, 0])])
def test_exhausted_krylov_spaces_add_no_false_eigenvalue(matrix: np.ndarray) -> None:
    rng = np.random.default_rng(2)
    found = extremes(product(matrix[None]), (1, 6), 6, rng)
    values = np.linalg.eigvalsh(matrix)
    assert found.low[0] == pytest.approx(values[0], abs=1e-12)
    assert found.high[0] == pytest.approx(values[-1], abs=1e-12)


def test_deflated_solve_is_the_pseudo_inverse() -> None:
    rng = np.random.default_rng(3)
    a = symmetric(rng, 3, 10)
    values, vectors = np.linalg.eigh(a)
    right = rng.normal(size=(3, 10))
    x, residual = solve_deflated(product(a), values[:, -1], vectors[:, :, -1], right)
    for i in range(3):
        pinv = np.linalg.pinv(values[i, -1] * np.eye(10) - a[i], rcond=1e-10)
        np.testing.assert_allclose(x[i], pinv @ right[i], rtol=1e-8, atol=1e-8)
    assert (residual < 1e-8).all()


def test_terms_against_finite_differences_of_eigenvalues() -> None:
    rng = np.random.default_rng(4)
    f, f1, f2 = (symmetric(rng, 4, 9) for _ in range(3))
    values, vectors = np.linalg.eigh(f)
    slope, bend = eigen_terms(product(f), product(f1), product(f2), values[:, -1], vectors[:, :, -1])
    first, second = derivatives(lambda t: np.linalg.eigvalsh(f + t * f1 + t * t / 2 * f2)[:, -1], 2e-2)
    np.testing.assert_allclose(slope, first, rtol=1e-6)
    np.testing.assert_allclose(bend, second, rtol=1e-4)


def test_a_repeated_largest_eigenvalue_has_no_second_term() -> None:
    f, f1 = np.diag([2.0, 2.0, 1.0])[None], symmetric(np.random.default_rng(5), 1, 3)
    _, bend = eigen_terms(product(f), product(f1), product(f1), np.array([2.0]), np.array([[1.0, 0, 0]]))
    assert np.isnan(bend[0])


def test_lowest_in_span_against_the_dense_form() -> None:
    rng = np.random.default_rng(6)
    x, s = rng.normal(size=(5, 12)), symmetric(rng, 1, 5)[0]
    assert lowest_in_span(x @ x.T, s, 12) == pytest.approx(np.linalg.eigvalsh(x.T @ s @ x)[0], rel=1e-10)
    # positive definite on its span: the rest of the space contributes 0, a space that is all span does not
    assert lowest_in_span(x @ x.T, np.eye(5), 12) == 0.0
    y = rng.normal(size=(5, 3))
    assert lowest_in_span(y @ y.T, np.eye(5), 3) == pytest.approx(np.linalg.eigvalsh(y.T @ y)[0], rel=1e-8)
    assert lowest_in_span(np.zeros((2, 2)), np.eye(2), 4) == 0.0
