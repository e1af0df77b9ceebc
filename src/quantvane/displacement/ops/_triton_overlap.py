"""Triton: how many columns the two top-K sets of a row share, from the cells and a few of its logits (one kernel).

Two levels of the same selection. The K-th largest of 128 bins' largest exponentials is a bound: K entries reach it, so
every one of the K largest lies in a cell that does. Few cells do; they are read again. The K-th largest of these
cells' largest logits is such a bound in turn, and what reaches it is ranked by comparing all with all.
"""

# mypy: disable-error-code="misc, no-untyped-def, no-untyped-call, untyped-decorator, no-any-return"
from __future__ import annotations

import triton
import triton.language as tl

from quantvane.displacement.ops._triton_chain import await_row, close_chain, flag_row, open_chain
from quantvane.displacement.ops._triton_finish import cell_columns

__all__ = ["overlap_kernel"]

_BIG = tl.constexpr(2147483647)


@triton.jit
def _pop(bits, lane):
    """(row, lane, the rest) of the lowest set bit of the first lane that has one; there must be one."""
    at = tl.min(tl.where(bits != 0, lane, _BIG), axis=0)
    mine = tl.sum(tl.where(lane == at, bits, 0), axis=0)
    lowest = (mine & -mine).to(tl.float32).to(tl.int32, bitcast=True)
    return ((lowest >> 23) & 255) - 127, at, tl.where(lane == at, bits & (bits - 1), bits)


@triton.jit
def _reaching(held, cells, ROWS: tl.constexpr, LANES: tl.constexpr, K: tl.constexpr, KC: tl.constexpr):
    """(the cells (KC,) that may hold one of the K largest, −1 after the last; whether these are all)."""
    lane = tl.arange(0, LANES)
    ids = tl.arange(0, ROWS)[:, None] * LANES + lane[None, :]
    v = tl.load(held + ids, mask=ids < cells, other=0.0)
    # Non-negative floats order as their bits do; the low bits make room for the bin's number.
    keys = (tl.max(v, axis=0).to(tl.int32, bitcast=True) & ~(LANES - 1)) | lane
    for _ in range(K - 1):
        keys = tl.where(keys == tl.max(keys, axis=0), -1, keys)
    bound = (tl.max(keys, axis=0) & ~(LANES - 1)) - LANES  # one step of what the keys resolve lower, for rounding
    hit = v.to(tl.int32, bitcast=True) >= bound
    n = tl.sum(tl.sum(hit.to(tl.int32), axis=0), axis=0)
    enough = (bound > LANES) & (n <= KC)
    bits = tl.sum(tl.where(hit, 1, 0) << tl.arange(0, ROWS)[:, None], axis=0)
    slot = tl.arange(0, KC)
    picked = tl.full((KC,), -1, tl.int32)
    for i in range(tl.where(enough, n, 0)):
        row, at, bits = _pop(bits, lane)
        picked = tl.where(slot == i, row * LANES + at, picked)
    return picked, enough


@triton.jit
def _top_columns(
    held, row, V, cells,
    ROWS: tl.constexpr, LANES: tl.constexpr, THREADS: tl.constexpr, VEC: tl.constexpr, INNER: tl.constexpr,
    WIDE: tl.constexpr, K: tl.constexpr, KC: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """(the columns (SLOTS,) of the K largest logits among −1, found)."""
    picked, enough = _reaching(held, cells, ROWS, LANES, K, KC)
    cols = cell_columns(picked[:, None], THREADS, VEC, INNER, WIDE)
    spot = tl.arange(0, WIDE)
    fits = (picked >= 0)[:, None] & (spot < INNER * VEC)[None, :] & (cols < V)
    x = tl.load(row + cols, mask=fits, other=float("-inf")).to(tl.float32)
    most = tl.max(x, axis=1)
    reached = tl.sum((most[None, :] >= most[:, None]).to(tl.int32), axis=1)
    bound = tl.max(tl.where(reached >= K, most, float("-inf")), axis=0)
    hit = (x >= bound) & fits
    n = tl.sum(tl.sum(hit.to(tl.int32), axis=0), axis=0)
    enough = enough & (n <= SLOTS)
    cell = tl.arange(0, KC)
    bits = tl.sum(tl.where(hit, 1, 0) << cell[:, None], axis=0)
    slot = tl.arange(0, SLOTS)
    found = tl.full((SLOTS,), -1, tl.int32)
    for i in range(tl.where(enough, n, 0)):
        at, where, bits = _pop(bits, spot)
        one = tl.sum(tl.where(cell == at, picked, 0), axis=0)
        block = (one // THREADS) * INNER + where // VEC
        found = tl.where(slot == i, (block * THREADS + one % THREADS) * VEC + where % VEC, found)
    y = tl.load(row + found, mask=found >= 0, other=float("-inf")).to(tl.float32)
    ahead = (y[None, :] > y[:, None]) | ((y[None, :] == y[:, None]) & (found[None, :] < found[:, None]))
    ahead = ahead & (found >= 0)[None, :]
    return tl.where(tl.sum(ahead.to(tl.int32), axis=1) < K, found, -1), enough


@triton.jit(do_not_specialize=["T"])
def overlap_kernel(
    held, ref, cand, out_int, flags, queue, done, stride_ref, stride_cand, V, T, cells,
    ROWS: tl.constexpr, LANES: tl.constexpr, THREADS: tl.constexpr, VEC: tl.constexpr, INNER: tl.constexpr,
    WIDE: tl.constexpr, K: tl.constexpr, KC: tl.constexpr, SLOTS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One program per row: how many columns the two top-K sets share, to out_int[2] (T,) int32.

    held (2, T, cells) as ``span_kernel`` leaves it, cells ≤ ROWS·LANES. Where ties reach over more than KC cells
    or SLOTS columns the row is flagged, see ``flag_row``. EARLY: waits for the row in done.
    """
    open_chain(EARLY)
    row = tl.program_id(0)
    at = row.to(tl.int64)
    side = tl.cast(T, tl.int64)
    await_row(done, row, 1, EARLY)
    if tl.load(flags + row) == 0:
        list_a, found_a = _top_columns(
            held + at * cells, ref + at * stride_ref, V, cells,
            ROWS, LANES, THREADS, VEC, INNER, WIDE, K, KC, SLOTS,
        )  # fmt: skip
        list_b, found_b = _top_columns(
            held + (side + at) * cells, cand + at * stride_cand, V, cells,
            ROWS, LANES, THREADS, VEC, INNER, WIDE, K, KC, SLOTS,
        )  # fmt: skip
        shared = (list_a[:, None] == list_b[None, :]) & (list_a >= 0)[:, None]
        tl.store(out_int + 2 * side + row, tl.sum(tl.sum(shared.to(tl.int32), axis=1), axis=0))
        if (found_a & found_b) == 0:
            flag_row(flags, queue, row, T)
    close_chain(EARLY)
