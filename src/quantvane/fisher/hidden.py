"""Hidden space: F over the hidden state of one position, Wᵀ S (diag p − ppᵀ) S W: the covariance of W's rows under p.

Lanczos with full reorthogonalisation on many positions at once, each step two products with W. A Ritz value is a
Rayleigh quotient, so a lower bound. Two upper bounds are computed and the smaller is kept:

- a bracket from the K likeliest tokens: with c their mean row, Cov ⪯ Σ pᵢ(wᵢ−c)(wᵢ−c)ᵀ, so
  λ ≤ λ_max(top-K part) + Σ_{tail} pᵢ‖wᵢ−c‖²;
- tr Cov − Σ_{j≥2} θ_j, since the Ritz values θ_j lie below the eigenvalues of the same rank (Cauchy).

Both bounds hold up to the rounding of products in W's own type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quantvane.errors import DataError
from quantvane.fisher.output_map import OutputMap, row_stats
from quantvane.types import FloatArray

__all__ = ["HiddenLambda", "hidden_lambda", "hidden_lambda_torch"]

_BLOCK = 1 << 22  # rows · V in flight: a few float64 buffers of 32 MiB, or one row
Array = Any  # numpy array or torch tensor


@dataclass(frozen=True, slots=True)
class HiddenLambda:
    """λ_max in hidden space at N positions.

    Attributes:
        value: (N,) largest Ritz value, a lower bound. upper: (N,) upper bound.
        residual: (N,) ‖Fv − value·v‖ of the unit Ritz vector.
        steps: products with F.
    """

    value: FloatArray
    upper: FloatArray
    residual: FloatArray
    steps: int


def _check(steps: int, top: int) -> None:
    if steps < 1 or top < 1:
        raise DataError("hidden space needs steps and a bracket", expected="1 or more", got=f"{steps}, {top}")


def hidden_lambda(
    head: OutputMap,
    hidden: npt.NDArray[np.floating],
    rng: np.random.Generator,
    *,
    steps: int = 12,
    top: int = 64,
) -> HiddenLambda:
    """λ_max(Wᵀ S (diag p − ppᵀ) S W) of every position.

    Args:
        head: the output map; products are computed in its weight's type. hidden: (N, d) after the final norm.
        rng: draws the start vector. steps: products with F. top: K of the bracket.

    Raises:
        DataError: shapes that do not fit.
    """
    _check(steps, top)
    head.check(hidden)
    start = rng.standard_normal(hidden.shape[1])
    step = max(1, _BLOCK // len(head.weight))
    parts = []
    for at in range(0, len(hidden), step):
        states = hidden[at : at + step]
        stats = row_stats(head, states)
        z = head.logits(states)
        slope = np.broadcast_to(np.asarray(head.slope(z)), z.shape)
        p = np.exp(stats.logp(z))
        parts.append(_block(np, (p, slope, stats.best, stats.rest / (1 + stats.rest)), head.weight, start, steps, top))
    value, upper, residual = (np.concatenate([part[i] for part in parts]) for i in range(3))
    return HiddenLambda(value, upper, residual, min(steps, hidden.shape[1]))


def hidden_lambda_torch(
    weight: Any, logits: Any, *, slope: Any = None, seed: int = 0, steps: int = 12, top: int = 64
) -> HiddenLambda:
    """The same on torch tensors, on the device where they are.

    Args:
        weight: W (V, d). logits: (N, V), what the head makes of the states. slope: (N, V) or a number, the slope of
            scale and soft cap; 1 by default.
        seed, steps, top: as for `hidden_lambda`.
    """
    import torch

    _check(steps, top)
    if logits.ndim != 2 or weight.ndim != 2 or logits.shape[1] != weight.shape[0] or len(logits) == 0:
        raise DataError(
            "logits do not fit the head", expected="(N, V) and (V, d)", got=f"{logits.shape} and {weight.shape}"
        )
    start = torch.from_numpy(np.random.default_rng(seed).standard_normal(weight.shape[1])).to(weight.device)
    parts = []
    with torch.no_grad():
        for at in range(0, len(logits), step := max(1, _BLOCK // len(weight))):
            z = logits[at : at + step].double()
            best = z.argmax(-1)
            e = torch.exp(z - torch.amax(z, -1)[:, None])
            e = e.scatter(1, best[:, None], 0.0)
            rest = e.sum(-1)
            p = e.scatter(1, best[:, None], 1.0) / (1 + rest)[:, None]
            s = torch.ones_like(p) if slope is None else torch.as_tensor(slope).to(p)
            s = (s[at : at + step] if s.ndim == 2 else s).expand(p.shape)
            found = _block(torch, (p, s, best, rest / (1 + rest)), weight, start, steps, top)
            parts.append([x.cpu().numpy() for x in found])
    value, upper, residual = (np.concatenate([part[i] for part in parts]) for i in range(3))
    return HiddenLambda(value, upper, residual, min(steps, int(weight.shape[1])))


def _cast(xp: Any, x: Array, dtype: Any) -> Array:
    return x.astype(dtype, copy=False) if xp is np else x.to(dtype)


def _block(
    xp: Any, law: tuple[Array, Array, Array, Array], weight: Array, start: Array, steps: int, top: int
) -> tuple[Array, Array, Array]:
    """(value, upper, residual) of a block of rows; ``law`` is p, slope (R, V), argmax and 1 − p_max (R,)."""
    p, slope, best, rest = law
    unit = xp.where(rest > 0, rest, xp.ones_like(rest))[:, None]  # next to one-hot F is of this size
    wide = p.dtype
    pick = best[:, None]

    def gather(u: Array) -> Array:
        return np.take_along_axis(u, pick, 1) if xp is np else u.gather(1, pick)

    def product(v: Array) -> Array:
        u = slope * _cast(xp, _cast(xp, v, weight.dtype) @ weight.T, wide)
        u = u - gather(u)  # F does not see a shift; measured from the likeliest token nothing cancels
        t = slope * (p * (u - (p * u).sum(-1)[:, None])) / unit
        return _cast(xp, _cast(xp, t, weight.dtype) @ weight, wide)

    count = len(p)
    q = xp.stack([start / (start @ start) ** 0.5] * count)
    ritz, weights, beta = _lanczos(xp, product, q, steps)
    size = unit[:, 0]
    alive = rest > 0
    value = xp.where(alive, xp.where(ritz[:, -1] > 0, ritz[:, -1], 0 * size) * size, 0 * size)
    residual = xp.where(alive, abs(beta * weights) * size, 0 * size)
    norms = (_cast(xp, weight, wide) ** 2).sum(-1)
    bracket = _bracket(xp, law, weight, norms, top)
    # trace measured from the likeliest token's row, as above
    w0 = gather(slope) * _cast(xp, weight[best], wide)
    cross = _cast(xp, _cast(xp, w0, weight.dtype) @ weight.T, wide)
    far = slope * slope * norms - 2 * slope * cross + (w0 * w0).sum(-1)[:, None]
    far = xp.where(far > 0, far, xp.zeros_like(far))
    far = _zero_at(xp, far, pick)
    mean = _cast(xp, _cast(xp, p * slope / unit, weight.dtype) @ weight, wide) * unit - w0
    trace = (p * far).sum(-1) - (mean * mean).sum(-1)
    others = xp.where(ritz[:, :-1] > 0, ritz[:, :-1], 0 * ritz[:, :-1]).sum(-1) * size
    by_trace = trace - others
    upper = xp.where(by_trace < bracket, by_trace, bracket)
    return value, xp.where(upper > value, upper, value), residual


def _zero_at(xp: Any, x: Array, pick: Array) -> Array:
    if xp is not np:
        return x.scatter(1, pick, 0.0)
    np.put_along_axis(x, pick, 0.0, axis=1)
    return x


def _lanczos(xp: Any, product: Any, q: Array, steps: int) -> tuple[Array, Array, Array]:
    """Ritz values (R, m) ascending, last components of the top Ritz vectors (R,), last β (R,)."""
    steps = min(steps, int(q.shape[1]))
    basis, alpha, beta = [q], [], []
    for number in range(steps):
        w = product(basis[-1])
        alpha.append((basis[-1] * w).sum(-1))
        for _ in range(2):  # full reorthogonalisation, twice
            for old in basis:
                w = w - old * (old * w).sum(-1)[:, None]
        b = (w * w).sum(-1) ** 0.5
        # a row whose Krylov space is exhausted goes on with zeros, which add zero Ritz values
        b = xp.where(b > 1e-12 * abs(alpha[0]), b, 0 * b)
        beta.append(b)
        if number + 1 < steps:
            basis.append(w * xp.where(b > 0, 1 / xp.where(b > 0, b, b + 1), 0 * b)[:, None])
    tri = xp.stack([0 * q[:, :1]] * (steps * steps), -1).reshape(len(q), steps, steps)
    for i in range(steps):
        tri[:, i, i] = alpha[i]
        if i + 1 < steps:
            tri[:, i, i + 1] = tri[:, i + 1, i] = beta[i]
    values, vectors = xp.linalg.eigh(tri)
    return values, vectors[:, -1, -1], beta[-1]


def _bracket(xp: Any, law: tuple[Array, Array, Array, Array], weight: Array, norms: Array, top: int) -> Array:
    """λ_max of the K likeliest tokens' part around their mean, plus the trace of the rest around it."""
    p, slope, _, _ = law
    size = int(p.shape[1])
    top = min(top, size)
    if xp is np:
        ids = np.argpartition(-p, top - 1, axis=1)[:, :top]
        mass, tilt = np.take_along_axis(p, ids, 1), np.take_along_axis(slope, ids, 1)
    else:
        mass, ids = p.topk(top, dim=1)
        tilt = slope.gather(1, ids)
    held = tilt[:, :, None] * _cast(xp, weight[ids], p.dtype)  # (R, K, d)
    centre = (mass[:, :, None] * held).sum(1) / mass.sum(-1)[:, None]
    spread = (held - centre[:, None, :]) * (mass**0.5)[:, :, None]
    other = spread.swapaxes(1, 2)
    inner = spread @ other if top <= spread.shape[2] else other @ spread
    known = xp.linalg.eigvalsh(inner)[:, -1]
    cross = _cast(xp, _cast(xp, centre, weight.dtype) @ weight.T, p.dtype)
    far = slope * slope * norms - 2 * slope * cross + (centre * centre).sum(-1)[:, None]
    far = xp.where(far > 0, far, xp.zeros_like(far))
    far = _zero_at(xp, far, ids)
    return xp.where(known > 0, known, 0 * known) + (p * far).sum(-1)
