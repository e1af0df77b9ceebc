"""Triton: a second read of two logit rows, for what needs both normalisers first (one kernel).

With y = ½(ln q − ln p) and g = √(pq), every summand is g times an entire function of y, so none is a
difference of nearly equal numbers when the two distributions are close::

    q − p       = 2g sinh y           tv        = Σ |g sinh y|
    (p + q)/2   = g cosh y            hellinger = √Σ g(cosh y − 1)
    (q − p)·ln(q/p) = 4g·y sinh y     kld, kld_rev = ½J ∓ C,  J = Σ 4g·y sinh y,  C = Σ 2g(y cosh y − sinh y)
    jsd         = Σ g(y sinh y − cosh y·ln cosh y)

Short series for small |y|, differences of the two exponentials for large. fisher_rao =
4·arcsin(hellinger/√2), the same angle as 2·arccos Σ√(pq) without its cancellation.
"""

# mypy: disable-error-code="misc, no-untyped-def, no-untyped-call, untyped-decorator, no-any-return"
from __future__ import annotations

import os

import triton
import triton.language as tl
from triton.language.extra import libdevice

from quantvane.displacement.ops._triton_span import LOG2E, finite_floor

__all__ = ["N_PAIR", "pair_kernel"]

N_PAIR = 6
_LOG2E = tl.constexpr(LOG2E)
_HALF = tl.constexpr(0.5 * LOG2E)
_NEAR = tl.constexpr(0.35)
_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0") == "1")
_LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _log2(x):
    """lg2.approx on the device; the interpreter has no device library."""
    if _INTERPRETED:
        return tl.log2(x)
    return libdevice.fast_log2f(x)


@triton.jit
def _terms(a, b, ca, cb, cb_low, half_delta):
    """Unnormalised summands (mass, tv, h², ½J, C, jsd) of one block; ca, cb + cb_low are half shifts in
    base 2, plus ½."""
    xa = a * _HALF - ca
    xb = (b * _HALF - cb) - cb_low
    ra = tl.exp2(xa)  # √(p/2), √(q/2) up to one common factor
    rb = tl.exp2(xb)
    y = (b - a) * 0.5 - half_delta
    z = y * y
    near = z < _NEAR * _NEAR
    p = ra * ra
    mid = rb * rb + p
    apart = rb - ra
    apart = apart * apart
    g = mid - apart
    sinh_rest = 1.0 / 6 + z * (1.0 / 120 + z * (1.0 / 5040))  # (sinh y / y − 1)/z
    cosh_rest = 0.5 + z * (1.0 / 24 + z * (1.0 / 720))  # (cosh y − 1)/z
    gy = g * y
    gz = g * z
    sinh = tl.where(near, gy * (z * sinh_rest + 1.0), mid - 2.0 * p)
    cosh_less = tl.where(near, gz * cosh_rest, apart)
    skew = tl.where(near, gz * y * (cosh_rest - sinh_rest), y * mid - sinh)
    half_j = y * sinh
    # y sinh y − cosh y·ln cosh y = z/2 + z³/144 − z⁴/720 + …: its z² term vanishes
    log_cosh = _log2(mid + 1e-37) - (xa + xb + 1.0)
    jsd = tl.where(near, gz * (0.5 + z * z * (1.0 / 144)), half_j - (mid * _LN2) * log_cosh)
    return mid, tl.abs(sinh), cosh_less, half_j, skew, jsd


