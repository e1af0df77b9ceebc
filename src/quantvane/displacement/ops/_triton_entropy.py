"""Triton: the first of two reads of logit rows, each row of either side by itself (one kernel).

It leaves what ``_triton_span`` leaves but Σ p·ln(p/q), which the second read sums, and adds Σe·log₂e. So no sum joins
the two sides, and the running maximum of a cell can be taken of the logits: of two bfloat16 columns at once, and what
falls out of it is what is exponentiated. Those entries and the last maximum are the row's, in another order.
"""

# mypy: disable-error-code="misc, no-untyped-def, no-untyped-call, untyped-decorator, no-any-return"
from __future__ import annotations

import triton
import triton.language as tl

from quantvane.displacement.ops._triton_chain import mark_row, open_chain
from quantvane.displacement.ops._triton_span import (
    FLOOR,
    INTERPRETED,
    LOG2E,
    guess_shift,
    halves,
    join_lane,
    load_halves,
    load_words,
    store_moments,
    unpack,
)

__all__ = ["entropy_kernel"]

_LOG2E = tl.constexpr(LOG2E)
_FLOOR = tl.constexpr(FLOOR)
_FLOOR_WORD = tl.constexpr(-246812343)  # 0xF149F149: about the same number, twice, as bfloat16


@triton.jit
def _meet(most, x):
    """(the larger, the smaller); NaN is both."""
    return (
        tl.maximum(most, x, propagate_nan=tl.PropagateNan.ALL),
        tl.minimum(most, x, propagate_nan=tl.PropagateNan.ALL),
    )


@triton.jit
def _pack(even, odd):
    return (odd.to(tl.int32, bitcast=True) & -65536) | ((even.to(tl.int32, bitcast=True) >> 16) & 65535)


@triton.jit
def _meet_words(most, w):
    """``_meet`` of both bfloat16 of every word."""
    if INTERPRETED:
        even, odd = unpack(most)
        even_w, odd_w = unpack(w)
        even, even_w = _meet(even, even_w)
        odd, odd_w = _meet(odd, odd_w)
        return _pack(even, odd), _pack(even_w, odd_w)
    more = tl.inline_asm_elementwise(
        "max.NaN.bf16x2 $0, $1, $2;", "=r,r,r", [most, w], dtype=tl.int32, is_pure=True, pack=1
    )
    less = tl.inline_asm_elementwise(
        "min.NaN.bf16x2 $0, $1, $2;", "=r,r,r", [most, w], dtype=tl.int32, is_pure=True, pack=1
    )
    return more, less


@triton.jit
def _add(x, shift, s1, s2, s3, t):
    """The sums over exponentials, with those of x among them."""
    y = x * _LOG2E - shift
    e = tl.exp2(y)
    square = e * e
    return s1 + e, s2 + square, s3 + square * e, t + e * y


@triton.jit
def _absorb_words(w, most, shift, s1, s2, s3, t):
    """Let words w (THREADS,) meet the running maxima: the smaller of either two columns join the sums."""
    most, less = _meet_words(most, w)
    even, odd = unpack(less)
    s1, s2, s3, t = _add(tl.join(even, odd), shift, s1, s2, s3, t)
    return most, s1, s2, s3, t


@triton.jit
def _fold_words(w, most, shift, s1, s2, s3, t):
    """``_absorb_words`` of (THREADS, 2) or (THREADS, 4) words."""
    if w.shape[1] == 2:
        w0, w1 = tl.split(w)
        most, s1, s2, s3, t = _absorb_words(w0, most, shift, s1, s2, s3, t)
        most, s1, s2, s3, t = _absorb_words(w1, most, shift, s1, s2, s3, t)
    else:
        u, v = halves(w)
        w0, w2 = tl.split(u)
        w1, w3 = tl.split(v)
        most, s1, s2, s3, t = _absorb_words(w0, most, shift, s1, s2, s3, t)
        most, s1, s2, s3, t = _absorb_words(w1, most, shift, s1, s2, s3, t)
        most, s1, s2, s3, t = _absorb_words(w2, most, shift, s1, s2, s3, t)
        most, s1, s2, s3, t = _absorb_words(w3, most, shift, s1, s2, s3, t)
    return most, s1, s2, s3, t


@triton.jit
def _fold(x, most, shift, s1, s2, s3, t):
    """Let (THREADS, 2) or (THREADS, 4) columns meet the running maxima."""
    if x.shape[1] == 2:
        most, less = _meet(most, x)
        s1, s2, s3, t = _add(less, shift, s1, s2, s3, t)
    else:
        x0, x9 = halves(x)
        most, less = _meet(most, x0)
        s1, s2, s3, t = _add(less, shift, s1, s2, s3, t)
        most, less = _meet(most, x9)
        s1, s2, s3, t = _add(less, shift, s1, s2, s3, t)
    return most, s1, s2, s3, t


