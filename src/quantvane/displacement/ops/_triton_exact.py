"""Triton: whole rows, read again, for what the fast kernels decline (one kernel).

Every exponential is relative to the row's true maximum; float32 per entry and within one lane's few dozen
entries, float64 across lanes.
"""

# mypy: disable-error-code="misc, no-untyped-def, no-untyped-call, untyped-decorator, no-any-return"
from __future__ import annotations

import triton
import triton.language as tl

from quantvane.displacement.ops._triton_chain import await_all
from quantvane.displacement.ops._triton_derive import derive_rows
from quantvane.displacement.ops._triton_finish import store_fields
from quantvane.displacement.ops._triton_sharpen import sharpen_rows

__all__ = ["exact_kernel"]

_DERIVED = tl.constexpr(32)  # rows at once


@triton.jit
def _largest(x, V, BLOCK: tl.constexpr):
    """(largest logit, its first column, whether the row defines a distribution)."""
    lane = tl.arange(0, BLOCK)
    top = tl.full((BLOCK,), float("-inf"), tl.float32)
    seen = tl.zeros((BLOCK,), tl.int32)
    wrong = tl.zeros((BLOCK,), tl.int32)
    for low in range(0, V, BLOCK):
        v = tl.load(x + low + lane, mask=low + lane < V, other=float("-inf")).to(tl.float32)
        wrong += tl.where((v != v) | (v == float("inf")), 1, 0)
        better = v > top
        top = tl.where(better, v, top)
        seen = tl.where(better, low, seen)
    best = tl.max(top, axis=0)
    col = tl.min(tl.where(top == best, seen + lane, 2147483647), axis=0)
    ok = (tl.sum(wrong, axis=0) == 0) & (best > float("-inf"))
    return best, tl.where(ok, col, -1), ok


@triton.jit
def _wide_sum(x):
    return tl.sum(x.to(tl.float64), axis=0)


@triton.jit
def _next_top(x, value, col, V, BLOCK: tl.constexpr):
    """The entry after (value, col) in descending order, earlier columns first among equals; NaN never."""
    lane = tl.arange(0, BLOCK)
    top = tl.full((BLOCK,), float("-inf"), tl.float32)
    seen = tl.full((BLOCK,), 2147483647, tl.int32)
    for low in range(0, V, BLOCK):
        cols = low + lane
        v = tl.load(x + cols, mask=cols < V, other=float("-inf")).to(tl.float32)
        later = (cols < V) & ((v < value) | ((v == value) & (cols > col)))
        better = later & ((v > top) | (seen == 2147483647))
        top = tl.where(better, v, top)
        seen = tl.where(better, cols, seen)
    found = seen != 2147483647
    best = tl.max(tl.where(found, top, float("-inf")), axis=0)
    return best, tl.min(tl.where(found & (top == best), seen, 2147483647), axis=0)


@triton.jit
def _rest(x, second, col, low, V, BLOCK: tl.constexpr):
    """e^{x − x_2} of one block, 0 at the first largest entry and past the end."""
    cols = low + tl.arange(0, BLOCK)
    v = tl.load(x + cols, mask=cols < V, other=float("-inf")).to(tl.float32)
    return tl.where((cols < V) & (cols != col), tl.exp(v - second), 0.0)


@triton.jit
def _normaliser(x, best, col, V, BLOCK: tl.constexpr):
    """(x_2, e^{x_2 − x_1}, Σ_{i≥2} e^{x_i − x_2}): however far the second is below the first, nothing
    underflows."""
    second, _ = _next_top(x, best, col, V, BLOCK)
    second = tl.maximum(second, -1.0e30)
    s = tl.zeros((BLOCK,), tl.float32)
    for low in range(0, V, BLOCK):
        s += _rest(x, second, col, low, V, BLOCK)
    return second, tl.exp(second.to(tl.float64) - best.to(tl.float64)), _wide_sum(s)


