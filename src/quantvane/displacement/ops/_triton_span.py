"""Triton: one read of a span of two logit rows, kept as cell maxima and a handful of sums.

Columns are read in *groups* of INNER blocks of THREADS·VEC. The columns that one thread sees in one group
form a *cell*: ``lo + ((group·INNER + j)·THREADS + thread)·VEC + v`` over j and v. Of every cell the largest
exponential is kept apart; all other entries form "the rest", of which only Σe, Σe², Σe³ are kept. The rest is
summed as it falls out of the running maximum (its smaller partner is what is added), so the largest entry
never enters a sum and nothing has to be subtracted from one.

Exponents are in base 2 relative to a *fixed* shift per row, guessed from the first columns and the observed
token: no running maximum across threads, so no communication inside the loop. A −inf, a NaN or a guess that
is too far off makes the sums inf or NaN; such rows are computed again by ``_triton_exact``.
"""

# mypy: disable-error-code="misc, no-untyped-def, no-untyped-call, untyped-decorator, no-any-return"
from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["LOG2E", "N_MOMENTS", "N_TOTALS", "finite_floor", "shift_kernel", "span_kernel"]

LOG2E = 1.4426950216293335  # float32(log2 e): every conversion back divides by this very number
N_MOMENTS = 3
N_TOTALS = 3
_LOG2E = tl.constexpr(LOG2E)
_FLOOR = tl.constexpr(-1.0e30)  # stands for −inf: exp2 of it is 0, and 0·floor is 0 where 0·inf is NaN