@triton.jit
def _cell(even, odd, shift, s1, s2, s3, t):
    """A thread's largest exponential, kept apart, and the sums with the other of its two lanes."""
    most, less = _meet(even, odd)
    y = less * _LOG2E - shift
    e = tl.exp2(y)
    s1, s2, s3 = join_lane(e, s1, s2, s3)
    y_most = most * _LOG2E - shift
    e_most = tl.exp2(y_most)
    return e_most, s1, s2, s3, t + tl.join(e * y, e_most * y_most)


@triton.jit(do_not_specialize=["T"])
def entropy_kernel(
    ref, cand, tokens, shifts, held, moments, totals, observed, ready, stride_ref, stride_cand, T, V, cells,
    THREADS: tl.constexpr, VEC: tl.constexpr, INNER: tl.constexpr, UNROLL: tl.constexpr, BINS: tl.constexpr,
    PACKED: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Two programs per row, one for either side; arguments and results as of ``span_kernel`` over whole rows, with
    totals (T, 1, 2) float64 = Σe·log₂e of the unnormalised exponentials of either side. EARLY marks the row twice."""
    open_chain(EARLY)
    row = tl.program_id(0) // 2
    which = tl.program_id(0) % 2
    BLOCK: tl.constexpr = THREADS * VEC
    at = row.to(tl.int64)
    slot = which * tl.cast(T, tl.int64) + at
    if which == 0:  # noqa: SIM108 (pointers do not go into a select)
        p = ref + at * stride_ref
    else:
        p = cand + at * stride_cand
    seen = tl.load(p + tl.load(tokens + row)).to(tl.float32)
    tl.store(observed + slot, seen)
    shift = guess_shift(p, seen, V, BLOCK, UNROLL)
    tl.store(shifts + slot, shift)

    thread = tl.arange(0, THREADS)
    kept = held + slot * cells + thread
    zero = tl.zeros((THREADS, 2), tl.float32)
    s1, s2, s3 = zero, zero, zero
    total = tl.zeros((THREADS,), tl.float64)
    full = V // (BLOCK * INNER)
    n_blocks = (V + BLOCK - 1) // BLOCK
    for group in range(0, (n_blocks + INNER - 1) // INNER):
        t = zero
        if group < full:
            if PACKED:
                words = tl.full((THREADS,), _FLOOR_WORD, tl.int32)
                for turn in range(0, INNER // UNROLL):
                    for j in tl.static_range(UNROLL):
                        w = load_words(p, group * INNER + turn * UNROLL + j, thread, THREADS, VEC)
                        words, s1, s2, s3, t = _fold_words(w, words, shift, s1, s2, s3, t)
                even, odd = unpack(words)
            else:
                most = tl.full((THREADS, 2), _FLOOR, tl.float32)
                for turn in range(0, INNER // UNROLL):
                    for j in tl.static_range(UNROLL):
                        x0, x9 = load_halves(p, group * INNER + turn * UNROLL + j, thread, THREADS, VEC, False)
                        most, s1, s2, s3, t = _fold(x0, most, shift, s1, s2, s3, t)
                        most, s1, s2, s3, t = _fold(x9, most, shift, s1, s2, s3, t)
                even, odd = tl.split(most)
        else:
            most = tl.full((THREADS, 2), _FLOOR, tl.float32)
            lane = thread[:, None] * VEC + tl.arange(0, VEC)[None, :]
            for block in range(full * INNER, n_blocks):
                cols = block * BLOCK + lane
                x = tl.load(p + cols, mask=cols < V, other=_FLOOR).to(tl.float32)
                # f16 has no such floor
                x0, x9 = halves(tl.maximum(x, _FLOOR, propagate_nan=tl.PropagateNan.ALL))
                most, s1, s2, s3, t = _fold(x0, most, shift, s1, s2, s3, t)
                most, s1, s2, s3, t = _fold(x9, most, shift, s1, s2, s3, t)
            even, odd = tl.split(most)
        e, s1, s2, s3, t = _cell(even, odd, shift, s1, s2, s3, t)
        tl.store(kept + group * THREADS, e)
        total += tl.sum(t, axis=1)
    tl.store(totals + at * 2 + which, tl.sum(total, axis=0))
    store_moments(moments + slot * 3 * BINS, s1, s2, s3, THREADS, BINS)
    mark_row(ready, row, EARLY)
