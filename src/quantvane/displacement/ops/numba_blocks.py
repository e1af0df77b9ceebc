"""Vector loops of the fast kernel: straight-line float32 code over a block that lies in the L1 cache.

LLVM turns each loop into AVX2 or AVX-512 code without a vector math library, because it holds no call and no
branch: the exponential is a polynomial with the power of two put together in the exponent bits.

Only the additions into the block sums may be reordered (``_sum``), and only the block maxima ignore NaN
(``_larger``). All other operations keep the order written here, which the cancellation-free forms need.
A NaN logit always reaches the sum of exponentials (`sum_exp`), which is where callers look for it. Padding
with −inf on both sides adds nothing to any sum.

Numba's cache does not see that `numba_rows` holds compiled copies of these loops: after an edit here, remove
its cached files (``*.nbi``, ``*.nbc``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

__all__ = ["BLOCK", "divergences", "extent", "forward_kl", "moments", "sum_exp"]

BLOCK = 1024  # of the loops over both rows: longer amortises the horizontal sums, shorter sums better

JIT: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy", "fastmath": {"contract"}}
_INLINE: dict[str, Any] = {**JIT, "forceinline": True}
_REORDER = ("reassoc", "nsz", "contract")

f32 = np.float32
_LOG2E = f32(1.4426950408889634)
_LN2_HIGH = f32(0.693359375)  # 9 bits: a multiple by |n| < 2¹⁴ is exact
_LN2_LOW = f32(-2.1219444005469057e-4)
_MAGIC = f32(12582912.0 + 127.0)  # 1.5·2²³ rounds a small number to an integer; 127 is the exponent's bias
_LOWEST = f32(-88.1)  # e to it is taken as 0: rounds to n = −127, whose exponent field is empty
_HUGE = f32(1e37)  # in place of |ln p − ln q| = ∞ and of ∞ − ∞; times p = 0 it is 0
_ZERO, _HALF, _ONE, _TWO = f32(0), f32(0.5), f32(1), f32(2)
# Least-maximum fits: (e^s − 1 − s)/s² on |s| ≤ ln 2 / 2 to 6e-8, and
_P0, _P1, _P2, _P3, _P4 = (
    f32(c) for c in (0.500000003, 0.166665766, 0.0416663741, 0.00836323507, 0.0013941218)
)
# ½ − (2−E)·(ln(1−E/2) + E/2)/E² on [0, 1] to 7e-9.
_N0, _N1, _N2, _N3 = (f32(c) for c in (0.750000007, -0.0416674802, -0.0104006442, -0.00324428765))
_N4, _N5, _N6, _N7 = (f32(c) for c in (-0.000612263977, -0.00118710136, 0.000667115586, -0.000408157707))


@intrinsic  # type: ignore[untyped-decorator]
def _sum(context: Any, a: Any, b: Any) -> Any:
    """a + b that may be reordered among its like."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fadd(*args, flags=_REORDER)

    return types.float32(types.float32, types.float32), build


@intrinsic  # type: ignore[untyped-decorator]
def _larger(context: Any, a: Any, b: Any) -> Any:
    """max(a, b), undefined for NaN, which lets LLVM reduce it in vectors."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        flags = ("nnan", "nsz")
        return builder.select(builder.fcmp_ordered(">", *args, flags=flags), *args, flags=flags)

    return types.float32(types.float32, types.float32), build


@intrinsic  # type: ignore[untyped-decorator]
def _exponent(context: Any, k: Any) -> Any:
    """The low bits of a float32 moved into its exponent field: 2^n for k = n + _MAGIC."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(32)
        bits = builder.bitcast(args[0], word)
        return builder.bitcast(builder.shl(bits, ir.Constant(word, 23)), ir.FloatType())

    return types.float32(types.float32), build


@njit(**_INLINE)  # type: ignore[untyped-decorator]
def _reduce(a: Any) -> Any:
    """(2^n, s, s²P(s)) with e^a = 2^n·(1 + s + s²P(s)); a in [−88.1, 88]. n = 0 gives s = a exactly."""
    k = a * _LOG2E + _MAGIC
    n = k - _MAGIC
    s = a - n * _LN2_HIGH
    s = s - n * _LN2_LOW
    poly = (((_P4 * s + _P3) * s + _P2) * s + _P1) * s + _P0
    return _exponent(k), s, s * s * poly


@njit(**_INLINE)  # type: ignore[untyped-decorator]
def _exp(a: Any) -> Any:
    """e^a for a ≤ 0; NaN stays NaN."""
    scale, s, curve = _reduce(_LOWEST if a < _LOWEST else a)
    return scale + scale * (s + curve)


@njit(**_INLINE)  # type: ignore[untyped-decorator]
def _decay(v: Any) -> Any:
    """(e^{−v}, 1 − e^{−v}, v − 1 + e^{−v}) for v ≥ 0, each to relative accuracy and exact at 0."""
    scale, s, curve = _reduce(-v if v < -_LOWEST else _LOWEST)
    left = scale + scale * (s + curve)
    gone = (_ONE - scale) - scale * (s + curve)
    over = scale * curve + ((scale - _ONE) + (scale * s + v))
    return left, gone, over


