"""Triton: from the sums of a row's parts to its metrics, λ_max and its top entries (one kernel, its helpers)."""

# mypy: disable-error-code="misc, no-untyped-def, no-untyped-call, untyped-decorator, no-any-return"
from __future__ import annotations

import triton
import triton.language as tl

from quantvane.displacement.ops._triton_span import LOG2E

__all__ = ["FINISH_FIELDS", "finish_kernel"]

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

    With moments R_k = Σ p^k the series is R1/λ + R2/λ² + Σ p³/(λ²(λ−p)). Its last term is a mean of the convex
    1/(λ−p) under weights p³: Jensen bounds it below by the value at the mean x̄ = R4/R3 and, given that no entry
    exceeds P = R4^¼, above by the chord over [0, P]. Where the fourth powers have underflowed the same is done one
    order of two lower, with weights p, x̄ = R2/R1 and P = min(R1, √R2).
    """
    tiny = 1.0e-100
    high = r4 > 1.0e-27
    weight = tl.where(high, r3 / (lam * lam), r1)
    mean = tl.where(high, r4 / tl.maximum(r3, tiny), r2 / tl.maximum(r1, tiny))
    most = tl.where(high, tl.sqrt(tl.sqrt(r4)), tl.where(r2 > 1.0e-27, tl.minimum(r1, tl.sqrt(r2)), r1))
    gap = tl.maximum(lam - mean, lam * 1e-9)
    tail = weight / gap
    head = tl.where(high, r1 / lam + r2 / (lam * lam), 0.0)
    slope = -tail / gap - tl.where(high, 2.0 * tail / lam + r1 / (lam * lam) + 2.0 * r2 / (lam * lam * lam), 0.0)
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
    p2 = tl.max(p, axis=0).to(tl.float64)
    r1 = r1 * inv
    r2 = r2 * inv * inv
    r3 = r3 * inv * inv * inv
    r4 = r4 * inv * inv * inv * inv
    s = tl.sum(p.to(tl.float64), axis=0) + r1
    r = tl.maximum(s - p2, 0.0)
    b = 2.0 * p1 * p2 + r * (p1 + p2)
    lam = 0.5 * (b + tl.sqrt(tl.maximum(b * b - 4.0 * p1 * p2 * r, 0.0)))
    lam = tl.minimum(tl.maximum(lam, tl.maximum(p2, 1e-37)), p1)
    width = lam * 0.0
    inside = lam > 0.0
    for _ in range(6):
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
    lam = tl.where(s <= 0.0, 0.0, tl.where(tied, p1, lam))
    certain = (s <= 0.0) | tied | ((s > 1e-30) & inside & (width < _CERTAIN))
    return lam, certain


@triton.jit
def _select(held, ids, logits, V, span, LANES: tl.constexpr, ROUNDS: tl.constexpr, K: tl.constexpr,
            KC: tl.constexpr):  # fmt: skip
    """(columns of the K largest logits, enough): only lanes whose held value reaches the K-th largest are reread.

    Every one of the K largest entries lies in such a lane. Up to KC lanes are reread; ``enough`` is false where
    ties would need more.
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
def _side_sums(sums, PARTS: tl.constexpr, n_parts, j):
    part = tl.arange(0, PARTS)
    return tl.sum(tl.load(sums + part * 12 + j, mask=part < n_parts, other=0.0), axis=0)