@triton.jit
def _exact_lambda(x, second, col, kappa, s, V, BLOCK: tl.constexpr):
    """λ_max of diag(p) − ppᵀ by Newton on 1/ψ(λ) − 1 + λ/p₁ from below; p₁ = p₂ gives p₁, s = 0 gives 0.

    The iteration is for λ/p₂: ψ does not change under a common factor, so it solves 1/ψ = 1 − κλ/p₂ with
    κ = p₂/p₁, from the lower bound by p₁, p₂ and the remaining mass.
    """
    mass = 1.0 + kappa * s
    r = tl.maximum(s - 1.0, 0.0)
    b = 2.0 + r * (1.0 + kappa)
    lam = 0.5 * (b + tl.sqrt(tl.maximum(b * b - 4.0 * r * mass, 0.0))) / mass
    most = 1.0 / tl.maximum(kappa, 1e-300)
    lam = tl.minimum(tl.maximum(lam, 1.0), most)
    left = tl.where((s > 0) & (kappa < 1.0), 10, 0)
    while left > 0:
        psi = tl.zeros((BLOCK,), tl.float32)
        slope = tl.zeros((BLOCK,), tl.float32)
        at = lam.to(tl.float32)
        for low in range(0, V, BLOCK):
            e = _rest(x, second, col, low, V, BLOCK)
            gap = tl.maximum(at - e, at * 6e-8)
            q = e / gap
            psi += q
            slope += q / gap
        total = _wide_sum(psi)
        rise = _wide_sum(slope) / (total * total) + kappa
        step = (1.0 / total - 1.0 + kappa * lam) / rise
        lam = tl.minimum(tl.maximum(lam - step, 1.0), most)
        left = tl.where(tl.abs(step) > 1e-7 * lam, left - 1, 0)
    return tl.where(s > 0, kappa * lam / mass, 0.0)


@triton.jit
def _top_columns(x, best, col, V, K: tl.constexpr, KC: tl.constexpr, BLOCK: tl.constexpr):
    slot = tl.arange(0, KC)
    chosen = tl.where(slot == 0, col, -1)
    for i in range(1, K):
        best, col = _next_top(x, best, col, V, BLOCK)
        chosen = tl.where(slot == i, col, chosen)
    return chosen


