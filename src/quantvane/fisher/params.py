"""Parameter space: F over a model's weights from gradients, sketches and Gauss–Newton products. Offline audits.

With g_i(y) = ∇θ −ln p_θ(y | context i) at N scored positions, three matrices go by one name; each has its call:

- **empirical** (`empirical_gram`): (1/N) Σ g_i(y_i) g_i(y_i)ᵀ, y_i the token that stands in the text;
- **sampled** (`sampled_lambda`): the same with y_i drawn from the model. F is right on average, but λ_max is convex:
  by Jensen's inequality the λ_max of a draw is biased **upward** against the true one;
- **true** (`true_lambda`): the expectation over y ~ p, which for softmax cross-entropy is the Gauss–Newton matrix
  (1/N) Σ J_iᵀ (diag p_i − p_i p_iᵀ) J_i, J_i the Jacobian of position i's logits.

A model comes as a `ScoredModel`: parameters and a function from parameters to the logits of the scored positions.
torch is imported when something is computed.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from quantvane.errors import DataError
from quantvane.fisher.estimates import LambdaEstimate, gram_lambda
from quantvane.fisher.lanczos import lanczos_lambda
from quantvane.fisher.params_operator import gauss_newton
from quantvane.fisher.params_sketch import SKETCH_WIDTH, CountSketch
from quantvane.fisher.scored_model import ScoredModel
from quantvane.types import FloatArray

__all__ = [
    "empirical_gram",
    "empirical_lambda",
    "gradient_rows",
    "sampled_labels",
    "sampled_lambda",
    "sketched_gram",
    "true_lambda",
]

Tensor = Any  # a torch tensor; torch is not imported for a type


def gradient_rows(model: ScoredModel, weights: Tensor | None = None, labels: Tensor | None = None) -> GradientRows:
    """Gradients g_r = ∇θ Σ_i weights[r, i] · (−ln p(label_i)), computed when asked for.

    Args:
        weights: (R, N) tensor; by default the identity, so one row a token. A row of 1/n over a window's n
            positions gives that window's mean gradient.
        labels: (N,) tensor; by default the observed ones.
    """
    return GradientRows(model, weights, model.labels if labels is None else labels)


class GradientRows:
    """Rows of gradients of one model; indexing with ``rows[a:b]`` computes them.

    The forward pass is done once and its graph kept, so that a row costs one backward pass.
    """

    def __init__(self, model: ScoredModel, weights: Tensor | None, labels: Tensor) -> None:
        import torch

        self._torch = torch
        self._leaves = {n: p.detach().clone().requires_grad_(True) for n, p in model.params.items()}
        with torch.enable_grad():
            logits = model.logits(self._leaves)
            if logits.ndim != 2 or logits.shape[0] != labels.shape[0] or logits.shape[0] == 0:
                raise DataError(
                    "logits and labels do not fit",
                    expected="logits (N, V) and labels (N,), N ≥ 1",
                    got=f"{tuple(logits.shape)} and {tuple(labels.shape)}",
                    remedy="pick the scored positions only",
                )
            self._nll = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")
        self._weights = weights
        self.size = model.size

    def __len__(self) -> int:
        return int(self._nll.shape[0] if self._weights is None else self._weights.shape[0])

    def parts(self, row: int) -> list[Tensor]:
        """One gradient as the parameters' own shapes."""
        torch = self._torch
        with torch.enable_grad():
            loss = self._nll[row] if self._weights is None else (self._nll * self._weights[row]).sum()
            found = torch.autograd.grad(loss, list(self._leaves.values()), retain_graph=True, allow_unused=True)
        leaves = self._leaves.values()
        return [torch.zeros_like(p) if g is None else g for p, g in zip(leaves, found, strict=True)]

    def __getitem__(self, rows: slice) -> Tensor:
        """(b, P) float32 tensor."""
        torch = self._torch
        picked = [torch.cat([part.reshape(-1) for part in self.parts(r)]) for r in range(*rows.indices(len(self)))]
        return torch.stack(picked).float()


