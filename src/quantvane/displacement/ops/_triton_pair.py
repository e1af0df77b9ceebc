"""Triton: a second read of two logit rows, for what needs both normalisers first (one kernel).

With d = ln q − ln p, per column from √p and √q::

    kld = −Σ p·d     kld_rev = Σ q·d     tv = ½Σ|q − p|     1 − Σ√(pq) = ½Σ(√q − √p)²
    jsd = ½Σ [p ln p + q ln q − (p+q) ln((p+q)/2)]

in float32 within a group of blocks, float64 across. Errors are about 1e-7 absolute.
"""

# mypy: disable-error-code="misc, no-untyped-def, no-untyped-call, untyped-decorator, no-any-return"
from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice

from quantvane.displacement.ops._triton_chain import await_row, close_chain, flag_row, open_chain
from quantvane.displacement.ops._triton_span import INTERPRETED, LOG2E, finite_floor, halves, load_halves

__all__ = ["N_PAIR", "pair_kernel"]

N_PAIR = 5
_LOG2E = tl.constexpr(LOG2E)
_HALF = tl.constexpr(0.5 * LOG2E)
_LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _log2(x):
    """lg2.approx on the device; the interpreter has no device library."""
    if INTERPRETED:
        return tl.log2(x)
    return libdevice.fast_log2f(x)


@triton.jit
def _block(a, b, ca, cb, ratio, level, fp, fq, tv, h2, fm, above):
    """Fold one block; ca, cb are half shifts in base 2, ratio completes √q to the scale of √p.

    Differences of p and q, and of their roots, are fused with the ratio: exactly 0 for equal rows, whose ratio is 1.
    """
    xa = a * _HALF - ca
    xb = b * _HALF - cb
    ra = tl.exp2(xa)
    rb = tl.exp2(xb)
    p = ra * ra
    q = rb * rb
    d = xb - xa
    square = ratio * ratio
    apart = tl.fma(q, -square, p)
    root = tl.fma(rb, -ratio, ra)
    both = tl.fma(q, square, p)
    over = 2.0 * xa - _log2(both)
    return (
        fp + p * d, fq + q * d, tv + tl.abs(apart), h2 + root * root, fm + both * over,
        above + tl.where(b > level, 1.0, 0.0),
    )  # fmt: skip


@triton.jit
def _fold(a, b, ca, cb, ratio, level, fp, fq, tv, h2, fm, above, LANES: tl.constexpr):
    """``_block`` for (THREADS, LANES) or twice for (THREADS, 2·LANES) columns."""
    if a.shape[1] == LANES:
        fp, fq, tv, h2, fm, above = _block(a, b, ca, cb, ratio, level, fp, fq, tv, h2, fm, above)
    else:
        a0, a9 = halves(a)
        b0, b9 = halves(b)
        l0, l9 = level, level
        if len(level.shape) == 2:
            l0, l9 = halves(level)
        fp, fq, tv, h2, fm, above = _block(a0, b0, ca, cb, ratio, l0, fp, fq, tv, h2, fm, above)
        fp, fq, tv, h2, fm, above = _block(a9, b9, ca, cb, ratio, l9, fp, fq, tv, h2, fm, above)
    return fp, fq, tv, h2, fm, above


