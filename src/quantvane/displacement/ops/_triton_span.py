"""Triton: one read of a span of two logit rows, kept as a handful of sums (one kernel, its helpers).

A *lane* is a residue class of columns, ``column = lo + block·LANES + lane``. Every lane keeps its largest
exponential; all the others form "the rest", of which only power sums are kept: they are of small entries,
where a few moments say everything that λ_max needs. The sums are first taken over everything and the lanes'
largest subtracted afterwards, which costs a relative 1e-7 of the entry subtracted. Only the row's largest
may exceed all others together by so much that this matters: the columns of the thread that met it are read
again without it.

Exponents are in base 2 relative to a *fixed* shift per row, guessed from the first block and the observed
token: no running maximum, so no reduction across threads inside the loop. A row whose guess turns out to be
too far off overflows to inf or NaN and is recomputed elsewhere.
"""

# mypy: disable-error-code="misc, no-untyped-def, no-untyped-call, untyped-decorator, no-any-return"
from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["LOG2E", "N_SUMS", "shift_kernel", "span_kernel"]

LOG2E = 1.4426950216293335  # float32(log2 e): every conversion back divides by this very number
N_SUMS = 12
_LOG2E = tl.constexpr(LOG2E)
_FLOOR = tl.constexpr(-1.0e30)  # stands for −inf: exp2 of it is 0, and 0·floor is 0 where 0·inf is NaN
_PHI_SWITCH = tl.constexpr(0.35)


