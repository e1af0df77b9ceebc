"""Triton: from the sums of a row's parts to its metrics, λ_max and its top entries (two kernels)."""

# mypy: disable-error-code="misc, no-untyped-def, no-untyped-call, untyped-decorator, no-any-return"
from __future__ import annotations

import triton
import triton.language as tl

from quantvane.displacement.ops._triton_span import LOG2E

__all__ = ["FINISH_FIELDS", "combine_kernel", "finish_kernel"]

_LOG2E = tl.constexpr(LOG2E)
_CERTAIN = tl.constexpr(3e-7)  # relative half-width of λ above which a row is recomputed exactly
_NEAR = tl.constexpr(0.999996)  # exponentials this close may come from logits in either order
FINISH_FIELDS = (
    "kld", "nll_ref", "nll_cand", "delta_p", "entropy_ref", "entropy_cand",
    "pmax_ref", "pmax_cand", "lambda_ref", "lambda_cand",
)  # fmt: skip


@triton.jit
def _rest_terms(lam, r1, r2, r3, r4):
    """Lower value of Σ p/(λ−p) over the rest, its derivative, and how much larger the true sum can be.

    With moments R_k = Σ p^k the series is R1/λ + R2/λ² + Σ p³/(λ²(λ−p)). Its last term is a mean of the
    convex 1/(λ−p) under weights p³: Jensen bounds it below by the value at the mean x̄ = R4/R3 and, given
    that no entry exceeds P = R4^¼, above by the chord over [0, P]. Where the fourth powers have underflowed
    the same is done one order of two lower, with weights p, x̄ = R2/R1 and P = min(R1, √R2).
    """
    tiny = 1.0e-100
    high = r4 > 1.0e-27
    weight = tl.where(high, r3 / (lam * lam), r1)
    mean = tl.where(high, r4 / tl.maximum(r3, tiny), r2 / tl.maximum(r1, tiny))
    most = tl.where(high, tl.sqrt(tl.sqrt(r4)), tl.where(r2 > 1.0e-27, tl.minimum(r1, tl.sqrt(r2)), r1))
    mean = tl.minimum(mean, most)  # always so in exact arithmetic
    gap = tl.maximum(lam - mean, lam * 1e-9)
    tail = weight / gap
    head = tl.where(high, r1 / lam + r2 / (lam * lam), 0.0)
    slope = -tail / gap - tl.where(
        high, 2.0 * tail / lam + r1 / (lam * lam) + 2.0 * r2 / (lam * lam * lam), 0.0
    )
    share = mean / tl.maximum(most, tiny)
    chord = weight * ((1.0 - share) / lam + share / tl.maximum(lam - most, lam * 1e-9))
    spread = tl.where(r1 > 0, tl.maximum(chord - tail, 0.0), 0.0)
    return head + tail, slope, spread, (r1 <= 0) | (most < lam)


@triton.jit
def _lambda_max(held, ids, top, first, r1, r2, r3, r4, z):
    """(λ_max, certified) of diag(p) − ppᵀ from the held-back exponentials and the moments of the rest.

    Newton on 1/ψ(λ) − 1 + λ/p₁ from the lower bound of p₁, p₂ and the tail's mass: it rises monotonically.
    """
    inv = 1.0 / z
    p = tl.where(ids == first, 0.0, held * inv.to(tl.float32))
    p1 = top * inv
    r1 = r1 * inv
    r2 = r2 * inv * inv
    r3 = r3 * inv * inv * inv
    r4 = r4 * inv * inv * inv * inv
    # The second largest entry is one of the rest where it shares the largest one's lane. Then R4 ≥ p₂⁴, and
    # R4/R3 is close to it from below; otherwise R4 may be rounding noise.
    p2 = tl.max(p, axis=0).to(tl.float64)
    from_rest = tl.minimum(tl.minimum(r4 / tl.maximum(r3, 1.0e-100), tl.sqrt(tl.sqrt(r4))), p1)
    p2 = tl.where((r4 > 1.0e-27) & (r4 >= p2 * p2 * p2 * p2), tl.maximum(p2, from_rest), p2)
    s = tl.sum(p.to(tl.float64), axis=0) + r1
    r = tl.maximum(s - p2, 0.0)
    b = 2.0 * p1 * p2 + r * (p1 + p2)
    lam = 0.5 * (b + tl.sqrt(tl.maximum(b * b - 4.0 * p1 * p2 * r, 0.0)))
    lam = tl.minimum(tl.maximum(lam, tl.maximum(p2, 1e-37)), p1)
    width = lam * 0.0
    inside = lam < 0.0
    for _ in range(5):
        at = lam.to(tl.float32)
        gap = tl.maximum(at - p, at * 1.2e-7)
        q = p / gap
        rest, rest_slope, spread, inside = _rest_terms(lam, r1, r2, r3, r4)
        psi = tl.sum(q.to(tl.float64), axis=0) + rest
        slope = -tl.sum((q / gap).to(tl.float64), axis=0) + rest_slope
        psi = tl.maximum(psi, 1e-30)
        rise = 1.0 / p1 - slope / (psi * psi)
        width = spread / (psi * psi * rise * lam)
        lam = tl.minimum(tl.maximum(lam - (1.0 / psi - 1.0 + lam / p1) / rise, p2), p1)
    tied = p2 >= p1 * 0.9999999
    lam = tl.where(tied, p1, lam)
    certain = (s > 1e-20) & (tied | (inside & (width < _CERTAIN)))  # below, float32 exponentials underflow
    return lam, certain