@triton.jit
def _one_row(
    ref, cand, tokens, out, out_int, pair, ranks, stride_ref, stride_cand, V, T, row,
    K: tl.constexpr, KC: tl.constexpr, ALL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.cast(row, tl.int64)
    side = tl.cast(T, tl.int64)
    pa = ref + at * stride_ref
    pb = cand + at * stride_cand
    ma, ia, good_a = _largest(pa, V, BLOCK)
    mb, ib, good_b = _largest(pb, V, BLOCK)
    good = good_a & good_b
    top_a = ma.to(tl.float64)
    top_b = mb.to(tl.float64)
    second_a, kappa_a, rest_a = _normaliser(pa, ma, ia, V, BLOCK)
    second_b, kappa_b, rest_b = _normaliser(pb, mb, ib, V, BLOCK)
    sa = kappa_a * rest_a
    sb = kappa_b * rest_b
    norm_a = tl.log(1.0 + sa)
    norm_b = tl.log(1.0 + sb)
    # d is needed to better than p and q are: its constant part has a second word.
    apart = (top_a + norm_a) - (top_b + norm_b)
    apart = tl.where(tl.abs(apart) < 1e-13, 0.0, apart)  # rounding of equal normalisers
    apart_high = apart.to(tl.float32)
    apart_low = (apart - apart_high.to(tl.float64)).to(tl.float32)
    HALF: tl.constexpr = BLOCK // 2
    lane = tl.arange(0, HALF)
    zero = tl.zeros((HALF,), tl.float32)
    kld, kld_rev, jsd, tv, h2, entropy_a, entropy_b = zero, zero, zero, zero, zero, zero, zero
    above = tl.zeros((HALF,), tl.int32)
    level = tl.load(pb + tl.maximum(ia, 0)).to(tl.float32)
    inv_a = (1.0 / (1.0 + sa)).to(tl.float32)
    inv_b = (1.0 / (1.0 + sb)).to(tl.float32)
    for low in range(0, V, HALF):
        cols = low + lane
        ok = cols < V
        a = tl.load(pa + cols, mask=ok, other=float("-inf")).to(tl.float32)
        b = tl.load(pb + cols, mask=ok, other=float("-inf")).to(tl.float32)
        above += tl.where(ok & ((b > level) | ((b == level) & (cols < ia))), 1, 0)
        p = tl.exp(a - ma) * inv_a
        q = tl.exp(b - mb) * inv_b
        some_a = p > 0
        some_b = q > 0
        both = some_a & some_b
        # 0·ln 0 = 0; a −inf on one side alone makes a divergence infinite, as it should.
        d = tl.where(some_a | some_b, ((b - a) + apart_high) + apart_low, 0.0)
        same = d == 0.0  # exactly, where a fused q − p would leave a rounding error
        kld += tl.where(same, 0.0, tl.where(some_a, (q - p) - p * d, q))
        kld_rev += tl.where(same, 0.0, tl.where(some_b, (p - q) + q * d, p))
        # p ln(p/m) + q ln(q/m), m = (p+q)/2
        u = tl.exp(-tl.abs(d))
        jensen = -(tl.maximum(p, q) * ((1.0 + u) * tl.log(0.5 + 0.5 * u))) - tl.minimum(p, q) * tl.abs(d)
        jsd += tl.where(both, tl.where(same, 0.0, jensen), (p + q) * 0.6931471805599453)
        tv += tl.where(same, 0.0, tl.abs(p - q))
        root = tl.sqrt(p) - tl.sqrt(q)
        h2 += tl.where(same, 0.0, root * root)
        entropy_a += tl.where(some_a, p * (ma - a), 0.0)
        entropy_b += tl.where(some_b, q * (mb - b), 0.0)
    token = tl.load(tokens + row)
    nll_a = norm_a - (tl.load(pa + token).to(tl.float64) - top_a)
    nll_b = norm_b - (tl.load(pb + token).to(tl.float64) - top_b)
    lam_a = _exact_lambda(pa, second_a, ia, kappa_a, rest_a, V, BLOCK)
    lam_b = _exact_lambda(pb, second_b, ib, kappa_b, rest_b, V, BLOCK)
    # Added to every value: 0, or NaN where a row is no distribution.
    nothing = tl.where(good, 0.0, float("nan")).to(tl.float64)
    divergence = tl.maximum(_wide_sum(kld), 0.0) + nothing
    store_fields(
        out, row, T, divergence, nll_a + nothing, nll_b + nothing,
        norm_a + _wide_sum(entropy_a) + nothing, norm_b + _wide_sum(entropy_b) + nothing,
        1.0 / (1.0 + sa) + nothing, 1.0 / (1.0 + sb) + nothing, lam_a + nothing, lam_b + nothing,
        norm_a + top_a, norm_b + top_b,
    )  # fmt: skip
    tl.store(out_int + row, tl.where(good, ia, -1))
    tl.store(out_int + side + row, tl.where(good, ib, -1))
    if ALL:
        list_a = _top_columns(pa, ma, ia, V, K, KC, BLOCK)
        list_b = _top_columns(pb, mb, ib, V, K, KC, BLOCK)
        shared = (list_a[:, None] == list_b[None, :]) & (list_a >= 0)[:, None]
        tl.store(out_int + 2 * side + row, tl.sum(tl.sum(shared.to(tl.int32), axis=1), axis=0))
        tl.store(pair + row, divergence)
        tl.store(pair + side + row, tl.maximum(_wide_sum(kld_rev), 0.0) + nothing)
        tl.store(pair + 2 * side + row, tl.maximum(0.5 * _wide_sum(jsd), 0.0) + nothing)
        tl.store(pair + 3 * side + row, 0.5 * _wide_sum(tv) + nothing)
        tl.store(pair + 4 * side + row, tl.minimum(0.5 * _wide_sum(h2), 1.0) + nothing)
        tl.store(ranks + row, tl.where(good, tl.sum(above, axis=0), -1))


@triton.jit(do_not_specialize=["T"])
def exact_kernel(
    ref, cand, tokens, out, out_int, same, pair, derived, ranks, flags, queue, unsure, arrived, scratch,
    stride_ref, stride_cand, V, T,
    K: tl.constexpr, KC: tl.constexpr, ALL: tl.constexpr, WORDS: tl.constexpr, BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """Last of a chain. The rows in queue (1 + T,) int32, their number first: every program takes each n-th of them.
    Before them λ_max alone of the rows in unsure, see ``sharpen_rows``, and of all rows what ``derive_rows`` gives.

    Writes out (12, T) and out_int (3, T) as ``finish_kernel`` does, and with ALL pair (5, T) and ranks (T,)
    as ``pair_kernel`` does. A row with a NaN, a +inf or no finite logit gets NaN everywhere and indices −1.
    """
    await_all(EARLY)
    lane = tl.arange(0, _DERIVED)
    for start in range(tl.program_id(0) * _DERIVED, T, tl.num_programs(0) * _DERIVED):
        row = start + lane
        good = tl.load(flags + row, mask=row < T, other=1) == 0
        derive_rows(row, good, out_int, pair, same, derived, T, K, ALL)
    sharpen_rows(
        ref, cand, out, out_int, flags, unsure, arrived, scratch, stride_ref, stride_cand, V, T, WORDS, BLOCK
    )
    for i in range(tl.program_id(0), tl.minimum(tl.load(queue), T), tl.num_programs(0)):
        row = tl.load(queue + 1 + i)
        _one_row(
            ref, cand, tokens, out, out_int, pair, ranks, stride_ref, stride_cand, V, T, row, K, KC, ALL, BLOCK
        )
        tl.debug_barrier()  # what one thread stored, another reads
        derive_rows(row + lane, lane == 0, out_int, pair, same, derived, T, K, ALL)
