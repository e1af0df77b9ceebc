"""The curve of λ_max on a micro model: values, terms and λ_min(E) against dense float64 matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from quantvane.errors import CapabilityError, DataError
from quantvane.fisher.gram_terms import gram_terms, token_gram_terms, weyl_gram
from quantvane.fisher.jets import Jet, States
from quantvane.fisher.line import WeightLine, inner_products
from quantvane.fisher.perturbation import OUTPUT_SPACES, operator_terms, output_terms, output_value, weyl_output
from reference.curve_dense import derivatives, gauss_newton_matrix, largest, matrices
from support_micro import micro_direction, micro_llama

IDS = np.random.default_rng(0).integers(0, 40, 12)
ROWS = np.arange(6, 11)
TARGETS = IDS[7:12]
FEW, NEXT = IDS % 12, TARGETS % 12  # for the smaller model
STEP = 0.02


@pytest.fixture(scope="module", params=[False, True], ids=["own head", "tied head"])
def line(request: pytest.FixtureRequest) -> WeightLine:
    model = micro_llama(tie=request.param)
    return WeightLine(model, micro_direction(model))


@pytest.fixture(scope="module")
def states(line: WeightLine) -> dict[float, States]:
    return {t: line.states(IDS, ROWS, t) for t in (*(k * STEP for k in range(-3, 4)), 1.0)}


def test_jet_against_finite_differences(line: WeightLine, states: dict[float, States]) -> None:
    jet = line.jet(IDS, ROWS)
    first, second = derivatives(lambda t: states[t].hidden, STEP)
    np.testing.assert_allclose(jet.first.hidden, first, atol=1e-8)
    np.testing.assert_allclose(jet.hidden2, second, atol=1e-6)
    first, second = derivatives(lambda t: np.exp(states[t].logits()) / np.exp(states[t].logits()).sum(1)[:, None], STEP)
    p, p1, p2 = jet.probabilities()
    np.testing.assert_allclose(p.sum(1), 1.0)
    np.testing.assert_allclose(p1, first, atol=1e-7)
    np.testing.assert_allclose(p2, second, atol=1e-5)
    twice = jet.scaled(2.0).probabilities()
    np.testing.assert_allclose(twice[1], 2 * p1, atol=1e-14)
    np.testing.assert_allclose(twice[2], 4 * p2, atol=1e-13)


@pytest.mark.parametrize("space", OUTPUT_SPACES)
def test_values_along_the_line(space: str, states: dict[float, States]) -> None:
    for one in states.values():
        assert output_value(space, one, TARGETS) == pytest.approx(largest(matrices(space, one, TARGETS)), rel=1e-10)


@pytest.mark.parametrize("space", OUTPUT_SPACES)
def test_terms(space: str, line: WeightLine, states: dict[float, States]) -> None:
    terms = output_terms(space, line.jet(IDS, ROWS), TARGETS)
    first, second = derivatives(lambda t: largest(matrices(space, states[t], TARGETS)), STEP)
    assert terms.value == pytest.approx(largest(matrices(space, states[0.0], TARGETS)), rel=1e-10)
    assert terms.slope == pytest.approx(first, rel=1e-5)
    assert terms.curvature == pytest.approx(second, rel=1e-4, abs=1e-6)
    move, bend = derivatives(lambda t: matrices(space, states[t], TARGETS), STEP)
    assert terms.lowest_first == pytest.approx(np.linalg.eigvalsh(move)[:, 0].min(), rel=1e-4)
    assert terms.lowest_second == pytest.approx(np.linalg.eigvalsh(bend)[:, 0].min() / 2, rel=1e-3)
    assert terms.at(0.5) == terms.value + terms.slope / 2 + terms.curvature / 8


@pytest.mark.parametrize("space", OUTPUT_SPACES)
def test_weyl(space: str, states: dict[float, States]) -> None:
    mean, smallest = weyl_output(space, states[0.0], states[1.0], TARGETS)
    lows = np.linalg.eigvalsh(matrices(space, states[1.0], TARGETS) - matrices(space, states[0.0], TARGETS))[:, 0]
    assert mean == pytest.approx(lows.mean(), rel=1e-8)
    assert smallest == pytest.approx(lows.min(), rel=1e-8)
    before, after = (output_value(space, states[t], TARGETS) for t in (0.0, 1.0))
    assert after >= before + mean - 1e-12


@pytest.fixture(scope="module", params=[False, True], ids=["own head", "tied head"])
def small(request: pytest.FixtureRequest) -> WeightLine:
    """Some 200 parameters, so that P × P matrices are quick."""
    model = micro_llama(tie=request.param, vocabulary=12, width=4, layers=1)
    return WeightLine(model, micro_direction(model))


def dense_rows(line: WeightLine, t: float) -> np.ndarray:
    return line.gradients(FEW, ROWS, NEXT, t).numpy()


def test_gradients_against_finite_differences(small: WeightLine) -> None:
    g = dense_rows(small, 0.0)
    flat = np.concatenate([d.ravel() for d in micro_direction(small._model).values()])

    def loss(t: float) -> np.ndarray:
        z = small.states(FEW, ROWS, t).logits()
        return np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), NEXT]

    np.testing.assert_allclose(g @ flat, derivatives(loss, STEP)[0], atol=1e-7)


def test_parameter_space_terms(small: WeightLine) -> None:
    jets = small.gradient_jets(FEW, ROWS, NEXT, 1e-3)
    gram = inner_products(*jets)
    rows = {k: dense_rows(small, k * STEP) for k in range(-3, 4)}

    def dense(t: float) -> np.ndarray:
        g = rows[round(t / STEP)]
        return g.T @ g / len(g)

    window, tokens = gram_terms(gram, small.size), token_gram_terms(gram, small.size)
    first, second = derivatives(lambda t: np.linalg.eigvalsh(dense(t))[-1], STEP)
    assert window.value == pytest.approx(np.linalg.eigvalsh(dense(0.0))[-1], rel=1e-10)
    assert (window.slope, window.curvature) == (pytest.approx(first, rel=1e-3), pytest.approx(second, rel=1e-2))
    first, second = derivatives(lambda t: np.trace(dense(t)), STEP)
    assert tokens.value == pytest.approx(np.trace(dense(0.0)), rel=1e-10)
    assert (tokens.slope, tokens.curvature) == (pytest.approx(first, rel=1e-3), pytest.approx(second, rel=1e-2))
    move, bend = derivatives(dense, STEP)
    assert window.lowest_first == pytest.approx(np.linalg.eigvalsh(move)[0], rel=1e-3)
    assert window.lowest_second == pytest.approx(np.linalg.eigvalsh(bend)[0] / 2, rel=1e-2)
    moved = small.gradients(FEW, ROWS, NEXT, 1.0)
    g = moved.numpy()
    low = weyl_gram(inner_products(moved, jets[0]), small.size)
    assert low == pytest.approx(np.linalg.eigvalsh(g.T @ g / len(g) - dense(0.0))[0], rel=1e-8)


def test_gauss_newton_terms(small: WeightLine) -> None:
    """F(t) given as products only, F' and F'' by differences of them."""
    pytest.importorskip("curvlinops")
    import torch

    from quantvane.fisher.params_operator import gauss_newton

    def dense(t: float) -> np.ndarray:
        scored = small.scored(FEW, ROWS, NEXT, t)
        leaves = {k: v.clone().requires_grad_() for k, v in scored.params.items()}
        with torch.enable_grad():
            z = scored.logits(leaves)
            flat = [
                torch.cat([g.reshape(-1) for g in torch.autograd.grad(x, list(leaves.values()), retain_graph=True)])
                for x in z.reshape(-1)
            ]
        return gauss_newton_matrix(torch.stack(flat).reshape(*z.shape, -1).numpy(), z.detach().numpy())

    held = {k: dense(k * STEP) for k in range(-3, 4)}
    product = gauss_newton(small.scored(FEW, ROWS, NEXT, 0.0))
    probe = np.random.default_rng(0).normal(size=small.size)
    np.testing.assert_allclose(product(probe), held[0] @ probe, atol=1e-8)

    near = {k: dense(k * 1e-3) for k in (-1, 0, 1)}
    terms = operator_terms(lambda t: lambda v: v @ near[round(t / 1e-3)], small.size, 1e-3, steps=60)
    first, second = derivatives(lambda t: np.linalg.eigvalsh(held[round(t / STEP)])[-1], STEP)
    assert terms.value == pytest.approx(np.linalg.eigvalsh(held[0])[-1], rel=1e-8)
    assert terms.slope == pytest.approx(first, rel=1e-3)
    assert terms.curvature == pytest.approx(second, rel=1e-2)
    move, _ = derivatives(lambda t: held[round(t / STEP)], STEP)
    assert terms.lowest_first == pytest.approx(np.linalg.eigvalsh(move)[0], rel=1e-2)


