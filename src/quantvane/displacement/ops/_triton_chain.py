"""Triton: kernels of one call that overlap, the next one's programs starting while the last of this one's run.

Each kernel of a chain opens with ``open_chain``: once all its programs run, the next kernel's may take the places
they free. A program that needs what an earlier kernel leaves for its row waits for that row alone (``await_row``).
No deadlock: a program only starts when every program it could wait for has started. The last program of every kernel
waits for the whole kernel before it (``close_chain``), so that the end of a chain is the end of all its kernels.
Needs Hopper's programmatic dependent launch; without EARLY all of this is nothing and kernels run one by one.
"""

# mypy: disable-error-code="misc, no-untyped-def, no-untyped-call, untyped-decorator, no-any-return"
from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

__all__ = ["await_all", "await_row", "close_chain", "flag_row", "mark_row", "open_chain"]


@triton.jit
def open_chain(EARLY: tl.constexpr):
    if EARLY:
        gdc_launch_dependents()


@triton.jit
def await_all(EARLY: tl.constexpr):
    """Wait for the kernel before this one and, through its last program, for all before that."""
    if EARLY:
        gdc_wait()


@triton.jit
def close_chain(EARLY: tl.constexpr):
    if EARLY:  # noqa: SIM102 (one is decided when compiling)
        if tl.program_id(0) == tl.num_programs(0) - 1:
            gdc_wait()


@triton.jit
def mark_row(ready, row, EARLY: tl.constexpr):
    """Say that all of this program's stores are done; ready (T,) int32 counts programs."""
    if EARLY:
        tl.debug_barrier()
        tl.atomic_add(ready + row, 1, sem="release")


@triton.jit
def await_row(ready, row, parts, EARLY: tl.constexpr):
    """Wait until ``parts`` programs have marked the row."""
    if EARLY:
        seen = tl.atomic_add(ready + row, 0, sem="acquire")
        while seen < parts:
            seen = tl.atomic_add(ready + row, 0, sem="acquire")
        tl.debug_barrier()


@triton.jit
def flag_row(flags, queue, row, T):
    """Have the row computed again: flags (T,) int32, queue (1 + T,) int32 = their number, then the rows."""
    if tl.atomic_xchg(flags + row, 1) == 0:
        slot = tl.atomic_add(queue, 1)
        if slot < T:
            tl.store(queue + 1 + slot, row)
