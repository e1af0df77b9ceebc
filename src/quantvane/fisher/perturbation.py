"""How λ_max moves along θ + tδ: its curve, its first two terms, and Weyl's bound. Pure.

A *window* is N scored positions of one sequence. Its statistic, per space:

==================  ============================================================================================
``logit``           mean over positions of λ_max(diag p − ppᵀ)
``hidden``          mean over positions of λ_max(Wᵀ(diag p − ppᵀ)W)
``head``            λ_max of (1/N) Σ aᵢaᵢᵀ ⊗ hᵢhᵢᵀ, aᵢ = e_{yᵢ} − pᵢ: empirical Fisher of the head, observed labels
``params-token``    mean over positions of ‖gᵢ‖² = λ_max(gᵢgᵢᵀ), gᵢ = ∂(−ln p(yᵢ))/∂θ, observed labels
``params``          λ_max of (1/N) Σ gᵢgᵢᵀ
``gauss-newton``    λ_max of (1/N) Σ Jᵢᵀ(diag pᵢ − pᵢpᵢᵀ)Jᵢ, the true Fisher information
==================  ============================================================================================

Along the line F(t) = F + tF' + ½t²F'' + O(t³) and λ(t) = λ + tλ' + ½t²λ'' + O(t³); the functions of this module and
`gram_terms` give λ, λ', λ'' and the smallest eigenvalues of F' and ½F''. With E = F(θ+δ) − F(θ), Weyl's inequality is
λ(1) ≥ λ(0) + λ_min(E), always.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from quantvane.errors import DataError
from quantvane.fisher.eigen import Operator, eigen_terms, extremes
from quantvane.fisher.gram_terms import REPEATED, Terms, gram_terms, kronecker_products, weyl_gram
from quantvane.fisher.jets import Jet, States, covariance, covariance_first, covariance_second, softmax
from quantvane.fisher.logit import lambda_max
from quantvane.types import FloatArray

__all__ = ["OUTPUT_SPACES", "operator_terms", "output_terms", "output_value", "weyl_output"]

OUTPUT_SPACES = ("logit", "hidden", "head")
STEPS = 24
"""Lanczos steps on d-dimensional and V-dimensional operators."""

Targets = npt.NDArray[np.integer]


def _shape(rows: FloatArray) -> tuple[int, int]:
    return rows.shape[0], rows.shape[1]


def _hidden_operator(weight: FloatArray, inner: Callable[[FloatArray], FloatArray]) -> Operator:
    return lambda v: inner(v @ weight.T) @ weight


def _values(space: str, states: States, targets: Targets, steps: int = STEPS) -> FloatArray:
    """The statistic's values, one a position (one in all for ``head``)."""
    z = states.logits()
    if space == "logit":
        return lambda_max(z)
    p = softmax(z)
    if space == "hidden":
        apply = _hidden_operator(states.weight, lambda y: covariance(p, y))
        return extremes(apply, _shape(states.hidden), steps, np.random.default_rng(0)).high
    if space == "head":
        a = -p
        a[np.arange(len(p)), targets] += 1.0
        gram = (a @ a.T) * (states.hidden @ states.hidden.T) / len(p)
        return np.asarray(np.linalg.eigvalsh(gram)[-1:], np.float64)
    raise _unknown(space)


def _unknown(space: str) -> DataError:
    return DataError(
        f"no output space is called '{space}'",
        expected="one of " + ", ".join(OUTPUT_SPACES),
        got=space,
        remedy="parameter spaces need gradients: see gram_terms and operator_terms",
    )


def output_value(space: str, states: States, targets: Targets) -> float:
    """The window's statistic at one point of the line: see the module's table.

    Args:
        targets: (N,) observed tokens; only ``head`` reads them.

    ``hidden`` is a Ritz value of 24 Lanczos steps, exact for d ≤ 24 and a lower bound always.
    """
    return float(np.mean(_values(space, states, targets)))


def output_terms(space: str, jet: Jet, targets: Targets, *, lowest: bool = True) -> Terms:
    """Terms of one window in an output space, from the jet of the model's last step.

    Args:
        lowest: also the smallest eigenvalues of F' and ½F'' (the larger part of the cost).
    """
    p, p1, p2 = jet.probabilities()
    if space == "head":
        return _head_terms(jet, (p, p1, p2), targets)
    if space == "logit":
        value = lambda_max(jet.at.logits())
        apply: Operator = lambda v: covariance(p, v)  # noqa: E731
        first: Operator = lambda v: covariance_first(p, p1, v)  # noqa: E731
        second: Operator = lambda v: covariance_second(p, p1, p2, v)  # noqa: E731
        vector = _logit_vector(p, value)
        shape = _shape(p)
    elif space == "hidden":
        w, w1 = jet.at.weight, jet.first.weight
        apply = _hidden_operator(w, lambda y: covariance(p, y))

        def first(v: FloatArray) -> FloatArray:
            y, y1 = v @ w.T, v @ w1.T
            return covariance(p, y) @ w1 + (covariance_first(p, p1, y) + covariance(p, y1)) @ w

        def second(v: FloatArray) -> FloatArray:
            y, y1 = v @ w.T, v @ w1.T
            side = 2.0 * (covariance(p, y1) + covariance_first(p, p1, y)) @ w1
            return side + (covariance_second(p, p1, p2, y) + 2.0 * covariance_first(p, p1, y1)) @ w

        shape = _shape(jet.at.hidden)
        found = extremes(apply, shape, min(shape[1], 2 * STEPS), np.random.default_rng(0))
        value, vector = found.high, found.vector
    else:
        raise _unknown(space)
    slope, bend = eigen_terms(apply, first, second, value, vector)
    lows = (math.nan, math.nan)
    if lowest:
        rng = np.random.default_rng(1)
        pair = [extremes(f, shape, STEPS, rng).low.min() for f in (first, second)]
        lows = (float(pair[0]), 0.5 * float(pair[1]))
    reason = "" if bool(np.isfinite(bend).all()) else REPEATED
    return Terms(float(value.mean()), float(slope.mean()), float(bend.mean()), *lows, reason)