@njit(**JIT)  # type: ignore[untyped-decorator]
def extent(x: Any) -> Any:
    """Largest and smallest logit."""
    high, low = x[0], -x[0]
    for i in range(x.size):
        high = _larger(high, x[i])
        low = _larger(low, -x[i])
    return high, -low


@njit(**JIT)  # type: ignore[untyped-decorator]
def sum_exp(x: Any, top: Any) -> Any:
    """Σ e^{x − top}, with top ≥ max x."""
    total = _ZERO
    for i in range(x.size):
        total = _sum(total, _exp(x[i] - top))
    return total


@njit(**_INLINE)  # type: ignore[untyped-decorator]
def _log_prob(x: Any, high: Any, low: Any) -> Any:
    """x − (high + low), at least `_LOWEST`; the normaliser in two words, for its rounding to bias no sum."""
    lp = (x - high) - low
    return lp if lp > _LOWEST else _LOWEST


@njit(**_INLINE)  # type: ignore[untyped-decorator]
def _distance(x: Any, y: Any, norms: Any) -> Any:
    """t = ln p − ln q and |t|, the latter `_HUGE` for ±∞ and for ∞ − ∞."""
    t = (((x - norms[6]) - (y - norms[7])) - norms[4]) - norms[5]
    u = abs(t)
    return t, (u if u < _HUGE else _HUGE)


@njit(**JIT)  # type: ignore[untyped-decorator]
def forward_kl(x: Any, y: Any, norms: Any) -> Any:
    """The part of kld from one block; formulas in `numpy_rows`.

    Args:
        x, y: (n,) float32 logits.
        norms: (8,) float32: high and low word of ln Σe^x, and of ln Σe^y; an offset of x, and one of y, in
            the last two places; in between, the two words of ln Σe^x − ln Σe^y less those offsets. Offsets
            are 0 where the rows lie close, for then x − y is exact.
    """
    ph, pl, qh, ql = norms[0], norms[1], norms[2], norms[3]
    kld = _ZERO
    for i in range(x.size):
        lp, lq = _log_prob(x[i], ph, pl), _log_prob(y[i], qh, ql)
        t, u = _distance(x[i], y[i], norms)
        h = _exp(lp if lp > lq else lq)
        left, gone, alpha = _decay(u)
        beta = gone * gone - left * alpha
        kld = _sum(kld, h * (alpha if t > _ZERO else beta))
    return kld


@njit(**JIT)  # type: ignore[untyped-decorator]
def divergences(x: Any, y: Any, norms: Any, p: Any, q: Any, acc: Any) -> None:
    """Everything that needs both rows, added into acc, and the block's probabilities, put into p and q.

    Args:
        x, y, norms: as for `forward_kl`.
        p, q: (≥ n,) float32, overwritten.
        acc: (≥ 7,) float64: kld, kld_rev, 2·jsd, 2·tv, 2·h2, entropy of p, of q.
    """
    ph, pl, qh, ql = norms[0], norms[1], norms[2], norms[3]
    kld, rev, jsd, tv, h2, ent_p, ent_q = _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO
    for i in range(x.size):
        lp, lq = _log_prob(x[i], ph, pl), _log_prob(y[i], qh, ql)
        t, u = _distance(x[i], y[i], norms)
        h = _exp(lp if lp > lq else lq)
        root, half, over = _decay(_HALF * u)  # of e^{−u/2}, from which those of e^{−u} follow without loss
        left = root * root
        gone = half * (_TWO - half)
        alpha = _TWO * over + half * half
        cross = left * alpha
        square = gone * gone
        beta = square - cross
        upper = ((_N7 * gone + _N6) * gone + _N5) * gone + _N4
        ratio = (((upper * gone + _N3) * gone + _N2) * gone + _N1) * gone + _N0
        ahead = t > _ZERO
        small = h * left
        pi = h if ahead else small
        qi = small if ahead else h
        p[i] = pi
        q[i] = qi
        kld = _sum(kld, h * (alpha if ahead else beta))
        rev = _sum(rev, h * (beta if ahead else alpha))
        jsd = _sum(jsd, h * (square * ratio - cross))
        tv = _sum(tv, h * gone)
        h2 = _sum(h2, h * (half * half))
        ent_p = _sum(ent_p, -pi * lp)
        ent_q = _sum(ent_q, -qi * lq)
    acc[0] += kld
    acc[1] += rev
    acc[2] += jsd
    acc[3] += tv
    acc[4] += h2
    acc[5] += ent_p
    acc[6] += ent_q


@njit(**JIT)  # type: ignore[untyped-decorator]
def moments(x: Any, p: Any, cut: Any, scale: Any, acc: Any) -> None:
    """Σ w, Σ w², … Σ w⁵ of w = p·scale over the entries with x ≤ cut, added into acc (5,) float64."""
    s1, s2, s3, s4, s5 = _ZERO, _ZERO, _ZERO, _ZERO, _ZERO
    for i in range(x.size):
        w = p[i] * scale
        w = _ZERO if x[i] > cut else w
        ww = w * w
        s1 = _sum(s1, w)
        s2 = _sum(s2, ww)
        s3 = _sum(s3, ww * w)
        s4 = _sum(s4, ww * ww)
        s5 = _sum(s5, ww * ww * w)
    acc[0] += s1
    acc[1] += s2
    acc[2] += s3
    acc[3] += s4
    acc[4] += s5