@triton.jit
def pair_kernel(
    ref, cand, shifts, offset, tops, out, ranks, flags,
    stride_ref, stride_cand, V, T,
    THREADS: tl.constexpr, VEC: tl.constexpr, INNER: tl.constexpr, CLAMP: tl.constexpr,
):  # fmt: skip
    """One program per row: out (6, T) float64 in the order kld, kld_rev, jsd, tv, hellinger, hellinger².

    Reads the shifts (2, T) and offset (T,) float64, the first read's ln Σe^cand − ln Σe^ref; tops (3, T)
    int32 gives the reference's argmax, whose rank among the candidate's logits goes to ranks (T,). A row
    with an infinite divergence is flagged for exact recomputation.
    """
    row = tl.program_id(0)
    at = row.to(tl.int64)
    pa = ref + at * stride_ref
    pb = cand + at * stride_cand
    LANES: tl.constexpr = THREADS * VEC
    c2a = tl.load(shifts + row)
    delta = tl.load(offset + row)
    ca = 0.5 * c2a + 0.5
    cb64 = 0.5 * (c2a.to(tl.float64) + delta * _LOG2E) + 0.5
    cb = cb64.to(tl.float32)
    cb_low = (cb64 - cb.to(tl.float64)).to(tl.float32)
    half_delta = (0.5 * delta).to(tl.float32)
    target = tl.load(tops + row)
    level = finite_floor(tl.load(pb + target, mask=(target >= 0) & (target < V), other=0.0).to(tl.float32))
    bits = level.to(tl.int32, bitcast=True)
    bits = tl.where(level == 0.0, -2147483647, tl.where(level > 0.0, bits - 1, bits + 1))
    below = bits.to(tl.float32, bitcast=True)  # the next smaller float32
    lane = tl.arange(0, THREADS)[:, None] * VEC + tl.arange(0, VEC)[None, :]
    zero = tl.zeros((THREADS,), tl.float32)
    wide = tl.zeros((THREADS,), tl.float64)
    d0, d1, d2, d3, d4, d5 = wide, wide, wide, wide, wide, wide
    above = zero  # a count below 2²⁴: exact in float32
    full = V // (LANES * INNER)
    n_blocks = (V + LANES - 1) // LANES
    for outer in range(0, full):
        f0, f1, f2, f3, f4, f5 = zero, zero, zero, zero, zero, zero
        for inner in tl.static_range(INNER):
            start = (outer * INNER + inner) * LANES
            cols = start + lane
            a = tl.load(pa + cols, eviction_policy="evict_first").to(tl.float32)
            b = tl.load(pb + cols, eviction_policy="evict_first").to(tl.float32)
            if CLAMP:
                a = finite_floor(a)
                b = finite_floor(b)
            t0, t1, t2, t3, t4, t5 = _terms(a, b, ca, cb, cb_low, half_delta)
            f0 += tl.sum(t0, axis=1)
            f1 += tl.sum(t1, axis=1)
            f2 += tl.sum(t2, axis=1)
            f3 += tl.sum(t3, axis=1)
            f4 += tl.sum(t4, axis=1)
            f5 += tl.sum(t5, axis=1)
            # Wholly before the target's column an equal logit ranks ahead of it too.
            above += tl.sum(tl.where(b > tl.where(start + LANES <= target, below, level), 1.0, 0.0), axis=1)
        d0, d1, d2, d3, d4, d5 = d0 + f0, d1 + f1, d2 + f2, d3 + f3, d4 + f4, d5 + f5
    f0, f1, f2, f3, f4, f5 = zero, zero, zero, zero, zero, zero
    for block in range(full * INNER, n_blocks):
        start = block * LANES
        cols = start + lane
        ok = cols < V
        a = finite_floor(tl.load(pa + cols, mask=ok, other=float("-inf")).to(tl.float32))
        b = finite_floor(tl.load(pb + cols, mask=ok, other=float("-inf")).to(tl.float32))
        t0, t1, t2, t3, t4, t5 = _terms(a, b, ca, cb, cb_low, half_delta)
        f0 += tl.sum(t0, axis=1)
        f1 += tl.sum(t1, axis=1)
        f2 += tl.sum(t2, axis=1)
        f3 += tl.sum(t3, axis=1)
        f4 += tl.sum(t4, axis=1)
        f5 += tl.sum(t5, axis=1)
        bar = tl.where(start + LANES <= target, below, level)
        above += tl.sum(tl.where((b > bar) & ok, 1.0, 0.0), axis=1)
    cols = (target // LANES) * LANES + lane
    b = finite_floor(tl.load(pb + cols, mask=cols < target, other=float("-inf")).to(tl.float32))
    above += tl.sum(tl.where((b == level) & (cols < target), 1.0, 0.0), axis=1)
    inv = 1.0 / tl.sum(d0 + f0, axis=0)
    tv = tl.sum(d1 + f1, axis=0) * inv
    h2 = tl.sum(d2 + f2, axis=0) * inv
    half_j = 2.0 * tl.sum(d3 + f3, axis=0) * inv
    skew = 2.0 * tl.sum(d4 + f4, axis=0) * inv
    jsd = tl.sum(d5 + f5, axis=0) * inv
    h2 = tl.minimum(tl.maximum(h2, 0.0), 1.0)
    tl.store(out + row, half_j - skew)
    tl.store(out + T + row, half_j + skew)
    tl.store(out + 2 * T + row, jsd)
    tl.store(out + 3 * T + row, tv)
    tl.store(out + 4 * T + row, tl.sqrt(h2))
    tl.store(out + 5 * T + row, h2)
    tl.store(ranks + row, tl.sum(above, axis=0).to(tl.int32))
    if not (half_j < 1e6):
        tl.store(flags + row, 1)