@triton.jit
def finite_floor(x):
    """−inf becomes a large negative number; NaN stays NaN."""
    return tl.maximum(x, _FLOOR, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _on_grid(x):
    """x in base 2, to a multiple of 2⁻¹⁰: the difference of two shifts is then exact in float32."""
    return tl.floor(x * _LOG2E * 1024.0 + 0.5) / 1024.0


@triton.jit
def shift_kernel(ref, cand, observed, shifts, stride_ref, stride_cand, V, T, SAMPLE: tl.constexpr):
    """shifts (2, T) float32: the largest of the first columns and the guess ``observed`` (2, T), on the grid."""
    row = tl.program_id(0)
    cols = tl.arange(0, SAMPLE)
    at = row.to(tl.int64)
    a = tl.load(ref + at * stride_ref + cols, mask=cols < V, other=float("-inf")).to(tl.float32)
    b = tl.load(cand + at * stride_cand + cols, mask=cols < V, other=float("-inf")).to(tl.float32)
    ay = tl.load(observed + row).to(tl.float32)
    by = tl.load(observed + T + row).to(tl.float32)
    tl.store(shifts + row, _on_grid(finite_floor(tl.maximum(tl.max(a, axis=0), ay))))
    tl.store(shifts + T + row, _on_grid(finite_floor(tl.maximum(tl.max(b, axis=0), by))))


@triton.jit
def _absorb(e, most, s1, s2, s3):
    """Let e meet the running maximum: the smaller of the two joins the sums."""
    less = tl.minimum(most, e)
    square = less * less
    return tl.maximum(most, e), s1 + less, s2 + square, s3 + square * less


@triton.jit
def _block(a, b, ca, cb, ma, a1, a2, a3, ta, mb, b1, b2, b3, tb, su, ENTROPY: tl.constexpr):
    """Fold one (THREADS, VEC) block of both rows into the per-lane float32 sums."""
    xa = a * _LOG2E - ca
    xb = b * _LOG2E - cb
    ea = tl.exp2(xa)
    eb = tl.exp2(xb)
    ma, a1, a2, a3 = _absorb(ea, ma, a1, a2, a3)
    mb, b1, b2, b3 = _absorb(eb, mb, b1, b2, b3)
    if ENTROPY:
        ta += ea * xa
        tb += eb * xb
    return ma, a1, a2, a3, ta, mb, b1, b2, b3, tb, su + ea * (b - a)


@triton.jit
def _cell(most, THREADS: tl.constexpr, VEC: tl.constexpr):
    """A thread's largest entry, and Σ, Σ², Σ³ of the lanes' other maxima; VEC is 4 or 8."""
    r1 = tl.zeros((THREADS,), tl.float32)
    r2 = tl.zeros((THREADS,), tl.float32)
    r3 = tl.zeros((THREADS,), tl.float32)
    if VEC == 8:
        x, y = tl.split(tl.reshape(most, (THREADS, 4, 2)))
        less = tl.minimum(x, y)
        r1 += tl.sum(less, axis=1)
        r2 += tl.sum(less * less, axis=1)
        r3 += tl.sum(less * less * less, axis=1)
        most = tl.maximum(x, y)
    x, y = tl.split(tl.reshape(most, (THREADS, 2, 2)))
    less = tl.minimum(x, y)
    r1 += tl.sum(less, axis=1)
    r2 += tl.sum(less * less, axis=1)
    r3 += tl.sum(less * less * less, axis=1)
    x, y = tl.split(tl.maximum(x, y))
    less = tl.minimum(x, y)
    return tl.maximum(x, y), r1 + less, r2 + less * less, r3 + less * less * less


@triton.jit
def _store_moments(out, s1, s2, s3, r1, r2, r3, THREADS: tl.constexpr, BINS: tl.constexpr):
    """out (3, BINS): the moments of neighbouring threads' rests."""
    bins = tl.arange(0, BINS)
    k1 = tl.sum(s1, axis=1) + r1
    k2 = tl.sum(s2, axis=1) + r2
    k3 = tl.sum(s3, axis=1) + r3
    tl.store(out + bins, tl.sum(tl.reshape(k1, (BINS, THREADS // BINS)), axis=1))
    tl.store(out + BINS + bins, tl.sum(tl.reshape(k2, (BINS, THREADS // BINS)), axis=1))
    tl.store(out + 2 * BINS + bins, tl.sum(tl.reshape(k3, (BINS, THREADS // BINS)), axis=1))


@triton.jit
def _track(x, block, top, where_top):
    """Largest logit of each lane and the first block it was seen in."""
    better = x > top
    return tl.where(better, x, top), tl.where(better, block, where_top)


@triton.jit(do_not_specialize=["T", "part", "origin"])
def span_kernel(
    ref, cand, tokens, shifts, held, moments, totals, observed, tops, top_cols,
    stride_ref, stride_cand, T, width, origin, part, n_parts, cells,
    THREADS: tl.constexpr, VEC: tl.constexpr, INNER: tl.constexpr, UNROLL: tl.constexpr,
    BINS: tl.constexpr, GIVEN: tl.constexpr, TRACK: tl.constexpr, ENTROPY: tl.constexpr,
):  # fmt: skip
    """One program per row: ``width`` columns, which are ``origin …`` of the vocabulary and part ``part``.

    ref, cand: (T, width) logits of bf16, f16 or f32, unit column stride. tokens (T,) int64. shifts (2, T)
    float32: read where GIVEN, else guessed here and written. Writes held (2, T, n_parts, cells) float32,
    moments (2, T, n_parts, 3, BINS) float32, totals (T, n_parts, 3) float64 = Σe·log₂e of either side (of
    the unnormalised exponentials) and Σ e_ref·(cand − ref), observed (2, T) float32 by the part that holds
    the token; with TRACK also tops (2, T, n_parts) float32 and top_cols (2, T, n_parts) int32.
    """
    row = tl.program_id(0)
    LANES: tl.constexpr = THREADS * VEC
    at = row.to(tl.int64)
    side = tl.cast(T, tl.int64)
    pa = ref + at * stride_ref
    pb = cand + at * stride_cand

    token = tl.load(tokens + row).to(tl.int32) - origin
    inside = (token >= 0) & (token < width)
    ay = tl.load(pa + token, mask=inside, other=float("-inf")).to(tl.float32)
    by = tl.load(pb + token, mask=inside, other=float("-inf")).to(tl.float32)
    if inside:
        tl.store(observed + row, ay)
        tl.store(observed + side + row, by)
    if GIVEN:
        ca = tl.load(shifts + row)
        cb = tl.load(shifts + side + row)
    else:
        first = tl.arange(0, LANES)
        sa = tl.load(pa + first, mask=first < width, other=float("-inf")).to(tl.float32)
        sb = tl.load(pb + first, mask=first < width, other=float("-inf")).to(tl.float32)
        ca = _on_grid(finite_floor(tl.maximum(tl.max(sa, axis=0), ay)))
        cb = _on_grid(finite_floor(tl.maximum(tl.max(sb, axis=0), by)))
        tl.store(shifts + row, ca)
        tl.store(shifts + side + row, cb)

    thread = tl.arange(0, THREADS)
    lane = thread[:, None] * VEC + tl.arange(0, VEC)[None, :]
    kept_a = held + (at * n_parts + part) * cells + thread
    kept_b = kept_a + side * n_parts * cells
    zero = tl.zeros((THREADS, VEC), tl.float32)
    flat = tl.zeros((THREADS,), tl.float32)
    wide = tl.zeros((THREADS,), tl.float64)
    a1, a2, a3, b1, b2, b3 = zero, zero, zero, zero, zero, zero
    ra1, ra2, ra3, rb1, rb2, rb3 = flat, flat, flat, flat, flat, flat
    sum_ta, sum_tb, sum_u = wide, wide, wide
    top_a = zero + float("-inf")
    top_b = zero + float("-inf")
    seen_a = tl.zeros((THREADS, VEC), tl.int32)
    seen_b = tl.zeros((THREADS, VEC), tl.int32)

    full = width // (LANES * INNER)
    n_blocks = (width + LANES - 1) // LANES
    for group in range(0, full):
        ma, mb, ta, tb, su = zero, zero, zero, zero, zero
        for turn in range(0, INNER // UNROLL):
            for j in tl.static_range(UNROLL):
                block = group * INNER + turn * UNROLL + j
                cols = block * LANES + lane
                a = tl.load(pa + cols, eviction_policy="evict_first").to(tl.float32)
                b = tl.load(pb + cols, eviction_policy="evict_first").to(tl.float32)
                if TRACK:
                    top_a, seen_a = _track(a, block, top_a, seen_a)
                    top_b, seen_b = _track(b, block, top_b, seen_b)
                ma, a1, a2, a3, ta, mb, b1, b2, b3, tb, su = _block(
                    a, b, ca, cb, ma, a1, a2, a3, ta, mb, b1, b2, b3, tb, su, ENTROPY
                )
        most, k1, k2, k3 = _cell(ma, THREADS, VEC)
        ra1, ra2, ra3 = ra1 + k1, ra2 + k2, ra3 + k3
        tl.store(kept_a + group * THREADS, most)
        most, k1, k2, k3 = _cell(mb, THREADS, VEC)
        rb1, rb2, rb3 = rb1 + k1, rb2 + k2, rb3 + k3
        tl.store(kept_b + group * THREADS, most)
        sum_ta += tl.sum(ta, axis=1)
        sum_tb += tl.sum(tb, axis=1)
        sum_u += tl.sum(su, axis=1)
    if full * INNER < n_blocks:
        ma, mb, ta, tb, su = zero, zero, zero, zero, zero
        for block in range(full * INNER, n_blocks):
            cols = block * LANES + lane
            a = tl.load(pa + cols, mask=cols < width, other=_FLOOR).to(tl.float32)
            b = tl.load(pb + cols, mask=cols < width, other=_FLOOR).to(tl.float32)
            if TRACK:
                top_a, seen_a = _track(a, block, top_a, seen_a)
                top_b, seen_b = _track(b, block, top_b, seen_b)
            a = tl.maximum(a, _FLOOR, propagate_nan=tl.PropagateNan.ALL)  # f16 has no such floor
            b = tl.maximum(b, _FLOOR, propagate_nan=tl.PropagateNan.ALL)
            ma, a1, a2, a3, ta, mb, b1, b2, b3, tb, su = _block(
                a, b, ca, cb, ma, a1, a2, a3, ta, mb, b1, b2, b3, tb, su, ENTROPY
            )
        most, k1, k2, k3 = _cell(ma, THREADS, VEC)
        ra1, ra2, ra3 = ra1 + k1, ra2 + k2, ra3 + k3
        tl.store(kept_a + full * THREADS, most)
        most, k1, k2, k3 = _cell(mb, THREADS, VEC)
        rb1, rb2, rb3 = rb1 + k1, rb2 + k2, rb3 + k3
        tl.store(kept_b + full * THREADS, most)
        sum_ta += tl.sum(ta, axis=1)
        sum_tb += tl.sum(tb, axis=1)
        sum_u += tl.sum(su, axis=1)

    out = totals + (at * n_parts + part) * 3
    tl.store(out, tl.sum(sum_ta, axis=0))
    tl.store(out + 1, tl.sum(sum_tb, axis=0))
    tl.store(out + 2, tl.sum(sum_u, axis=0))
    out = moments + (at * n_parts + part) * 3 * BINS
    _store_moments(out, a1, a2, a3, ra1, ra2, ra3, THREADS, BINS)
    _store_moments(out + side * n_parts * 3 * BINS, b1, b2, b3, rb1, rb2, rb3, THREADS, BINS)
    if TRACK:
        best_a = tl.max(tl.max(top_a, axis=1), axis=0)
        best_b = tl.max(tl.max(top_b, axis=1), axis=0)
        col_a = tl.where(top_a == best_a, origin + seen_a * LANES + lane, 2147483647)
        col_b = tl.where(top_b == best_b, origin + seen_b * LANES + lane, 2147483647)
        slot = at * n_parts + part
        tl.store(tops + slot, best_a)
        tl.store(tops + side * n_parts + slot, best_b)
        tl.store(top_cols + slot, tl.min(tl.min(col_a, axis=1), axis=0))
        tl.store(top_cols + side * n_parts + slot, tl.min(tl.min(col_b, axis=1), axis=0))