def two_token_jet(z1: float) -> Jet:
    """V = 2, d = 1, W = (1, 0): logits (h, 0) at h = 0, so p = (½, ½)."""
    at = States(np.zeros((1, 1)), np.array([[1.0], [0.0]]))
    return Jet(at, States(np.full((1, 1), z1), np.zeros((2, 1))), np.zeros((1, 1)))


def test_the_even_pair_is_a_maximum_so_every_perturbation_lowers_it() -> None:
    """p = (½, ½) maximises the logit λ: the first-order term vanishes and the second is negative, for any δ."""
    jet = two_token_jet(0.7)
    terms = output_terms("logit", jet, np.array([0]))
    assert terms.value == 0.5
    assert terms.slope == pytest.approx(0.0, abs=1e-15)
    assert terms.curvature == pytest.approx(-(0.7**2) / 4, rel=1e-12)  # λ = 2p(1−p), p = sigmoid(0.7t)
    for t in (-1.0, -0.1, 0.1, 1.0):
        moved = States(np.full((1, 1), 0.7 * t), jet.at.weight)
        assert output_value("logit", moved, np.array([0])) < 0.5


def test_refusals() -> None:
    model = micro_llama()
    with pytest.raises(DataError, match="no parameter"):
        WeightLine(model, {"nothing": np.zeros(3)})
    with pytest.raises(DataError, match="another shape"):
        WeightLine(model, {"lm_head.weight": np.zeros(3)})
    line = WeightLine(model, {})
    with pytest.raises(DataError, match="no output space"):
        output_value("parameters", line.states(IDS, ROWS), TARGETS)
    with pytest.raises(DataError):
        gram_terms(np.ones((4, 4)), 9)
    model.config.logit_scale = 0.5
    with pytest.raises(CapabilityError):
        WeightLine(model, {})


def test_a_direction_of_nothing_moves_nothing() -> None:
    line = WeightLine(micro_llama(), {})
    jet: Any = line.jet(IDS, ROWS)
    terms = output_terms("hidden", jet, TARGETS)
    assert (terms.slope, terms.curvature) == (0.0, 0.0)
    assert line.difference_step() == 1.0