@triton.jit
def finite_floor(x):
    """−inf becomes a large negative number; NaN stays NaN."""
    return tl.maximum(x, _FLOOR, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def guess_shifts(a, b, ay, by):
    """(c2, δ2): the reference's shift and the candidate's offset from it, base 2, on a grid of 2⁻¹⁰.

    On that grid c2 + δ2 is exact in float32, so both rows are shifted by numbers whose difference is known
    without rounding. δ2 is the softmax-weighted mean of b − a, an estimate of the difference of the two
    normalisers: the closer it is, the less the divergence cancels.
    """
    top = tl.maximum(tl.max(a, axis=0), ay)
    weight = tl.where((a > -1.0e29) & (b > -1.0e29), tl.exp2((a - top) * _LOG2E), 0.0)
    wy = tl.where((ay > -1.0e29) & (by > -1.0e29), tl.exp2((ay - top) * _LOG2E), 0.0)
    total = tl.sum(weight, axis=0) + wy
    moved = tl.sum(tl.where(weight > 0, weight * (b - a), 0.0), axis=0) + tl.where(
        wy > 0, wy * (by - ay), 0.0
    )
    delta = tl.where(total > 0, moved / tl.where(total > 0, total, 1.0), 0.0)
    c2 = tl.floor(top * _LOG2E * 1024.0 + 0.5) / 1024.0
    d2 = tl.floor(delta * _LOG2E * 1024.0 + 0.5) / 1024.0
    return c2, d2


@triton.jit
def shift_kernel(ref, cand, observed, shifts, stride_ref, stride_cand, V, T, SAMPLE: tl.constexpr):
    """shifts (2, T) float32 from the first columns; observed (2, T) float32 are both logits of the token."""
    row = tl.program_id(0)
    cols = tl.arange(0, SAMPLE)
    at = row.to(tl.int64)
    a = tl.load(ref + at * stride_ref + cols, mask=cols < V, other=float("-inf")).to(tl.float32)
    b = tl.load(cand + at * stride_cand + cols, mask=cols < V, other=float("-inf")).to(tl.float32)
    ay = finite_floor(tl.load(observed + row))
    by = finite_floor(tl.load(observed + T + row))
    c2, d2 = guess_shifts(finite_floor(a), finite_floor(b), ay, by)
    tl.store(shifts + row, c2)
    tl.store(shifts + T + row, d2)


@triton.jit
def _phi(u, ea, eb):
    """ea·(eᵘ − 1 − u), where eb = ea·eᵘ, to full relative accuracy however small u is."""
    series = 1.0 / 720 + u * (1.0 / 5040)
    series = 1.0 / 120 + u * series
    series = 1.0 / 24 + u * series
    series = 1.0 / 6 + u * series
    series = 0.5 + u * series
    near = ea * u * (u * series)
    far = (eb - ea) - ea * u
    return tl.where(tl.abs(u) < _PHI_SWITCH, near, far)


@triton.jit
def _block(
    a, b, c2a, c2b, delta, held_a, held_b,
    s1a, s2a, s3a, s4a, ta, s1b, s2b, s3b, s4b, tb, su, sphi,
    PRECISE: tl.constexpr,
):  # fmt: skip
    """Fold one (THREADS, VEC) block of both rows into per-thread float32 sums."""
    xa = a * _LOG2E - c2a
    xb = b * _LOG2E - c2b
    ea = tl.exp2(xa)
    eb = tl.exp2(xb)
    held_a = tl.maximum(held_a, ea)
    held_b = tl.maximum(held_b, eb)
    ea2 = ea * ea
    eb2 = eb * eb
    u = b - a
    s1a += tl.sum(ea, axis=1)
    s2a += tl.sum(ea2, axis=1)
    s3a += tl.sum(ea2 * ea, axis=1)
    s4a += tl.sum(ea2 * ea2, axis=1)
    ta += tl.sum(ea * xa, axis=1)
    s1b += tl.sum(eb, axis=1)
    s2b += tl.sum(eb2, axis=1)
    s3b += tl.sum(eb2 * eb, axis=1)
    s4b += tl.sum(eb2 * eb2, axis=1)
    tb += tl.sum(eb * xb, axis=1)
    if PRECISE:
        u = u - delta
        sphi += tl.sum(_phi(u, ea, eb), axis=1)
    su += tl.sum(ea * u, axis=1)
    return held_a, held_b, s1a, s2a, s3a, s4a, ta, s1b, s2b, s3b, s4b, tb, su, sphi


@triton.jit
def _rest(
    row, out, held, s1, s2, s3, s4, c2, lo, hi,
    THREADS: tl.constexpr, VEC: tl.constexpr, ROUNDS: tl.constexpr,
):  # fmt: skip
    """Store Σ E^k, k = 1…4, over everything but each lane's largest entry; s1…s4 (THREADS,) float64 hold
    all."""
    thread = tl.arange(0, THREADS)
    _, guilty = tl.max(tl.max(held, axis=1), axis=0, return_indices=True)
    innocent = thread != guilty
    slot = tl.arange(0, VEC)
    cols = lo + tl.arange(0, ROUNDS)[:, None] * (THREADS * VEC) + guilty * VEC + slot[None, :]
    x = finite_floor(tl.load(row + cols, mask=cols < hi, other=float("-inf")).to(tl.float32))
    e = tl.exp2(x * _LOG2E - c2)
    most = tl.max(tl.max(e, axis=1), axis=0)
    where = tl.min(tl.min(tl.where(e == most, cols, 2147483647), axis=1), axis=0)
    e = tl.where(cols == where, 0.0, e).to(tl.float64)
    e2 = e * e
    # What each lane keeps, bar the row's largest, which is in no sum.
    lane_of_top = (thread[:, None] == guilty) & (slot[None, :] == (where - lo) % VEC)
    h = tl.where(lane_of_top, 0.0, held).to(tl.float64)
    h2 = h * h
    r1 = tl.where(innocent, s1, 0.0) - tl.sum(h, axis=1)
    r2 = tl.where(innocent, s2, 0.0) - tl.sum(h2, axis=1)
    r3 = tl.where(innocent, s3, 0.0) - tl.sum(h2 * h, axis=1)
    r4 = tl.where(innocent, s4, 0.0) - tl.sum(h2 * h2, axis=1)
    tl.store(out + 0, tl.maximum(tl.sum(r1, axis=0) + tl.sum(tl.sum(e, axis=1), axis=0), 0.0))
    tl.store(out + 1, tl.maximum(tl.sum(r2, axis=0) + tl.sum(tl.sum(e2, axis=1), axis=0), 0.0))
    tl.store(out + 2, tl.maximum(tl.sum(r3, axis=0) + tl.sum(tl.sum(e2 * e, axis=1), axis=0), 0.0))
    tl.store(out + 3, tl.maximum(tl.sum(r4, axis=0) + tl.sum(tl.sum(e2 * e2, axis=1), axis=0), 0.0))


@triton.jit
def _track(x, block, top, where_top):
    """Largest logit of each lane and the first block it was seen in."""
    better = x > top
    return tl.where(better, x, top), tl.where(better, block, where_top)


@triton.jit
def span_kernel(
    ref, cand, tokens, shifts, sums, held, observed, tops, top_cols,
    stride_ref, stride_cand, V, T, width, span, first_part, n_parts,
    THREADS: tl.constexpr, VEC: tl.constexpr, INNER: tl.constexpr,
    ROUNDS: tl.constexpr, GIVEN: tl.constexpr, TRACK: tl.constexpr, PRECISE: tl.constexpr,
    CLAMP: tl.constexpr,
):  # fmt: skip
    """One program per (row, part): columns [part·span, …) of a row of ``width`` columns.

    ref, cand: (T, width) logits of bf16, f16 or f32, unit column stride. The row's columns are
    ``first_part·span …`` of a vocabulary of V (whole rows: first_part = 0, width = V). tokens (T,) int64.
    shifts (2, T) float32: read where GIVEN, else guessed here and written. Writes sums (T, n_parts, 12)
    float64, held (2, T, n_parts, LANES) float32, observed (2, T) float32 by the part that holds the token;
    with TRACK also tops (2, T, n_parts) float32 and top_cols (2, T, n_parts) int32. Float32 within INNER
    blocks, float64 across them. Without CLAMP a −inf turns the row's sums into NaN.
    """
    row = tl.program_id(0)
    local_part = tl.program_id(1)
    part = first_part + local_part
    LANES: tl.constexpr = THREADS * VEC
    at = row.to(tl.int64)
    pa = ref + at * stride_ref
    pb = cand + at * stride_cand
    lo = local_part * span
    hi = tl.minimum(lo + span, width)
    origin = first_part * span  # vocabulary index of the workspace's first column

    token = tl.load(tokens + row).to(tl.int32) - origin
    inside = (token >= 0) & (token < width)
    ay = tl.load(pa + token, mask=inside, other=0.0).to(tl.float32)
    by = tl.load(pb + token, mask=inside, other=0.0).to(tl.float32)
    if GIVEN:
        c2a = tl.load(shifts + row)
        d2 = tl.load(shifts + T + row)
    else:
        first = tl.arange(0, LANES)
        sa = tl.load(pa + first, mask=first < width, other=float("-inf")).to(tl.float32)
        sb = tl.load(pb + first, mask=first < width, other=float("-inf")).to(tl.float32)
        c2a, d2 = guess_shifts(finite_floor(sa), finite_floor(sb), finite_floor(ay), finite_floor(by))
        tl.store(shifts + row, c2a)
        tl.store(shifts + T + row, d2)
    c2b = c2a + d2
    delta = d2 / _LOG2E
    if inside & (token >= lo) & (token < hi):
        tl.store(observed + row, ay)
        tl.store(observed + T + row, by)

    lane = tl.arange(0, THREADS)[:, None] * VEC + tl.arange(0, VEC)[None, :]
    held_a = tl.zeros((THREADS, VEC), tl.float32)
    held_b = tl.zeros((THREADS, VEC), tl.float32)
    top_a = tl.full((THREADS, VEC), float("-inf"), tl.float32)
    top_b = tl.full((THREADS, VEC), float("-inf"), tl.float32)
    seen_a = tl.zeros((THREADS, VEC), tl.int32)
    seen_b = tl.zeros((THREADS, VEC), tl.int32)
    zero = tl.zeros((THREADS,), tl.float32)
    wide = tl.zeros((THREADS,), tl.float64)
    d0, d1, d2_, d3, d4, d5 = wide, wide, wide, wide, wide, wide
    d6, d7, d8, d9, d10, d11 = wide, wide, wide, wide, wide, wide

    full = (hi - lo) // (LANES * INNER)
    n_blocks = (hi - lo + LANES - 1) // LANES
    for outer in range(0, full):
        f0, f1, f2, f3, f4, f5 = zero, zero, zero, zero, zero, zero
        f6, f7, f8, f9, f10, f11 = zero, zero, zero, zero, zero, zero
        for inner in tl.static_range(INNER):
            block = outer * INNER + inner
            cols = lo + block * LANES + lane
            a = tl.load(pa + cols, eviction_policy="evict_first").to(tl.float32)
            b = tl.load(pb + cols, eviction_policy="evict_first").to(tl.float32)
            if CLAMP:
                a = finite_floor(a)
                b = finite_floor(b)
            if TRACK:
                top_a, seen_a = _track(a, block, top_a, seen_a)
                top_b, seen_b = _track(b, block, top_b, seen_b)
            held_a, held_b, f0, f1, f2, f3, f4, f5, f6, f7, f8, f9, f10, f11 = _block(
                a, b, c2a, c2b, delta, held_a, held_b,
                f0, f1, f2, f3, f4, f5, f6, f7, f8, f9, f10, f11, PRECISE,
            )  # fmt: skip
        d0, d1, d2_, d3 = d0 + f0, d1 + f1, d2_ + f2, d3 + f3
        d4, d5, d6, d7 = d4 + f4, d5 + f5, d6 + f6, d7 + f7
        d8, d9, d10, d11 = d8 + f8, d9 + f9, d10 + f10, d11 + f11
    f0, f1, f2, f3, f4, f5 = zero, zero, zero, zero, zero, zero
    f6, f7, f8, f9, f10, f11 = zero, zero, zero, zero, zero, zero
    for block in range(full * INNER, n_blocks):
        cols = lo + block * LANES + lane
        ok = cols < hi
        a = finite_floor(tl.load(pa + cols, mask=ok, other=float("-inf")).to(tl.float32))
        b = finite_floor(tl.load(pb + cols, mask=ok, other=float("-inf")).to(tl.float32))
        if TRACK:
            top_a, seen_a = _track(a, block, top_a, seen_a)
            top_b, seen_b = _track(b, block, top_b, seen_b)
        held_a, held_b, f0, f1, f2, f3, f4, f5, f6, f7, f8, f9, f10, f11 = _block(
            a, b, c2a, c2b, delta, held_a, held_b,
            f0, f1, f2, f3, f4, f5, f6, f7, f8, f9, f10, f11, PRECISE,
        )  # fmt: skip
    out = sums + (at * n_parts + part) * 12
    _rest(pa, out, held_a, d0 + f0, d1 + f1, d2_ + f2, d3 + f3, c2a, lo, hi, THREADS, VEC, ROUNDS)
    _rest(pb, out + 5, held_b, d5 + f5, d6 + f6, d7 + f7, d8 + f8, c2b, lo, hi, THREADS, VEC, ROUNDS)
    tl.store(out + 4, tl.sum(d4 + f4, axis=0))
    tl.store(out + 9, tl.sum(d9 + f9, axis=0))
    tl.store(out + 10, tl.sum(d10 + f10, axis=0))
    tl.store(out + 11, tl.sum(d11 + f11, axis=0))
    kept = held + (at * n_parts + part) * LANES
    tl.store(kept + lane, held_a)
    tl.store(kept + T.to(tl.int64) * n_parts * LANES + lane, held_b)
    if TRACK:
        best_a = tl.max(tl.max(top_a, axis=1), axis=0)
        best_b = tl.max(tl.max(top_b, axis=1), axis=0)
        col_a = tl.where(top_a == best_a, origin + lo + seen_a * LANES + lane, 2147483647)
        col_b = tl.where(top_b == best_b, origin + lo + seen_b * LANES + lane, 2147483647)
        slot = at * n_parts + part
        side = T.to(tl.int64) * n_parts
        tl.store(tops + slot, best_a)
        tl.store(tops + side + slot, best_b)
        tl.store(top_cols + slot, tl.min(tl.min(col_a, axis=1), axis=0))
        tl.store(top_cols + side + slot, tl.min(tl.min(col_b, axis=1), axis=0))