@triton.jit
def finish_kernel(
    sums, held, shifts, observed, tops, top_cols, ref, cand, out, out_int, flags,
    stride_ref, stride_cand, V, T, span, n_parts,
    LANES: tl.constexpr, HELD: tl.constexpr, PARTS: tl.constexpr, ROUNDS: tl.constexpr,
    K: tl.constexpr, KC: tl.constexpr, TRACK: tl.constexpr, PRECISE: tl.constexpr,
):  # fmt: skip
    """One program per row: writes out (11, T) float64 (FINISH_FIELDS, then the normalisers' offset), out_int (3, T) int32 (both
    argmaxes, number of entries shared by the two top-K sets) and flags (T,) int32, 1 where the row must be
    recomputed exactly (not finite, λ not certified, or more ties than fit).
    """
    row = tl.program_id(0)
    at = row.to(tl.int64)
    ids = tl.arange(0, HELD)
    base = held + at * n_parts * LANES
    side = T.to(tl.int64) * n_parts * LANES
    present = ids < n_parts * LANES
    va = tl.load(base + ids, mask=present, other=0.0)
    vb = tl.load(base + side + ids, mask=present, other=0.0)
    mine = sums + at * n_parts * 12
    a1 = _side_sums(mine, PARTS, n_parts, 0)
    a2 = _side_sums(mine, PARTS, n_parts, 1)
    a3 = _side_sums(mine, PARTS, n_parts, 2)
    a4 = _side_sums(mine, PARTS, n_parts, 3)
    ta = _side_sums(mine, PARTS, n_parts, 4)
    b1 = _side_sums(mine, PARTS, n_parts, 5)
    b2 = _side_sums(mine, PARTS, n_parts, 6)
    b3 = _side_sums(mine, PARTS, n_parts, 7)
    b4 = _side_sums(mine, PARTS, n_parts, 8)
    tb = _side_sums(mine, PARTS, n_parts, 9)
    su = _side_sums(mine, PARTS, n_parts, 10)
    za = a1 + tl.sum(va.to(tl.float64), axis=0)
    zb = b1 + tl.sum(vb.to(tl.float64), axis=0)
    top_a32, lane_a = tl.max(va, axis=0, return_indices=True)
    top_b32, lane_b = tl.max(vb, axis=0, return_indices=True)
    top_a = top_a32.to(tl.float64)
    top_b = top_b32.to(tl.float64)
    unit = 1.0 / tl.full((), _LOG2E, tl.float64)
    c2a = tl.load(shifts + row).to(tl.float64)
    c2b = c2a + tl.load(shifts + T + row).to(tl.float64)
    ln_za = tl.log(za)
    ln_zb = tl.log(zb)
    mean_u = su / za
    if PRECISE:
        phi = _side_sums(mine, PARTS, n_parts, 11) / za
        w = mean_u + phi
        kld = tl.where(w > -0.5, phi + (tl.log(1.0 + tl.maximum(w, -0.5)) - w), ln_zb - ln_za - mean_u)
    else:
        kld = (ln_zb - ln_za) - mean_u
    infinite = kld > 1.0e9  # only a candidate's −inf where the reference has mass gets there
    kld = tl.where(infinite, float("inf"), kld)
    ay = tl.load(observed + row).to(tl.float64)
    by = tl.load(observed + T + row).to(tl.float64)
    ln2 = 0.6931471805599453
    # The kernel's softmax is in base 2 with float32(log2 e); its normaliser in nats divides by that same number.
    nll_a = (c2a + ln_za / ln2) * unit - ay
    nll_b = (c2b + ln_zb / ln2) * unit - by
    lam_a, sure_a = _lambda_max(va, ids, top_a, lane_a, a1, a2, a3, a4, za)
    lam_b, sure_b = _lambda_max(vb, ids, top_b, lane_b, b1, b2, b3, b4, zb)
    tl.store(out + row, kld)
    tl.store(out + T + row, nll_a)
    tl.store(out + 2 * T + row, nll_b)
    tl.store(out + 3 * T + row, tl.exp(-nll_b) - tl.exp(-nll_a))
    tl.store(out + 4 * T + row, (ln_za / ln2 - ta / za) * unit)
    tl.store(out + 5 * T + row, (ln_zb / ln2 - tb / zb) * unit)
    tl.store(out + 6 * T + row, top_a / za)
    tl.store(out + 7 * T + row, top_b / zb)
    tl.store(out + 8 * T + row, lam_a)
    tl.store(out + 9 * T + row, lam_b)
    # ln Σe^cand − ln Σe^ref, for a second read
    tl.store(out + 10 * T + row, (ln_zb - ln_za + (c2b - c2a) * ln2) * unit / ln2)
    enough = sure_a & sure_b
    if TRACK:
        part = tl.arange(0, PARTS)
        real = part < n_parts
        half = T.to(tl.int64) * n_parts
        spot = at * n_parts + part
        xa = tl.load(tops + spot, mask=real, other=float("-inf"))
        xb = tl.load(tops + half + spot, mask=real, other=float("-inf"))
        ca = tl.load(top_cols + spot, mask=real, other=2147483647)
        cb = tl.load(top_cols + half + spot, mask=real, other=2147483647)
        tl.store(out_int + row, tl.min(tl.where(xa == tl.max(xa, axis=0), ca, 2147483647), axis=0))
        tl.store(out_int + T + row, tl.min(tl.where(xb == tl.max(xb, axis=0), cb, 2147483647), axis=0))
    else:
        best_a, enough_a = _select(va, ids, ref + at * stride_ref, V, span, LANES, ROUNDS, K, KC)
        best_b, enough_b = _select(vb, ids, cand + at * stride_cand, V, span, LANES, ROUNDS, K, KC)
        enough = enough & enough_a & enough_b
        slot = tl.arange(0, KC)
        tl.store(out_int + row, tl.sum(tl.where(slot == 0, best_a, 0), axis=0))
        tl.store(out_int + T + row, tl.sum(tl.where(slot == 0, best_b, 0), axis=0))
        shared = (best_a[:, None] == best_b[None, :]) & (best_a >= 0)[:, None]
        tl.store(out_int + 2 * T + row, tl.sum(tl.sum(shared.to(tl.int32), axis=1), axis=0))
    sane = (za > 1e-30) & (zb > 1e-30) & (za < 1e37) & (zb < 1e37) & (tl.abs(mean_u) >= 0) & (kld >= -1.0)
    sane = sane & (tl.abs(ta / za) < 1e6) & (tl.abs(tb / zb) < 1e6)
    tl.store(flags + row, tl.where(sane & enough, 0, 1))