@triton.jit
def _select(held, ids, logits, V, span, LANES: tl.constexpr, ROUNDS: tl.constexpr, K: tl.constexpr,
            KC: tl.constexpr):  # fmt: skip
    """(columns of the K largest logits, enough): only lanes whose held value reaches the K-th largest are
    reread.

    Every one of the K largest entries lies in such a lane. Up to KC lanes are reread; ``enough`` is false
    where ties would need more.
    """
    slot = tl.arange(0, KC)
    lanes = tl.zeros((KC,), tl.int32)
    reach = tl.max(held, axis=0)
    left = held
    for i in range(KC):
        value, lane = tl.max(left, axis=0, return_indices=True)
        lanes = tl.where(slot == i, lane, lanes)
        reach = tl.where(i == K - 1, value * _NEAR, reach)
        left = tl.where(ids == lane, -1.0, left)
    enough = (tl.max(left, axis=0) < reach) & (reach > 0)
    part = lanes // LANES
    low = part * span
    high = tl.minimum(low + span, V)
    cols = (low + lanes % LANES)[:, None] + tl.arange(0, ROUNDS)[None, :] * LANES
    fits = cols < high[:, None]
    x = tl.load(logits + cols, mask=fits, other=float("-inf")).to(tl.float32)
    chosen = tl.full((KC,), -1, tl.int32)
    for i in range(K):
        best = tl.max(tl.max(x, axis=1), axis=0)
        col = tl.where((x == best) & fits, cols, 2147483647)
        first = tl.min(tl.min(col, axis=1), axis=0)
        chosen = tl.where(slot == i, first, chosen)
        x = tl.where(cols == first, float("-inf"), x)
    return chosen, enough


@triton.jit
def _total(sums, PARTS: tl.constexpr, n_parts, j):
    part = tl.arange(0, PARTS)
    return tl.sum(tl.load(sums + part * 12 + j, mask=part < n_parts, other=0.0), axis=0)


@triton.jit
def finish_kernel(
    sums, held, tops, top_cols, ref, cand, sides, chosen, flags,
    stride_ref, stride_cand, V, T, span, n_parts,
    LANES: tl.constexpr, HELD: tl.constexpr, PARTS: tl.constexpr, ROUNDS: tl.constexpr,
    K: tl.constexpr, KC: tl.constexpr, TRACK: tl.constexpr,
):  # fmt: skip
    """One program per (row, side), side 0 the reference and 1 the candidate.

    Writes sides (2, 4, T) float64: Z, p_max, λ_max, Σ E·log₂E; chosen (2, T, KC) int32: the columns of the K
    largest logits, then −1; flags (2, T) int32: 1 where the side must be recomputed exactly (λ not certified,
    more ties than fit, or not finite).
    """
    row = tl.program_id(0)
    side = tl.program_id(1)
    at = row.to(tl.int64)
    other = side.to(tl.int64) * T
    ids = tl.arange(0, HELD)
    v = tl.load(held + (other + at) * n_parts * LANES + ids, mask=ids < n_parts * LANES, other=0.0)
    mine = sums + at * n_parts * 12 + side * 5
    r1 = _total(mine, PARTS, n_parts, 0)
    r2 = _total(mine, PARTS, n_parts, 1)
    r3 = _total(mine, PARTS, n_parts, 2)
    r4 = _total(mine, PARTS, n_parts, 3)
    t = _total(mine, PARTS, n_parts, 4)
    z = r1 + tl.sum(v.to(tl.float64), axis=0)
    top32, lane = tl.max(v, axis=0, return_indices=True)
    top = top32.to(tl.float64)
    lam, sure = _lambda_max(v, ids, top, lane, r1, r2, r3, r4, z)
    out = sides + side * 4 * T + row
    tl.store(out, z)
    tl.store(out + T, top / z)
    tl.store(out + 2 * T, lam)
    tl.store(out + 3 * T, t)
    slot = tl.arange(0, KC)
    if TRACK:
        part = tl.arange(0, PARTS)
        real = part < n_parts
        spot = (other + at) * n_parts + part
        x = tl.load(tops + spot, mask=real, other=float("-inf"))
        col = tl.load(top_cols + spot, mask=real, other=2147483647)
        first = tl.min(tl.where(x == tl.max(x, axis=0), col, 2147483647), axis=0)
        best = tl.where(slot == 0, first, -1)
    else:
        if side == 0:  # noqa: SIM108
            logits = ref + at * stride_ref
        else:
            logits = cand + at * stride_cand
        best, enough = _select(v, ids, logits, V, span, LANES, ROUNDS, K, KC)
        sure = sure & enough
    tl.store(chosen + (other + at) * KC + slot, best)
    sane = (z > 1e-30) & (z < 1e37) & (tl.abs(t / z) < 1e6)
    tl.store(flags + other + row, tl.where(sane & sure, 0, 1))