def empirical_gram(
    model: ScoredModel,
    *,
    weights: Tensor | None = None,
    labels: Tensor | None = None,
    memory: int = 1 << 30,
) -> FloatArray:
    """Gram matrix K_ij = g_i·g_j/N, (N, N) float64; λ_max(K) is exactly that of the empirical Fisher.

    Gradients are float32, their products float64. Where N of them do not fit in ``memory`` they are computed again
    for each pair of blocks: N²/(2·block) backward passes in place of N.

    Args:
        weights, labels: as for `gradient_rows`; labels drawn from the model give the sampled Fisher.
        memory: bytes that may be spent on gradients.
    """
    rows = gradient_rows(model, weights, labels)
    count = len(rows)
    block = count if 4 * count * rows.size <= memory else max(1, memory // (8 * rows.size))
    gram = np.empty((count, count))
    for a in range(0, count, block):
        left = rows[a : a + block]
        for b in range(a, count, block):
            right = left if b == a else rows[b : b + block]
            part = _inner(left, right)
            gram[a : a + block, b : b + block] = part
            gram[b : b + block, a : a + block] = part.T
    return gram / count


def _inner(left: Tensor, right: Tensor, chunk: int = 1 << 18) -> FloatArray:
    """left @ rightᵀ accumulated in float64, a few columns at a time."""
    total = np.zeros((int(left.shape[0]), int(right.shape[0])))
    for start in range(0, int(left.shape[1]), chunk):
        a, b = (x[:, start : start + chunk].double() for x in (left, right))
        total += (a @ b.T).cpu().numpy()
    return total


def sketched_gram(
    model: ScoredModel,
    *,
    width: int = SKETCH_WIDTH,
    seed: int = 0,
    weights: Tensor | None = None,
    labels: Tensor | None = None,
) -> FloatArray:
    """`empirical_gram` from CountSketches of the gradients: N·width numbers are held, one backward pass a row.

    Entries are unbiased with variance at most (‖g_i‖²‖g_j‖² + (g_i·g_j)²)/width; see `sketched_spread`.
    """
    sketch = CountSketch(width, seed)
    rows = gradient_rows(model, weights, labels)
    held = np.stack([sketch.of(rows.parts(r)) for r in range(len(rows))])
    return held @ held.T / len(rows)


def empirical_lambda(
    model: ScoredModel, *, weights: Tensor | None = None, sketch: int | None = None, seed: int = 0
) -> LambdaEstimate:
    """λ_max of the empirical Fisher, exact, or from a CountSketch of the width given.

    The sketched value's ``spread`` is its stated relative standard deviation √(2/width).
    """
    if sketch is None:
        return gram_lambda(empirical_gram(model, weights=weights), "empirical")
    found = gram_lambda(sketched_gram(model, width=sketch, seed=seed, weights=weights), "empirical")
    return replace(found, upper=math.nan, spread=math.sqrt(2.0 / sketch))


def sampled_labels(model: ScoredModel, rng: np.random.Generator) -> Tensor:
    """(N,) labels, one drawn from each position's own distribution."""
    import torch

    with torch.no_grad():
        logits = model.logits(model.params).double().cpu().numpy()
    # Gumbel: argmax of logits plus Gumbel noise is a draw from the softmax, −∞ included.
    drawn = np.argmax(logits + rng.gumbel(size=logits.shape), axis=-1)
    return torch.from_numpy(drawn.astype(np.int64)).to(model.labels.device)


def sampled_lambda(
    model: ScoredModel, rng: np.random.Generator, *, draws: int = 1, sketch: int | None = None
) -> LambdaEstimate:
    """Mean λ_max of the sampled Fisher over ``draws`` draws of the labels.

    Biased upward (Jensen): E λ_max(F̂) ≥ λ_max(E F̂) = λ_max of the true Fisher. More draws narrow the mean, they do
    not remove the bias. ``spread`` is the relative standard deviation of the mean over draws (NaN for one draw).
    """
    if draws < 1:
        raise DataError("too few draws", expected="1 or more", got=str(draws))
    values = []
    for number in range(draws):
        labels = sampled_labels(model, rng)
        gram = (
            empirical_gram(model, labels=labels)
            if sketch is None
            else sketched_gram(model, width=sketch, seed=number, labels=labels)
        )
        values.append(gram_lambda(gram, "sampled").value)
    mean = float(np.mean(values))
    if not math.isfinite(mean):
        return LambdaEstimate(math.nan, fisher="sampled", reason="the gradients hold NaN or infinity")
    spread = float(np.std(values, ddof=1) / math.sqrt(draws) / mean) if draws > 1 and mean > 0 else math.nan
    return LambdaEstimate(mean, fisher="sampled", spread=spread)


def true_lambda(
    model: ScoredModel, rng: np.random.Generator, *, steps: int = 24, tolerance: float = 1e-3
) -> LambdaEstimate:
    """λ_max of the true Fisher (Gauss–Newton) by Lanczos, with its residual.

    Each step costs a forward-mode and a reverse-mode pass. The value is a lower bound up to rounding in the
    parameters' type.
    """
    product = gauss_newton(model)
    return lanczos_lambda(product, model.size, rng, steps=steps, tolerance=tolerance, fisher="true")
