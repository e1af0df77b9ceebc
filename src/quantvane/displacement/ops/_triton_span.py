"""Triton: one read of a span of two logit rows, kept as cell maxima and a handful of sums.

Columns are read in *groups* of INNER blocks of THREADS·VEC. The columns that one thread sees in one group
form a *cell*: ``lo + ((group·INNER + j)·THREADS + thread)·VEC + v`` over j and v. Of every cell the largest
exponential is kept apart, with SECOND the second largest too; all other entries form "the rest", of which only
Σe, Σe², Σe³ are kept. The rest is summed as it falls out of the running maximum (its smaller partner is what is
added), so the largest entry never enters a sum and nothing has to be subtracted from one.

Exponents are in base 2 relative to a *fixed* shift per row, guessed from the first columns and the observed
token: no running maximum across threads, so no communication inside the loop. A −inf, a NaN or a guess that
is too far off makes the sums inf or NaN; such rows are computed again by ``_triton_exact``.
"""

# mypy: disable-error-code="misc, no-untyped-def, no-untyped-call, untyped-decorator, no-any-return"
from __future__ import annotations

import os

import triton
import triton.language as tl

from quantvane.displacement.ops._triton_chain import mark_row, open_chain

__all__ = [
    "FLOOR", "INTERPRETED", "LOG2E", "N_MOMENTS", "N_TOTALS", "finite_floor", "guess_shift", "halves", "join_lane",
    "load_halves", "load_words", "shift_kernel", "span_kernel", "store_moments", "unpack",
]  # fmt: skip

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0") == "1")  # has no assembly, no device library
LOG2E = 1.4426950216293335  # float32(log2 e): every conversion back divides by this very number
N_MOMENTS = 3
N_TOTALS = 2
FLOOR = -1.0e30  # stands for −inf: exp2 of it is 0, and 0·floor is 0 where 0·inf is NaN
_LOG2E = tl.constexpr(LOG2E)
_FLOOR = tl.constexpr(FLOOR)


