"""Triton: from the cells and sums of a row to its metrics and λ_max (one kernel)."""

# mypy: disable-error-code="misc, no-untyped-def, no-untyped-call, untyped-decorator, no-any-return"
from __future__ import annotations

import triton
import triton.language as tl

from quantvane.displacement.ops._triton_chain import await_row, close_chain, flag_row, mark_row, open_chain
from quantvane.displacement.ops._triton_span import INTERPRETED, LOG2E

__all__ = ["FINISH_FIELDS", "cell_columns", "finish_kernel", "reciprocal", "store_fields"]

_LOG2E = tl.constexpr(LOG2E)
_LN2 = tl.constexpr(0.6931471805599453)
_CERTAIN = tl.constexpr(1e-6)  # relative width of λ's interval above which a row is computed again
_TINY = tl.constexpr(1e-37)
_NEAR = tl.constexpr(1.0 - 2.0**-11)  # exponentials this close may have their logits in another order
_MANY = tl.constexpr(8)  # cells read again in search of the argmax
FINISH_FIELDS = (
    "kld", "nll_ref", "nll_cand", "delta_p", "entropy_ref", "entropy_cand",
    "pmax_ref", "pmax_cand", "lambda_ref", "lambda_cand",
)  # fmt: skip


@triton.jit
def _add3(a, b, c, x, y, z):
    return a + x, b + y, c + z