def _logit_vector(p: FloatArray, value: FloatArray) -> FloatArray:
    """Unit eigenvectors uᵢ ∝ pᵢ/(λ − pᵢ) of diag p − ppᵀ; where p₁ is tied, (e₁ − e₂)/√2."""
    gap = value[:, None] - p
    tied: npt.NDArray[np.bool_] = np.any(np.abs(gap) <= 1e-15 * value[:, None], axis=1)
    vector: FloatArray = np.divide(p, gap, out=np.zeros_like(p), where=~tied[:, None])
    if bool(tied.any()):
        two = np.argsort(-p[tied], axis=1, kind="stable")[:, :2]
        rows = np.flatnonzero(tied)
        vector[rows] = 0.0
        vector[rows, two[:, 0]] = 1.0
        if two.shape[1] > 1:
            vector[rows, two[:, 1]] = -1.0
    norm = np.linalg.norm(vector, axis=1, keepdims=True)
    out: FloatArray = np.divide(vector, norm, out=np.zeros_like(vector), where=norm > 0)
    return out


def _head_terms(jet: Jet, p: tuple[FloatArray, FloatArray, FloatArray], targets: Targets) -> Terms:
    a, a1, a2 = -p[0], -p[1], -p[2]
    a[np.arange(len(a)), targets] += 1.0
    h, h1, h2 = jet.at.hidden, jet.first.hidden, jet.hidden2
    rows = [[(a, h)], [(a1, h), (a, h1)], [(a2, h), (2.0 * a1, h1), (a, h2)]]
    gram = np.block([[kronecker_products(x, y) for y in rows] for x in rows])
    return gram_terms(gram, a.shape[1] * h.shape[1])


def operator_terms(at: Callable[[float], Operator], size: int, step: float, steps: int = STEPS) -> Terms:
    """Terms of a matrix-free F(t) with N = 1, F' and F'' by central differences of its products.

    Args:
        at: t ↦ the operator F(t). size: its dimension. step: t of the differences, in the caller's unit.
        steps: Lanczos steps. The smallest eigenvalues of F' and ½F'' are Ritz values: upper bounds.
    """
    middle, up, down = at(0.0), at(step), at(-step)

    def first(v: FloatArray) -> FloatArray:
        return (up(v) - down(v)) / (2.0 * step)

    def second(v: FloatArray) -> FloatArray:
        return (up(v) - 2.0 * middle(v) + down(v)) / step**2

    rng = np.random.default_rng(0)
    top = extremes(middle, (1, size), steps, rng)
    slope, bend = eigen_terms(middle, first, second, top.high, top.vector, accuracy=1e-5)
    low = [float(extremes(f, (1, size), steps, rng).low[0]) for f in (first, second)]
    reason = "" if math.isfinite(bend[0]) else REPEATED
    return Terms(float(top.high[0]), float(slope[0]), float(bend[0]), low[0], 0.5 * low[1], reason)


def weyl_output(space: str, before: States, after: States, targets: Targets) -> tuple[float, float]:
    """λ_min(E), E = F(θ+δ) − F(θ), in an output space: (mean over positions, smallest of them).

    The mean is what bounds the window's statistic from below: mean λ(1) ≥ mean λ(0) + mean λ_min(E). For
    ``head`` both are the window's one value, exact on the span of its 2N rows. The others are Ritz values.
    """
    p, q = softmax(before.logits()), softmax(after.logits())
    if space == "head":
        n = len(p)
        rows = []
        for prob, states in ((q, after), (p, before)):
            a = -prob
            a[np.arange(n), targets] += 1.0
            rows.append([(a, states.hidden)])
        gram = np.block([[kronecker_products(x, y) for y in rows] for x in rows])
        low = weyl_gram(gram, p.shape[1] * before.hidden.shape[1])
        return low, low
    if space == "logit":
        operator: Operator = lambda v: covariance(q, v) - covariance(p, v)  # noqa: E731
        shape = _shape(p)
    elif space == "hidden":
        new = _hidden_operator(after.weight, lambda y: covariance(q, y))
        old = _hidden_operator(before.weight, lambda y: covariance(p, y))
        operator, shape = (lambda v: new(v) - old(v)), _shape(before.hidden)
    else:
        raise _unknown(space)
    lows = extremes(operator, shape, STEPS, np.random.default_rng(2)).low
    return float(lows.mean()), float(lows.min())
