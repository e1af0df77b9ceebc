"""Triton: the fields that follow from others, where the rows are finished anyway: as launches of their own, a dozen
small ones, they took as long as a twentieth of a read."""

# mypy: disable-error-code="misc, no-untyped-def, no-untyped-call, untyped-decorator, no-any-return"
from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["N_DERIVED", "derive_rows"]

N_DERIVED = 3


@triton.jit
def _arcsine(y):
    """Of 0 ≤ y ≤ √½, to float64's accuracy: Newton on sin, whose slope is at least √½ there."""
    angle = y * (1.0 + y * y / 6.0)
    for _ in range(5):
        angle += (y - tl.sin(angle)) / tl.cos(angle)
    return angle


@triton.jit
def derive_rows(row, ok, out_int, pair, same, derived, T, K: tl.constexpr, ALL: tl.constexpr):
    """Of the rows in row where ok: same (T,) bool from out_int (3, T); with ALL also derived (3, T) float64, hellinger,
    fisher_rao and topk_overlap, from pair (5, T)."""
    side = tl.cast(T, tl.int64)
    top_a = tl.load(out_int + row, mask=ok, other=-1)
    top_b = tl.load(out_int + side + row, mask=ok, other=-1)
    tl.store(same + row, (top_a == top_b) & (top_a >= 0), mask=ok)
    if ALL:
        h2 = tl.load(pair + 4 * side + row, mask=ok, other=0.0)
        shared = tl.load(out_int + 2 * side + row, mask=ok, other=0).to(tl.float64)
        tl.store(derived + row, tl.sqrt(h2), mask=ok)
        tl.store(derived + side + row, 4.0 * _arcsine(tl.sqrt(0.5 * h2)), mask=ok)
        tl.store(derived + 2 * side + row, tl.where(top_a >= 0, shared / K, float("nan")), mask=ok)
