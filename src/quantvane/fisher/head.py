"""Head space: F over the weights W of the output head, for a window of N scored positions.

With δ_i(y) = s_i ∘ (e_y − p_i), s_i the slope of scale and soft cap (1 for a plain head), the gradient of position i
is −δ_i ⊗ h_i, h_i the hidden state after the final norm. Hence, for one token, λ = ‖h‖²·λ_logit exactly (Kronecker),
and for a window the Gram matrix (δ_i·δ_j)(h_i·h_j)/N. The head's bias, where there is one, does not count.

Three matrices, three calls: `head_empirical` (observed tokens), `head_sampled` (tokens drawn from the model; λ_max
biased upward, by Jensen), `head_true` (the expectation, which is the head's Gauss–Newton matrix
(1/N) Σ S_i(diag p_i − p_i p_iᵀ)S_i ⊗ h_i h_iᵀ).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from quantvane.errors import DataError
from quantvane.fisher.estimates import LambdaEstimate, gram_lambda
from quantvane.fisher.lanczos import lanczos_lambda
from quantvane.fisher.output_map import OutputMap, RowStats, row_stats
from quantvane.types import FloatArray

__all__ = ["head_empirical", "head_gram", "head_sampled", "head_true"]

Hidden = npt.NDArray[np.floating]
Labels = npt.NDArray[np.integer]


def head_gram(head: OutputMap, hidden: Hidden, labels: Labels, stats: RowStats | None = None) -> FloatArray:
    """(δ_i·δ_j)(h_i·h_j)/N, (N, N) float64, in two passes over the vocabulary that hold one block of it.

    Args:
        head: the output map. hidden: (N, d). labels: (N,) tokens. stats: `row_stats`, where at hand.

    Raises:
        DataError: shapes that do not fit, or labels outside the vocabulary.
    """
    head.check(hidden)
    count, size = len(hidden), len(head.weight)
    tokens = np.asarray(labels)
    if tokens.shape != (count,) or tokens.min() < 0 or tokens.max() >= size:
        raise DataError(
            "labels do not fit the hidden states",
            expected=f"shape ({count},), values 0 … {size - 1}",
            got=f"shape {tokens.shape}, values {tokens.min(initial=0)} … {tokens.max(initial=0)}",
        )
    stats = row_stats(head, hidden) if stats is None else stats
    outer = np.zeros((count, count))
    for start, stop in head.columns(count):
        z = head.logits(hidden, start, stop)
        logp = stats.logp(z)
        delta = -np.exp(logp)
        rows = np.flatnonzero((tokens >= start) & (tokens < stop))
        cols = tokens[rows] - start
        delta[rows, cols] = -np.expm1(logp[rows, cols])  # 1 − p without cancellation
        delta *= head.slope(z)
        outer += delta @ delta.T
    states = hidden.astype(np.float64)
    out: FloatArray = outer * (states @ states.T) / count
    return out


def head_empirical(head: OutputMap, hidden: Hidden, labels: Labels) -> LambdaEstimate:
    """Exact λ_max of the empirical Fisher of the head over a window, from its Gram matrix."""
    return gram_lambda(head_gram(head, hidden, labels), "empirical")


def _drawn(head: OutputMap, hidden: Hidden, rng: np.random.Generator) -> Labels:
    """(N,) tokens from each position's distribution: argmax of logits plus Gumbel noise, block by block."""
    count = len(hidden)
    best, label = np.full(count, -np.inf), np.zeros(count, np.int64)
    rows = np.arange(count)
    for start, stop in head.columns(count):
        z = head.logits(hidden, start, stop)
        z += rng.gumbel(size=z.shape)
        at = z.argmax(axis=1)
        higher = z[rows, at] > best
        label, best = np.where(higher, start + at, label), np.where(higher, z[rows, at], best)
    return label


def head_sampled(head: OutputMap, hidden: Hidden, rng: np.random.Generator, *, draws: int = 1) -> LambdaEstimate:
    """Mean λ_max of the sampled Fisher over ``draws`` draws of the window's tokens; biased upward (Jensen).

    ``spread`` is the relative standard deviation of that mean (NaN for one draw).

    Raises:
        DataError: no draw, or shapes that do not fit.
    """
    if draws < 1:
        raise DataError("too few draws", expected="1 or more", got=str(draws))
    head.check(hidden)
    stats = row_stats(head, hidden)
    grams = (head_gram(head, hidden, _drawn(head, hidden, rng), stats) for _ in range(draws))
    found = [gram_lambda(gram, "sampled") for gram in grams]
    if bad := next((f for f in found if not math.isfinite(f.value)), None):
        return bad
    values = [f.value for f in found]
    mean = float(np.mean(values))
    spread = float(np.std(values, ddof=1) / math.sqrt(draws) / mean) if draws > 1 and mean > 0 else math.nan
    return LambdaEstimate(mean, fisher="sampled", spread=spread)


def head_true(
    head: OutputMap, hidden: Hidden, rng: np.random.Generator, *, steps: int = 24, tolerance: float = 1e-4
) -> LambdaEstimate:
    """λ_max of the true Fisher of the head over a window, by Lanczos without forming it.

    F = M Mᵀ/N with blocks M_i = S_i R_i ⊗ h_i, R_i = diag(√p_i)(I − √p_i√p_iᵀ); iterated is MᵀM/N, of dimension N·V
    instead of V·d, with the same nonzero eigenvalues. Holds the window's probabilities and ``steps`` vectors of N·V
    float64 numbers; each step costs 4·N·V·d operations. ``upper`` is the trace, Σ ‖h_i‖² tr(A_i)/N, and no tight
    bound.

    Raises:
        DataError: shapes that do not fit.
    """
    head.check(hidden)
    stats, states = row_stats(head, hidden), hidden.astype(np.float64)
    count, size = len(states), len(head.weight)
    # √p beside the largest entry's own complement: u·u = 1 would lose it next to one-hot
    root, slope = np.empty((count, size)), np.ones((count, size))
    rest = np.empty((count, size))
    for start, stop in head.columns(count):
        z = head.logits(hidden, start, stop)
        logp = stats.logp(z)
        root[:, start:stop] = np.exp(0.5 * logp)
        rest[:, start:stop] = -np.expm1(logp)
        slope[:, start:stop] = head.slope(z)

    def centred(x: FloatArray) -> FloatArray:
        out: FloatArray = x - root * (root * x).sum(axis=1, keepdims=True)
        return out

    def product(vector: FloatArray) -> FloatArray:
        y = slope * root * centred(vector.reshape(count, size))
        mixed = states @ (states.T @ y)
        out: FloatArray = centred(root * slope * mixed).ravel() / count
        return out

    found = lanczos_lambda(product, count * size, rng, steps=steps, tolerance=tolerance, fisher="true")
    trace = float(((slope * root) ** 2 * rest).sum(axis=1) @ (states * states).sum(axis=1)) / count
    return LambdaEstimate(
        found.value, max(trace, found.value), found.residual, found.steps, "true", reason=found.reason
    )
