"""Triton: all that a second read of two rows gives, in one kernel.

The divergences come from streaming both rows; the top-K overlap then reads a few cells again. While one program of a
multiprocessor waits on the overlap's dependent reductions, the others stream: as two kernels they took a tenth more.
"""

# mypy: disable-error-code="misc, no-untyped-def, no-untyped-call, untyped-decorator, no-any-return"
from __future__ import annotations

import triton
import triton.language as tl

from quantvane.displacement.ops._triton_finish import overlap_kernel
from quantvane.displacement.ops._triton_pair import pair_kernel

__all__ = ["second_kernel"]


@triton.jit(do_not_specialize=["T"])
def second_kernel(
    held, ref, cand, norms, out, out_int, ranks, flags, stride_ref, stride_cand, V, T, cells,
    CELLS: tl.constexpr, BINS: tl.constexpr, THREADS: tl.constexpr, VEC: tl.constexpr, INNER: tl.constexpr,
    WIDE: tl.constexpr, K: tl.constexpr, KC: tl.constexpr,
    PAIR_THREADS: tl.constexpr, PAIR_VEC: tl.constexpr, PAIR_INNER: tl.constexpr,
):  # fmt: skip
    """One program per row; arguments as for `pair_kernel` and `overlap_kernel`, whose outputs it writes."""
    pair_kernel(
        ref, cand, norms, out_int, out, ranks, flags, stride_ref, stride_cand, V, T,
        PAIR_THREADS, PAIR_VEC, PAIR_INNER,
    )  # fmt: skip
    overlap_kernel(
        held, ref, cand, out_int, flags, stride_ref, stride_cand, V, T, cells,
        CELLS, BINS, THREADS, VEC, INNER, WIDE, K, KC,
    )  # fmt: skip
