"""Triton: λ_max of rows of which it alone is open, by one more read of the row that several programs share."""

# mypy: disable-error-code="misc, no-untyped-def, no-untyped-call, untyped-decorator, no-any-return"
from __future__ import annotations

import triton
import triton.language as tl

from quantvane.displacement.ops._triton_finish import reciprocal

__all__ = ["sharpen_rows"]

_MOST_PARTS = tl.constexpr(16)  # of a row, each one's sums taken by a program


@triton.jit
def _sums(x, top, col, at, low, high, BLOCK: tl.constexpr):
    """(ψ, −ψ', p₂/p₁) over columns low … high − 1, all relative to p₁ and at λ/p₁ = at; float64."""
    lane = tl.arange(0, BLOCK)
    psi = tl.zeros((BLOCK,), tl.float32)
    slope = tl.zeros((BLOCK,), tl.float32)
    second = tl.zeros((BLOCK,), tl.float32)
    least = at * 6e-8
    for start in range(low, high, BLOCK):
        cols = start + lane
        v = tl.load(x + cols, mask=cols < high, other=float("-inf")).to(tl.float32)
        e = tl.where(cols == col, 0.0, tl.exp(v - top))
        over = reciprocal(tl.maximum(at - e, least))
        q = e * over
        psi += q
        slope += q * over
        second = tl.maximum(second, e)
    return (
        tl.sum(psi.to(tl.float64), axis=0), tl.sum(slope.to(tl.float64), axis=0),
        tl.max(second, axis=0).to(tl.float64),
    )  # fmt: skip


@triton.jit
def _newton(lam, psi, slope, p2, largest):
    """(next λ/p₁, whether it is within about 1e-7) from the sums at lam; largest is p₁.

    The function of which λ is the root is concave and rises: a Newton step from anywhere ends below the root, and from
    there it never passes it. So only the lower bound by p₁, p₂ and the remaining mass has to be kept.
    """
    mass = 1.0 / largest
    r = tl.maximum(mass - 1.0 - p2, 0.0)
    b = 2.0 * p2 + r * (1.0 + p2)
    least = 0.5 * (b + tl.sqrt(tl.maximum(b * b - 4.0 * r * p2 * mass, 0.0))) / mass
    step = (1.0 / psi - 1.0 + lam) / (slope / (psi * psi) + 1.0)
    below = lam <= p2  # no estimate at all
    tied = p2 >= 0.9999999
    following = tl.minimum(tl.maximum(tl.where(below, 0.0, lam - step), tl.maximum(least, p2)), 1.0)
    # What a Newton step leaves is about its square over the distance to the pole at p₂.
    near = (step * step <= 1e-7 * following * (following - p2)) | (tl.abs(step) <= 1e-7 * lam)
    return tl.where(tied, 1.0, following), tied | (near & (below == 0))


@triton.jit
def _left(scratch, parts):
    """What the parts have left, 0 after the last; not out of this multiprocessor's own cache."""
    spot = tl.arange(0, _MOST_PARTS)
    return tl.load(scratch + spot, mask=spot < parts, other=0.0, cache_modifier=".cg").to(tl.float64)


@triton.jit
def _sharpen(x, out, col, T, row, which, part, parts, arrived, scratch, V, BLOCK: tl.constexpr):
    """One part of one side of a row; the program that comes last puts the parts together and writes λ_max."""
    side = tl.cast(T, tl.int64)
    place = out + (8 + which) * side + row
    largest = tl.load(out + (6 + which) * side + row)
    lam = tl.minimum(-tl.load(place) / largest, 1.0)
    top = tl.load(x + col).to(tl.float32)
    share = tl.cdiv(V, parts)
    psi, slope, p2 = _sums(x, top, col, lam.to(tl.float32), part * share, tl.minimum(part * share + share, V), BLOCK)
    tl.store(scratch + part, psi.to(tl.float32))
    tl.store(scratch + _MOST_PARTS + part, slope.to(tl.float32))
    tl.store(scratch + 2 * _MOST_PARTS + part, p2.to(tl.float32))
    tl.debug_barrier()
    if tl.atomic_add(arrived + which * side + row, 1, sem="acq_rel") == parts - 1:
        tl.debug_barrier()
        psi = tl.sum(_left(scratch, parts), axis=0)
        slope = tl.sum(_left(scratch + _MOST_PARTS, parts), axis=0)
        p2 = tl.max(_left(scratch + 2 * _MOST_PARTS, parts), axis=0)
        lam, near = _newton(lam, psi, slope, p2, largest)
        left = tl.where(near, 0, 10)
        while left > 0:  # the estimate was poor: alone from here on
            psi, slope, p2 = _sums(x, top, col, lam.to(tl.float32), 0, V, BLOCK)
            lam, near = _newton(lam, psi, slope, p2, largest)
            left = tl.where(near, 0, left - 1)
        tl.store(place, lam * largest)


@triton.jit
def sharpen_rows(
    ref, cand, out, out_int, flags, unsure, arrived, scratch, stride_ref, stride_cand, V, T,
    WORDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """λ_max of the rows in unsure (1 + T,) int32, their number first, where it is negative: minus an estimate.

    arrived (2, T) int32 starts at zero; scratch (2, T, WORDS) float32 is anything, WORDS at least 48. A flagged row is
    left to those who compute it whole.
    """
    side = tl.cast(T, tl.int64)
    sides = 2 * tl.minimum(tl.load(unsure), T)
    parts = tl.full((), _MOST_PARTS, tl.int32)
    while (parts > 1) & (sides * parts > tl.num_programs(0)):
        parts = parts // 2
    items = sides * parts
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        row = tl.load(unsure + 1 + item // (2 * parts))
        which = (item // parts) % 2
        at = tl.cast(row, tl.int64)
        if (tl.load(flags + row) == 0) & (tl.load(out + (8 + which) * side + row) < 0):
            if which == 0:  # noqa: SIM108 (pointers do not go into a select)
                x = ref + at * stride_ref
            else:
                x = cand + at * stride_cand
            _sharpen(
                x, out, tl.load(out_int + which * side + row), T, row, which, item % parts, parts,
                arrived, scratch + (which * side + at) * WORDS, V, BLOCK,
            )  # fmt: skip