@triton.jit
def reciprocal(x):
    """To one unit in the last place; subnormal x gives infinity."""
    if INTERPRETED:
        return 1.0 / x
    return tl.inline_asm_elementwise(
        "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def _lambda_max(p, p1, q1, q2, q3):
    """(λ_max, whether float32 can hold it, certain) of diag(p) − ppᵀ, from the cells' largest probabilities and the
    moments of the rest.

    p (rows, bins) are the cells' largest but for the row's largest p1, q1…q3 (bins,) the moments.
    Newton on 1/ψ(λ) − 1 + λ/p₁ = 0, ψ(λ) = Σ_{i≥2} p_i/(λ−p_i), from the lower bound by p₁, p₂ and the
    remaining mass: it rises monotonically. The rest of one bin contributes, with Q_k = Σ p^k,
    Q₁/λ + Σ p²/(λ(λ−p)). That last term is a mean of the convex 1/(λ−p) under weights p²: Jensen bounds it
    below by the value at Q₃/Q₂, and, as no entry exceeds P = Q₃^⅓, the chord over [0, P] from above. Their
    midpoint is taken; λ is certain where the two bounds move it by less than a relative 10⁻⁶.
    """
    q2_safe = tl.maximum(q2, _TINY)
    # A cube that has underflowed says nothing: the square does.
    most = tl.where(q3 > 1e-30, tl.exp2(tl.log2(tl.maximum(q3, _TINY)) / 3.0) * 1.000001, tl.sqrt(q2))
    most = tl.minimum(tl.maximum(most, tl.where(q2 > 1e-30, 0.0, 1e-15)), q1)
    mean = tl.minimum(q3 / q2_safe, most)
    share = mean / tl.maximum(most, _TINY)
    p2 = tl.max(tl.maximum(tl.max(p, axis=0), mean), axis=0)
    s = tl.sum(tl.sum(p, axis=0) + q1, axis=0)
    r = tl.maximum(s - p2, 0.0)
    b = 2.0 * p1 * p2 + r * (p1 + p2)
    lam = 0.5 * (b + tl.sqrt(tl.maximum(b * b - 4.0 * p1 * p2 * r, 0.0)))
    lam = tl.minimum(tl.maximum(lam, tl.maximum(p2, _TINY)), p1)
    width = lam * 0.0
    step = lam
    for _ in range(4):
        inv = 1.0 / lam
        least = lam * 6e-8
        over = reciprocal(tl.maximum(lam - p, least))
        q = p * over
        low = reciprocal(tl.maximum(lam - mean, least))
        high = (1.0 - share) * inv + share * reciprocal(tl.maximum(lam - most, least))
        spread = q2 * inv * tl.maximum(high - low, 0.0)
        psi = tl.sum(q, axis=0) + q1 * inv + q2 * inv * low + 0.5 * spread
        slope = tl.sum(q * over, axis=0) + q1 * inv * inv + q2 * inv * low * (inv + low)
        psi, slope, spread = tl.reduce((psi, slope, spread), 0, _add3)
        psi = tl.maximum(psi, 1e-30)
        rise = 1.0 / p1 + slope / (psi * psi)
        width = spread / (psi * psi * rise * lam)
        step = (1.0 / psi - 1.0 + lam / p1) / rise
        lam = tl.minimum(tl.maximum(lam - step, p2), p1)
    outgrown = tl.max(tl.where(q2 > 0, most, 0.0), axis=0) >= lam
    tied = p2 >= p1 * 0.9999999
    settled = tl.abs(step) < 3e-6 * lam
    lam = tl.where(tied, p1, lam)
    # Below 1e-20 float32 exponentials underflow.
    return lam, s > 1e-20, tied | (settled & (width < _CERTAIN) & (outgrown == 0))


@triton.jit
def cell_columns(cell, THREADS: tl.constexpr, VEC: tl.constexpr, INNER: tl.constexpr, WIDE: tl.constexpr):
    """The columns (…, WIDE) of cells (…, 1); those from INNER·VEC on are not theirs."""
    spot = tl.arange(0, WIDE)
    block = (cell // THREADS) * INNER + spot // VEC
    return (block * THREADS + cell % THREADS) * VEC + spot % VEC


@triton.jit
def _first_top(
    v, ids, top, row, V,
    THREADS: tl.constexpr, VEC: tl.constexpr, INNER: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """(first column of the largest logit, found): only cells that may hold it are read again."""
    near = v >= top * _NEAR
    left = tl.sum(tl.sum(near.to(tl.int32), axis=0), axis=0)
    found = (left > 0) & (left <= _MANY)
    left = tl.where(found, left, 0)
    cell = tl.full((), -1, tl.int32)
    best = tl.full((), float("-inf"), tl.float32)
    first = tl.full((), 2147483647, tl.int32)
    while left > 0:
        cell = tl.min(tl.min(tl.where(near & (ids > cell), ids, 2147483647), axis=0), axis=0)
        cols = cell_columns(cell, THREADS, VEC, INNER, WIDE)
        fits = (tl.arange(0, WIDE) < INNER * VEC) & (cols < V)
        x = tl.load(row + cols, mask=fits, other=float("-inf")).to(tl.float32)
        most = tl.max(x, axis=0)
        col = tl.min(tl.where((x == most) & fits, cols, 2147483647), axis=0)
        first = tl.where(most > best, col, tl.where(most == best, tl.minimum(first, col), first))
        best = tl.maximum(best, most)
        left -= 1
    return first, found


@triton.jit
def _side(
    held, moments, tops, top_cols, row, V, cells, n_parts,
    CELLS: tl.constexpr, BINS: tl.constexpr, MOMENTS: tl.constexpr, PARTS: tl.constexpr,
    THREADS: tl.constexpr, VEC: tl.constexpr, INNER: tl.constexpr, WIDE: tl.constexpr,
    TRACKED: tl.constexpr, LAMBDA: tl.constexpr,
):  # fmt: skip
    """(Z, p_max, λ_max, argmax, sure) of one side of a row; pointers are to that side and row. Where the row is at hand
    whole (not TRACKED), a λ that is not certain comes out negative: reading the row once more will mend it."""
    ids = tl.arange(0, CELLS // MOMENTS)[:, None] * MOMENTS + tl.arange(0, MOMENTS)[None, :]
    v = tl.load(held + ids, mask=ids < n_parts * cells, other=0.0)
    i = tl.arange(0, MOMENTS)
    spot = (i // BINS) * (3 * BINS) + i % BINS
    real = i < n_parts * BINS
    r1 = tl.load(moments + spot, mask=real, other=0.0)
    r2 = tl.load(moments + spot + BINS, mask=real, other=0.0)
    r3 = tl.load(moments + spot + 2 * BINS, mask=real, other=0.0)
    most = tl.max(tl.max(v, axis=0), axis=0)
    if TRACKED:
        part = tl.arange(0, PARTS)
        x = tl.load(tops + part, mask=part < n_parts, other=float("-inf"))
        col = tl.load(top_cols + part, mask=part < n_parts, other=2147483647)
        best = tl.max(x, axis=0)
        first = tl.min(tl.where(x == best, col, 2147483647), axis=0)
        sure = best > float("-inf")
    else:
        first, sure = _first_top(v, ids, most, row, V, THREADS, VEC, INNER, WIDE)
    top = most.to(tl.float64)
    if LAMBDA:
        where = tl.min(tl.min(tl.where(v == most, ids, 2147483647), axis=0), axis=0)
        # The largest joins last, in float64: in float32 it would cost the others their low bits.
        rest = tl.where(ids == where, 0.0, v)
        z = tl.sum(tl.sum(rest, axis=0).to(tl.float64) + r1.to(tl.float64), axis=0) + top
        inv = (1.0 / z).to(tl.float32)
        lam, fits, certain = _lambda_max(rest * inv, most * inv, r1 * inv, r2 * inv * inv, (r3 * inv) * (inv * inv))
        sure = sure & fits & (tl.sum(r3, axis=0) < 1e37)
        if TRACKED:
            sure = sure & certain
        else:
            lam = tl.where(certain, lam, -lam)
    else:
        z = tl.sum(r1.to(tl.float64), axis=0)
        lam = most * float("nan")
    return z, top / z, lam, first, sure & (z > 1e-30) & (z < 1e37)


@triton.jit
def store_fields(out, row, T, kld, nll_a, nll_b, entropy_a, entropy_b, pa, pb, la, lb, norm_a, norm_b):
    """out (12, T) float64: FINISH_FIELDS, then ln Σe^x of either side."""
    side = tl.cast(T, tl.int64)
    tl.store(out + row, kld)
    tl.store(out + side + row, nll_a)
    tl.store(out + 2 * side + row, nll_b)
    tl.store(out + 3 * side + row, tl.exp(-nll_b) - tl.exp(-nll_a))
    tl.store(out + 4 * side + row, entropy_a)
    tl.store(out + 5 * side + row, entropy_b)
    tl.store(out + 6 * side + row, pa)
    tl.store(out + 7 * side + row, pb)
    tl.store(out + 8 * side + row, la)
    tl.store(out + 9 * side + row, lb)
    tl.store(out + 10 * side + row, norm_a)
    tl.store(out + 11 * side + row, norm_b)


@triton.jit(do_not_specialize=["T"])
def finish_kernel(
    held, moments, totals, shifts, observed, tops, top_cols, ref, cand, out, out_int, flags, queue, unsure, ready, done,
    stride_ref, stride_cand, V, T, cells, n_parts,
    CELLS: tl.constexpr, BINS: tl.constexpr, MOMENTS: tl.constexpr, PARTS: tl.constexpr,
    THREADS: tl.constexpr, VEC: tl.constexpr, INNER: tl.constexpr, WIDE: tl.constexpr,
    TRACKED: tl.constexpr, LAMBDA: tl.constexpr, ENTROPY: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One program per row, from what ``span_kernel`` left (n_parts per row) or, with ENTROPY, ``entropy_kernel``.

    Writes out (12, T) float64, see ``store_fields``, kld 0 with ENTROPY and the entropies 0 without; out_int (3, T)
    int32: both argmaxes (the third is left to ``overlap_kernel``); flags (T,) int32: 1 where the row must be computed
    again (more ties than fit, an infinite divergence, −inf, NaN or overflow), which queue lists, see ``flag_row``. Rows
    of which λ alone is not certain, it is then negative, are in unsure instead, laid out as queue is; if TRACKED they
    are flagged too. Without LAMBDA (only to measure what it costs) λ is NaN. EARLY: waits for the row in ready and
    marks it in done.
    """
    open_chain(EARLY)
    row = tl.program_id(0)
    at = row.to(tl.int64)
    side = tl.cast(T, tl.int64)
    await_row(ready, row, 2 if ENTROPY else n_parts, EARLY)
    za = tl.zeros((), tl.float64)
    pa, zb, pb = za, za, za
    la = tl.zeros((), tl.float32)
    lb = la
    top_a = tl.zeros((), tl.int32)
    top_b, good = top_a, top_a
    for which in range(2):  # a loop that stays one, or both sides would live in registers together
        slot = (which * side + at) * n_parts
        if which == 0:  # noqa: SIM108 (pointers do not go into a select)
            logits = ref + at * stride_ref
        else:
            logits = cand + at * stride_cand
        zb, pb, lb, top_b, sure = _side(
            held + slot * cells, moments + slot * 3 * BINS, tops + slot, top_cols + slot, logits, V, cells, n_parts,
            CELLS, BINS, MOMENTS, PARTS, THREADS, VEC, INNER, WIDE, TRACKED, LAMBDA,
        )  # fmt: skip
        za = tl.where(which == 0, zb, za)
        pa = tl.where(which == 0, pb, pa)
        la = tl.where(which == 0, lb, la)
        top_a = tl.where(which == 0, top_b, top_a)
        good += sure.to(tl.int32)
    ca = tl.load(shifts + row).to(tl.float64)
    cb = tl.load(shifts + side + row).to(tl.float64)
    # The softmax is in base 2 with float32(log2 e); what is in bits is divided by that same number.
    unit = 1.0 / tl.full((), _LOG2E, tl.float64)
    ln_a = tl.log(za)
    ln_b = tl.log(zb)
    bits_a = ln_a / _LN2
    bits_b = ln_b / _LN2
    norm_a = (ca + bits_a) * unit
    norm_b = (cb + bits_b) * unit
    nll_a = norm_a - tl.load(observed + row).to(tl.float64)
    nll_b = norm_b - tl.load(observed + side + row).to(tl.float64)
    kld = za * 0.0
    entropy_a = kld
    entropy_b = kld
    if ENTROPY:
        entropy_a = (bits_a - tl.load(totals + at * 2) / za) * unit
        entropy_b = (bits_b - tl.load(totals + at * 2 + 1) / zb) * unit
    else:
        part = tl.arange(0, PARTS)
        su = tl.sum(tl.load(totals + (at * n_parts + part) * 2, mask=part < n_parts, other=0.0), axis=0)
        kld = ((ln_b - ln_a) / _LN2 + (cb - ca)) * unit - su / za
    store_fields(out, row, T, kld, nll_a, nll_b, entropy_a, entropy_b, pa, pb, la, lb, norm_a, norm_b)
    tl.store(out_int + row, top_a)
    tl.store(out_int + side + row, top_b)
    # Comparisons are false for NaN.
    sane = (kld > -1.0) & (kld < 1e6) & (tl.abs(entropy_a) < 1e6) & (tl.abs(entropy_b) < 1e6)
    tl.store(flags + row, 0)
    if (sane & (good == 2)) == 0:
        flag_row(flags, queue, row, T)
    elif (la < 0) | (lb < 0):
        tl.store(unsure + 1 + tl.atomic_add(unsure, 1), row)
    mark_row(done, row, EARLY)
    close_chain(EARLY)