@triton.jit(do_not_specialize=["T"])
def pair_kernel(
    ref, cand, norms, tops, out, ranks, flags, queue, done, stride_ref, stride_cand, V, T,
    THREADS: tl.constexpr, VEC: tl.constexpr, LANES: tl.constexpr, INNER: tl.constexpr, UNROLL: tl.constexpr,
    PACKED: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One program per row: out (5, T) float64 in the order kld, kld_rev, jsd, tv, hellinger².

    Reads norms (2, T) float64, ln Σe^x of both rows; tops (T,) int32, the reference's argmax, whose rank
    among the candidate's logits goes to ranks (T,). A row whose sums are not finite is flagged, see ``flag_row``; one
    that is flagged already is left out. EARLY: what it reads of a row is there once ``done`` says so, see
    ``_triton_chain``.
    """
    open_chain(EARLY)
    row = tl.program_id(0)
    at = row.to(tl.int64)
    side = tl.cast(T, tl.int64)
    await_row(done, row, 1, EARLY)
    if tl.load(flags + row) == 0:
        _pair(
            ref + at * stride_ref, cand + at * stride_cand, norms, tops, out, ranks, flags, queue, row, side, V,
            THREADS, VEC, LANES, INNER, UNROLL, PACKED,
        )  # fmt: skip
    close_chain(EARLY)


@triton.jit
def _pair(
    pa, pb, norms, tops, out, ranks, flags, queue, row, side, V,
    THREADS: tl.constexpr, VEC: tl.constexpr, LANES: tl.constexpr, INNER: tl.constexpr, UNROLL: tl.constexpr,
    PACKED: tl.constexpr,
):  # fmt: skip
    BLOCK: tl.constexpr = THREADS * VEC
    # Shifts on a grid of 2⁻¹⁰, where float32 holds them and their difference exactly; what is left over of
    # the normalisers is a common factor of p and q (mass) and a ratio near 1 between them.
    norm = tl.load(norms + row)
    bits = norm * _LOG2E
    apart = (tl.load(norms + side + row) - norm) * _LOG2E  # exactly 0 for equal rows, even if fused
    grid = tl.floor(bits * 1024.0 + 0.5) / 1024.0
    step = tl.floor(apart * 1024.0 + 0.5) / 1024.0
    left = apart - step
    mass = tl.exp((bits - grid) * _LN2)
    ratio = tl.exp(-0.5 * _LN2 * left).to(tl.float32)
    ca = (0.5 * grid).to(tl.float32)
    cb = (0.5 * (grid + step)).to(tl.float32)
    target = tl.minimum(tl.maximum(tl.load(tops + row), 0), V - 1)  # a row without argmax is flagged already
    level = finite_floor(tl.load(pb + target).to(tl.float32))
    code = level.to(tl.int32, bitcast=True)
    code = tl.where(level == 0.0, -2147483647, tl.where(level > 0.0, code - 1, code + 1))
    below = code.to(tl.float32, bitcast=True)  # the next smaller float32
    thread = tl.arange(0, THREADS)
    zero = tl.zeros((THREADS, LANES), tl.float32)
    wide = tl.zeros((THREADS,), tl.float64)
    d0, d1, d2, d3, d4 = wide, wide, wide, wide, wide
    above = zero  # a count below 2²⁴: exact in float32
    full = V // (BLOCK * UNROLL)
    n_blocks = (V + BLOCK - 1) // BLOCK
    for outer in range(0, (full + INNER - 1) // INNER):
        f0, f1, f2, f3, f4 = zero, zero, zero, zero, zero
        for turn in range(outer * INNER, tl.minimum(outer * INNER + INNER, full)):
            for j in tl.static_range(UNROLL):
                block = turn * UNROLL + j
                a0, a9 = load_halves(pa, block, thread, THREADS, VEC, PACKED)
                b0, b9 = load_halves(pb, block, thread, THREADS, VEC, PACKED)
                # Wholly before the target's column an equal logit ranks ahead of it too.
                bar = tl.where((block + 1) * BLOCK <= target, below, level)
                f0, f1, f2, f3, f4, above = _fold(
                    a0, b0, ca, cb, ratio, bar, f0, f1, f2, f3, f4, above, LANES
                )
                f0, f1, f2, f3, f4, above = _fold(
                    a9, b9, ca, cb, ratio, bar, f0, f1, f2, f3, f4, above, LANES
                )
        d0 += tl.sum(f0, axis=1)
        d1 += tl.sum(f1, axis=1)
        d2 += tl.sum(f2, axis=1)
        d3 += tl.sum(f3, axis=1)
        d4 += tl.sum(f4, axis=1)
    lane = thread[:, None] * VEC + tl.arange(0, VEC)[None, :]
    f0, f1, f2, f3, f4 = zero, zero, zero, zero, zero
    for block in range(full * UNROLL, n_blocks):
        cols = block * BLOCK + lane
        ok = cols < V
        # Past the end both rows are the same: no divergence, and a mass too small to count.
        a = tl.load(pa + cols, mask=ok, other=0.0).to(tl.float32)
        b = tl.load(pb + cols, mask=ok, other=0.0).to(tl.float32)
        a0, a9 = halves(tl.where(ok, a, (ca - 60.0) / _HALF))
        b0, b9 = halves(tl.where(ok, b, (cb - 60.0) / _HALF))
        o0, o9 = halves(ok.to(tl.int32))
        bar = tl.where((block + 1) * BLOCK <= target, below, level)
        f0, f1, f2, f3, f4, above = _fold(
            a0, b0, ca, cb, ratio, tl.where(o0 != 0, bar, float("inf")), f0, f1, f2, f3, f4, above, LANES
        )
        f0, f1, f2, f3, f4, above = _fold(
            a9, b9, ca, cb, ratio, tl.where(o9 != 0, bar, float("inf")), f0, f1, f2, f3, f4, above, LANES
        )
    cols = (target // BLOCK) * BLOCK + lane
    b = tl.load(pb + cols, mask=cols < target, other=float("-inf")).to(tl.float32)
    count = tl.sum(above, axis=1) + tl.sum(tl.where((b == level) & (cols < target), 1.0, 0.0), axis=1)
    half_bits = 2.0 / mass  # the d of _block is half of log2 q/p, but for ``left``
    square = (ratio * ratio).to(tl.float64)
    log_p = tl.sum(d0 + tl.sum(f0, axis=1), axis=0) * half_bits - left
    log_q = tl.sum(d1 + tl.sum(f1, axis=1), axis=0) * square * half_bits - left
    tv = 0.5 * tl.sum(d2 + tl.sum(f2, axis=1), axis=0) / mass
    h2 = 0.5 * tl.sum(d3 + tl.sum(f3, axis=1), axis=0) / mass
    mixed = tl.sum(d4 + tl.sum(f4, axis=1), axis=0) / mass
    unit = 1.0 / tl.full((), _LOG2E, tl.float64)
    kld = -log_p * unit
    kld_rev = log_q * unit
    jsd = 0.5 * unit * (mixed + log_q + 2.0)
    sane = (tl.abs(kld) < 1e6) & (tl.abs(kld_rev) < 1e6) & (tl.abs(jsd) < 2.0) & (h2 < 2.0) & (tv < 2.0)
    kld = tl.maximum(kld, 0.0)
    kld_rev = tl.maximum(kld_rev, 0.0)
    jsd = tl.minimum(tl.maximum(jsd, 0.0), 0.125 * (kld + kld_rev))  # holds term by term; tight when small
    tl.store(out + row, kld)
    tl.store(out + side + row, kld_rev)
    tl.store(out + 2 * side + row, jsd)
    tl.store(out + 3 * side + row, tl.minimum(tv, 1.0))
    tl.store(out + 4 * side + row, tl.minimum(h2, 1.0))
    tl.store(ranks + row, tl.sum(count, axis=0).to(tl.int32))
    if sane == 0:
        flag_row(flags, queue, row, side)