@triton.jit
def finite_floor(x):
    """−inf becomes a large negative number; NaN stays NaN."""
    return tl.maximum(x, _FLOOR, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _on_grid(x):
    """x in base 2, to a multiple of 2⁻¹⁰: the difference of two shifts is then exact in float32."""
    return tl.floor(x * _LOG2E * 1024.0 + 0.5) / 1024.0


@triton.jit
def guess_shift(row, observed, width, BLOCK: tl.constexpr, UNROLL: tl.constexpr):
    """The largest of the observed logit and the columns of the loop's first turn (they are read from memory once), on
    the grid."""
    first = tl.arange(0, BLOCK)
    most = tl.full((BLOCK,), float("-inf"), tl.float32)
    for j in tl.static_range(UNROLL):
        x = tl.load(row + j * BLOCK + first, mask=j * BLOCK + first < width, other=float("-inf"))
        most = tl.maximum(most, x.to(tl.float32))
    return _on_grid(finite_floor(tl.maximum(tl.max(most, axis=0), observed)))


@triton.jit
def shift_kernel(ref, cand, observed, shifts, stride_ref, stride_cand, V, T, SAMPLE: tl.constexpr):
    """shifts (2, T) float32: the largest of the first columns and the guess ``observed`` (2, T), on the grid."""
    row = tl.program_id(0)
    at = row.to(tl.int64)
    ay = tl.load(observed + row).to(tl.float32)
    by = tl.load(observed + T + row).to(tl.float32)
    tl.store(shifts + row, guess_shift(ref + at * stride_ref, ay, V, SAMPLE, 1))
    tl.store(shifts + T + row, guess_shift(cand + at * stride_cand, by, V, SAMPLE, 1))


@triton.jit
def _absorb(e, most, second, s1, s2, s3, LAMBDA: tl.constexpr, SECOND: tl.constexpr):
    """Let e meet the running maximum, with SECOND also the second largest: the smallest of them joins the sums."""
    if LAMBDA:
        less = tl.minimum(most, e)
        if SECOND:
            second, less = tl.maximum(second, less), tl.minimum(second, less)
        square = less * less
        s1 += less
        s2 += square
        s3 += square * less
    else:
        s1 += e
    return tl.maximum(most, e), second, s1, s2, s3


@triton.jit
def _block(
    a, b, ca, cb, ma, na, a1, a2, a3, mb, nb, b1, b2, b3, su, LAMBDA: tl.constexpr, SECOND: tl.constexpr
):  # fmt: skip
    """Fold one (THREADS, 2) block of both rows into the per-lane float32 sums."""
    xa = a * _LOG2E - ca
    xb = b * _LOG2E - cb
    ea = tl.exp2(xa)
    eb = tl.exp2(xb)
    ma, na, a1, a2, a3 = _absorb(ea, ma, na, a1, a2, a3, LAMBDA, SECOND)
    mb, nb, b1, b2, b3 = _absorb(eb, mb, nb, b1, b2, b3, LAMBDA, SECOND)
    return ma, na, a1, a2, a3, mb, nb, b1, b2, b3, su + ea * (b - a)


@triton.jit
def halves(x):
    """Every thread's even and odd columns; they stay in its registers."""
    return tl.split(tl.reshape(x, (x.shape[0], x.shape[1] // 2, 2)))


@triton.jit
def unpack(words):
    """The two bfloat16 of every word, as float32: of the lower half and of the upper."""
    return (words << 16).to(tl.float32, bitcast=True), (words & -65536).to(tl.float32, bitcast=True)


@triton.jit
def load_words(row, block, thread, THREADS: tl.constexpr, VEC: tl.constexpr):
    """A whole block of bfloat16 columns from an even address on, (THREADS, VEC/2) words of two."""
    lane = thread[:, None] * (VEC // 2) + tl.arange(0, VEC // 2)[None, :]
    words = row.to(tl.pointer_type(tl.int32), bitcast=True) + block * (THREADS * VEC // 2) + lane
    return tl.load(words, eviction_policy="evict_first")


@triton.jit
def load_halves(row, block, thread, THREADS: tl.constexpr, VEC: tl.constexpr, PACKED: tl.constexpr):
    """The even and the odd columns of a whole block, (THREADS, VEC/2) float32 each.

    PACKED, for bfloat16 from an even address on, loads words of two columns: one instruction unpacks each.
    """
    if PACKED:
        even, odd = unpack(load_words(row, block, thread, THREADS, VEC))
    else:
        lane = thread[:, None] * VEC + tl.arange(0, VEC)[None, :]
        even, odd = halves(tl.load(row + block * (THREADS * VEC) + lane, eviction_policy="evict_first"))
        even = even.to(tl.float32)
        odd = odd.to(tl.float32)
    return even, odd


@triton.jit
def join_lane(x, s1, s2, s3):
    """The sums with a thread's x among them, in its first lane."""
    x = tl.join(x, x * 0.0)
    return s1 + x, s2 + x * x, s3 + x * x * x


@triton.jit
def _cell(most, second, s1, s2, s3, LAMBDA: tl.constexpr, SECOND: tl.constexpr):
    """A thread's largest entry, with SECOND also its second; what else its two lanes kept joins the sums."""
    x, y = tl.split(most)
    less = tl.minimum(x, y)
    u, v = tl.split(second)
    high = tl.maximum(u, v)
    if LAMBDA:
        if SECOND:
            s1, s2, s3 = join_lane(tl.minimum(u, v), s1, s2, s3)
            s1, s2, s3 = join_lane(tl.minimum(less, high), s1, s2, s3)
        else:
            s1, s2, s3 = join_lane(less, s1, s2, s3)
    return tl.maximum(x, y), tl.maximum(less, high), s1, s2, s3


@triton.jit
def _binned(x, THREADS: tl.constexpr, BINS: tl.constexpr):
    """The sums of neighbouring threads, or of single lanes."""
    if BINS > THREADS:
        return tl.reshape(x, (BINS,))
    else:  # noqa: RET505 (decided when compiling)
        return tl.sum(tl.reshape(tl.sum(x, axis=1), (BINS, THREADS // BINS)), axis=1)


@triton.jit
def store_moments(out, s1, s2, s3, THREADS: tl.constexpr, BINS: tl.constexpr):
    """out (3, BINS): the moments of the rests."""
    bins = tl.arange(0, BINS)
    tl.store(out + bins, _binned(s1, THREADS, BINS))
    tl.store(out + BINS + bins, _binned(s2, THREADS, BINS))
    tl.store(out + 2 * BINS + bins, _binned(s3, THREADS, BINS))


@triton.jit
def _track(even, odd, block, top, seen):
    """Every thread's largest logit and the first block it was seen in."""
    x = tl.max(tl.maximum(even, odd), axis=1)
    return tl.maximum(top, x), tl.where(x > top, block, seen)


@triton.jit
def _first_top(row, width, origin, top, seen, THREADS: tl.constexpr, VEC: tl.constexpr):
    """(largest logit, its first column in the vocabulary); of each thread's block it is looked up again."""
    best = tl.max(top, axis=0)
    cols = (seen * THREADS + tl.arange(0, THREADS))[:, None] * VEC + tl.arange(0, VEC)[None, :]
    x = tl.load(row + cols, mask=(top == best)[:, None] & (cols < width), other=float("-inf")).to(tl.float32)
    return best, tl.min(tl.min(tl.where(x == best, origin + cols, 2147483647), axis=1), axis=0)


@triton.jit
def _fold(
    a, b, ca, cb, ma, na, a1, a2, a3, mb, nb, b1, b2, b3, su, LAMBDA: tl.constexpr, SECOND: tl.constexpr
):  # fmt: skip
    """``_block`` for (THREADS, 2) or twice for (THREADS, 4) columns."""
    if a.shape[1] == 2:
        ma, na, a1, a2, a3, mb, nb, b1, b2, b3, su = _block(
            a, b, ca, cb, ma, na, a1, a2, a3, mb, nb, b1, b2, b3, su, LAMBDA, SECOND
        )
    else:
        a0, a9 = halves(a)
        b0, b9 = halves(b)
        ma, na, a1, a2, a3, mb, nb, b1, b2, b3, su = _block(
            a0, b0, ca, cb, ma, na, a1, a2, a3, mb, nb, b1, b2, b3, su, LAMBDA, SECOND
        )
        ma, na, a1, a2, a3, mb, nb, b1, b2, b3, su = _block(
            a9, b9, ca, cb, ma, na, a1, a2, a3, mb, nb, b1, b2, b3, su, LAMBDA, SECOND
        )
    return ma, na, a1, a2, a3, mb, nb, b1, b2, b3, su


@triton.jit(do_not_specialize=["T", "part", "origin"])
def span_kernel(
    ref, cand, tokens, shifts, held, moments, totals, observed, tops, top_cols, ready,
    stride_ref, stride_cand, T, width, origin, part, n_parts, cells,
    THREADS: tl.constexpr, VEC: tl.constexpr, INNER: tl.constexpr, UNROLL: tl.constexpr, SECOND: tl.constexpr,
    BINS: tl.constexpr, PACKED: tl.constexpr, GIVEN: tl.constexpr, TRACK: tl.constexpr,
    LAMBDA: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One program per row: ``width`` columns, which are ``origin …`` of the vocabulary and part ``part``.

    ref, cand: (T, width) logits of bf16, f16 or f32, unit column stride. tokens (T,) int64. shifts (2, T)
    float32: read where GIVEN, else guessed here and written. Writes held (2, T, n_parts, cells) float32,
    moments (2, T, n_parts, 3, BINS) float32, totals (T, n_parts, 2) float64, of which the first is
    Σ e_ref·(cand − ref) with unnormalised exponentials, observed (2, T) float32 by the part that holds the token;
    with TRACK also tops (2, T, n_parts) float32 and top_cols (2, T, n_parts) int32. Without LAMBDA the moments are
    Σe over all columns and two zeros. EARLY marks the row in ready, see ``_triton_chain``.
    """
    open_chain(EARLY)
    row = tl.program_id(0)
    BLOCK: tl.constexpr = THREADS * VEC
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
        ca = guess_shift(pa, ay, width, BLOCK, UNROLL)
        cb = guess_shift(pb, by, width, BLOCK, UNROLL)
        tl.store(shifts + row, ca)
        tl.store(shifts + side + row, cb)

    thread = tl.arange(0, THREADS)
    kept_a = held + (at * n_parts + part) * cells + thread
    kept_b = kept_a + side * n_parts * cells
    zero = tl.zeros((THREADS, 2), tl.float32)
    a1, a2, a3, b1, b2, b3 = zero, zero, zero, zero, zero, zero
    sum_u = tl.zeros((THREADS,), tl.float64)
    top_a = tl.full((THREADS,), float("-inf"), tl.float32)
    top_b = top_a
    seen_a = tl.zeros((THREADS,), tl.int32)
    seen_b = seen_a

    full = width // (BLOCK * INNER)
    n_blocks = (width + BLOCK - 1) // BLOCK
    for group in range(0, (n_blocks + INNER - 1) // INNER):
        ma, na, mb, nb, su = zero, zero, zero, zero, zero
        if group < full:
            for turn in range(0, INNER // UNROLL):
                for j in tl.static_range(UNROLL):
                    block = group * INNER + turn * UNROLL + j
                    a0, a9 = load_halves(pa, block, thread, THREADS, VEC, PACKED)
                    b0, b9 = load_halves(pb, block, thread, THREADS, VEC, PACKED)
                    if TRACK:
                        top_a, seen_a = _track(a0, a9, block, top_a, seen_a)
                        top_b, seen_b = _track(b0, b9, block, top_b, seen_b)
                    ma, na, a1, a2, a3, mb, nb, b1, b2, b3, su = _fold(
                        a0, b0, ca, cb, ma, na, a1, a2, a3, mb, nb, b1, b2, b3, su, LAMBDA, SECOND
                    )
                    ma, na, a1, a2, a3, mb, nb, b1, b2, b3, su = _fold(
                        a9, b9, ca, cb, ma, na, a1, a2, a3, mb, nb, b1, b2, b3, su, LAMBDA, SECOND
                    )
        else:
            lane = thread[:, None] * VEC + tl.arange(0, VEC)[None, :]
            for block in range(full * INNER, n_blocks):
                cols = block * BLOCK + lane
                a = tl.load(pa + cols, mask=cols < width, other=_FLOOR).to(tl.float32)
                b = tl.load(pb + cols, mask=cols < width, other=_FLOOR).to(tl.float32)
                a0, a9 = halves(a)
                b0, b9 = halves(b)
                if TRACK:
                    top_a, seen_a = _track(a0, a9, block, top_a, seen_a)
                    top_b, seen_b = _track(b0, b9, block, top_b, seen_b)
                # f16 has no such floor
                a0, a9 = halves(tl.maximum(a, _FLOOR, propagate_nan=tl.PropagateNan.ALL))
                b0, b9 = halves(tl.maximum(b, _FLOOR, propagate_nan=tl.PropagateNan.ALL))
                ma, na, a1, a2, a3, mb, nb, b1, b2, b3, su = _fold(
                    a0, b0, ca, cb, ma, na, a1, a2, a3, mb, nb, b1, b2, b3, su, LAMBDA, SECOND
                )
                ma, na, a1, a2, a3, mb, nb, b1, b2, b3, su = _fold(
                    a9, b9, ca, cb, ma, na, a1, a2, a3, mb, nb, b1, b2, b3, su, LAMBDA, SECOND
                )
        most, second, a1, a2, a3 = _cell(ma, na, a1, a2, a3, LAMBDA, SECOND)
        tl.store(kept_a + group * THREADS, most)
        if SECOND:
            tl.store(kept_a + cells // 2 + group * THREADS, second)
        most, second, b1, b2, b3 = _cell(mb, nb, b1, b2, b3, LAMBDA, SECOND)
        tl.store(kept_b + group * THREADS, most)
        if SECOND:
            tl.store(kept_b + cells // 2 + group * THREADS, second)
        sum_u += tl.sum(su, axis=1)

    tl.store(totals + (at * n_parts + part) * 2, tl.sum(sum_u, axis=0))
    out = moments + (at * n_parts + part) * 3 * BINS
    store_moments(out, a1, a2, a3, THREADS, BINS)
    store_moments(out + side * n_parts * 3 * BINS, b1, b2, b3, THREADS, BINS)
    if TRACK:
        best_a, col_a = _first_top(pa, width, origin, top_a, seen_a, THREADS, VEC)
        best_b, col_b = _first_top(pb, width, origin, top_b, seen_b, THREADS, VEC)
        slot = at * n_parts + part
        tl.store(tops + slot, best_a)
        tl.store(tops + side * n_parts + slot, best_b)
        tl.store(top_cols + slot, col_a)
        tl.store(top_cols + side * n_parts + slot, col_b)
    mark_row(ready, row, EARLY)