@triton.jit
def combine_kernel(
    sums, sides, chosen, shifts, observed, side_flags, out, out_int, flags, T, n_parts,
    ROWS: tl.constexpr, PARTS: tl.constexpr, KC: tl.constexpr, PRECISE: tl.constexpr,
):  # fmt: skip
    """ROWS rows per program: out (11, T) float64 (FINISH_FIELDS, then the normalisers' offset), out_int (3,
    T) int32 (both argmaxes, number of entries shared by the two top-K sets), flags (T,) int32.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    ok = row < T
    at = row.to(tl.int64)
    part = tl.arange(0, PARTS)
    spot = (at[:, None] * n_parts + part[None, :]) * 12
    real = ok[:, None] & (part < n_parts)[None, :]
    su = tl.sum(tl.load(sums + spot + 10, mask=real, other=0.0), axis=1)
    za = tl.load(sides + row, mask=ok, other=1.0)
    pa = tl.load(sides + T + row, mask=ok, other=1.0)
    la = tl.load(sides + 2 * T + row, mask=ok, other=0.0)
    ta = tl.load(sides + 3 * T + row, mask=ok, other=0.0)
    zb = tl.load(sides + 4 * T + row, mask=ok, other=1.0)
    pb = tl.load(sides + 5 * T + row, mask=ok, other=1.0)
    lb = tl.load(sides + 6 * T + row, mask=ok, other=0.0)
    tb = tl.load(sides + 7 * T + row, mask=ok, other=0.0)
    c2a = tl.load(shifts + row, mask=ok, other=0.0).to(tl.float64)
    d2 = tl.load(shifts + T + row, mask=ok, other=0.0).to(tl.float64)
    ay = tl.load(observed + row, mask=ok, other=0.0).to(tl.float64)
    by = tl.load(observed + T + row, mask=ok, other=0.0).to(tl.float64)
    # The kernels' softmax is in base 2 with float32(log2 e); what is in bits is divided by that same number.
    ln2 = 0.6931471805599453
    unit = 1.0 / tl.full((), _LOG2E, tl.float64)
    ln_za = tl.log(za)
    ln_zb = tl.log(zb)
    offset = ((ln_zb - ln_za) / ln2 + d2) * unit
    mean_u = su / za
    if PRECISE:
        phi = tl.sum(tl.load(sums + spot + 11, mask=real, other=0.0), axis=1) / za
        w = mean_u + phi
        near = tl.abs(w) < 0.5
        kld = tl.where(near, phi + (tl.log(1.0 + tl.where(near, w, 0.0)) - w), ln_zb - ln_za - mean_u)
    else:
        kld = offset - mean_u
    bad = tl.load(side_flags + row, mask=ok, other=0) + tl.load(side_flags + T + row, mask=ok, other=0)
    bad = tl.where((kld > -1.0) & (kld < 1.0e6), bad, 1)  # an infinite divergence is left to the exact path
    nll_a = (c2a + ln_za / ln2) * unit - ay
    nll_b = (c2a + d2 + ln_zb / ln2) * unit - by
    tl.store(out + row, kld, mask=ok)
    tl.store(out + T + row, nll_a, mask=ok)
    tl.store(out + 2 * T + row, nll_b, mask=ok)
    tl.store(out + 3 * T + row, tl.exp(-nll_b) - tl.exp(-nll_a), mask=ok)
    tl.store(out + 4 * T + row, (ln_za / ln2 - ta / za) * unit, mask=ok)
    tl.store(out + 5 * T + row, (ln_zb / ln2 - tb / zb) * unit, mask=ok)
    tl.store(out + 6 * T + row, pa, mask=ok)
    tl.store(out + 7 * T + row, pb, mask=ok)
    tl.store(out + 8 * T + row, la, mask=ok)
    tl.store(out + 9 * T + row, lb, mask=ok)
    tl.store(out + 10 * T + row, offset, mask=ok)
    slot = tl.arange(0, KC)
    list_a = tl.load(chosen + at[:, None] * KC + slot[None, :], mask=ok[:, None], other=-1)
    list_b = tl.load(chosen + (at + T)[:, None] * KC + slot[None, :], mask=ok[:, None], other=-1)
    tl.store(out_int + row, tl.sum(tl.where(slot[None, :] == 0, list_a, 0), axis=1), mask=ok)
    tl.store(out_int + T + row, tl.sum(tl.where(slot[None, :] == 0, list_b, 0), axis=1), mask=ok)
    shared = (list_a[:, :, None] == list_b[:, None, :]) & (list_a >= 0)[:, :, None]
    tl.store(out_int + 2 * T + row, tl.sum(tl.sum(shared.to(tl.int32), axis=2), axis=1), mask=ok)
    tl.store(flags + row, tl.where(bad > 0, 1, 0), mask=ok)
