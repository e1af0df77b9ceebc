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
_FEW = tl.constexpr(4)
_MOST_CELLS = tl.constexpr(256)  # beyond these, reading the whole row again is faster


@triton.jit
def _pop(bits, lane):
    """(row, lane, the rest) of the lowest set bit of the first lane that has one; there must be one."""
    at = tl.min(tl.where(bits != 0, lane, _BIG), axis=0)
    mine = tl.sum(tl.where(lane == at, bits, 0), axis=0)
    lowest = (mine & -mine).to(tl.float32).to(tl.int32, bitcast=True)
    return ((lowest >> 23) & 255) - 127, at, tl.where(lane == at, bits & (bits - 1), bits)


@triton.jit
def _reaching(held, cells, ROWS: tl.constexpr, LANES: tl.constexpr, K: tl.constexpr):
    """(bits (LANES,), bit r of lane l for cell r·LANES + l: it may hold one of the K largest; their number; whether
    these are all)."""
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
    return tl.sum(tl.where(hit, 1, 0) << tl.arange(0, ROWS)[:, None], axis=0), n, bound > LANES


@triton.jit
def _top_columns(
    held, row, V, cells,
    ROWS: tl.constexpr, LANES: tl.constexpr, THREADS: tl.constexpr, VEC: tl.constexpr, INNER: tl.constexpr,
    WIDE: tl.constexpr, K: tl.constexpr, KC: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """(the columns (SLOTS,) of the K largest logits among −1, found)."""
    lane = tl.arange(0, LANES)
    cell = tl.arange(0, KC)
    bits, n, enough = _reaching(held, cells, ROWS, LANES, K)
    enough = enough & (n <= KC)
    picked = tl.full((KC,), -1, tl.int32)
    for i in range(tl.where(enough, n, 0)):
        row_of, at, bits = _pop(bits, lane)
        picked = tl.where(cell == i, row_of * LANES + at, picked)
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


@triton.jit
def _columns_by_cell(
    held, row, V, cells,
    ROWS: tl.constexpr, LANES: tl.constexpr, THREADS: tl.constexpr, VEC: tl.constexpr, INNER: tl.constexpr,
    WIDE: tl.constexpr, K: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """As ``_top_columns``, a few cells after another, so that more of them fit: for rows with many equal logits about
    the K-th."""
    lane = tl.arange(0, LANES)
    slot = tl.arange(0, SLOTS)
    place = tl.arange(0, _FEW)
    bits, left, enough = _reaching(held, cells, ROWS, LANES, K)
    enough = enough & (left <= _MOST_CELLS)
    left = tl.where(enough, left, 0)
    best = tl.where(slot < K, float("-inf"), float("inf"))
    found = tl.full((SLOTS,), -1, tl.int32)
    while left > 0:
        some = tl.full((_FEW,), -1, tl.int32)
        for i in range(tl.minimum(left, _FEW)):
            row_of, at, bits = _pop(bits, lane)
            some = tl.where(place == i, row_of * LANES + at, some)
        left -= _FEW
        cols = cell_columns(some[:, None], THREADS, VEC, INNER, WIDE)
        fits = (some >= 0)[:, None] & (tl.arange(0, WIDE) < INNER * VEC)[None, :] & (cols < V)
        x = tl.load(row + cols, mask=fits, other=float("-inf")).to(tl.float32)
        more = 1
        while more > 0:
            # Their next entry against the last of those held: lower, or equal and further right.
            top = tl.max(tl.max(x, axis=1), axis=0)
            col = tl.min(tl.min(tl.where(x == top, cols, _BIG), axis=1), axis=0)
            last = tl.min(best, axis=0)
            right = tl.max(tl.where(best == last, found, -1), axis=0)
            gone = tl.min(tl.where((best == last) & (found == right), slot, SLOTS), axis=0)
            better = (top > last) | ((top == last) & (top > float("-inf")) & (col < right))
            gone = tl.where(better, gone, SLOTS)
            best = tl.where(slot == gone, top, best)
            found = tl.where(slot == gone, col, found)
            x = tl.where(cols == col, float("-inf"), x)
            more = better.to(tl.int32)
    return found, enough


@triton.jit(do_not_specialize=["T"])
def overlap_kernel(
    held, ref, cand, out_int, flags, queue, done, stride_ref, stride_cand, V, T, cells,
    ROWS: tl.constexpr, LANES: tl.constexpr, THREADS: tl.constexpr, VEC: tl.constexpr, INNER: tl.constexpr,
    WIDE: tl.constexpr, K: tl.constexpr, KC: tl.constexpr, SLOTS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One program per row: how many columns the two top-K sets share, to out_int[2] (T,) int32.

    held (2, T, cells) as ``span_kernel`` leaves it, cells ≤ ROWS·LANES. Where more than KC cells or SLOTS columns
    come into question they are taken a few cells after another; above _MOST_CELLS cells the row is flagged, see
    ``flag_row``. EARLY: waits for the row in done.
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
        if found_a == 0:
            list_a, found_a = _columns_by_cell(
                held + at * cells, ref + at * stride_ref, V, cells, ROWS, LANES, THREADS, VEC, INNER, WIDE, K, SLOTS
            )
        if found_b == 0:
            list_b, found_b = _columns_by_cell(
                held + (side + at) * cells, cand + at * stride_cand, V, cells,
                ROWS, LANES, THREADS, VEC, INNER, WIDE, K, SLOTS,
            )  # fmt: skip
        shared = (list_a[:, None] == list_b[None, :]) & (list_a >= 0)[:, None]
        tl.store(out_int + 2 * side + row, tl.sum(tl.sum(shared.to(tl.int32), axis=1), axis=0))
        if (found_a & found_b) == 0:
            flag_row(flags, queue, row, T)
    close_chain(EARLY)
