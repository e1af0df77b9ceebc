"""Displacement on the GPU from materialised logits: one read of both rows, or two.

``rows_peer`` reads each logit once and returns what one read can give, λ_max included; ``rows_all`` adds a
second read and gives every field.

Method. Exponentials are taken relative to a fixed shift per row, guessed from the first columns and the
observed token, and never normalised inside the loop. Of every cell of a few dozen columns the largest
exponential is kept; three power sums of all the others give ψ(λ) = Σ_{i≥2} p_i/(λ−p_i) between two bounds.
A row on which that is not enough (overflow, −inf or NaN, an infinite divergence, more ties at the top than are kept)
is flagged on the device and computed again by a kernel that reads it many times; where only λ is not certain to 1e-6,
once more. The host is never asked. On logits of language models both are rare.

Accuracy against float64: λ relative 1e-6 (4e-6 where λ < 1e-9); the others 1e-6·max(1, |value|); twice that where
a row's largest logits lie far above the guessed shift, whose exponents are rounded more. Equal rows give exactly 0.
A −inf logit has probability 0; a row with NaN, +inf or no finite logit gives NaN, indices −1 and False.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton

from quantvane.displacement.ops._triton_derive import N_DERIVED
from quantvane.displacement.ops._triton_exact import exact_kernel
from quantvane.displacement.ops._triton_finish import FINISH_FIELDS, finish_kernel
from quantvane.displacement.ops._triton_overlap import overlap_kernel
from quantvane.displacement.ops._triton_pair import N_PAIR, pair_kernel
from quantvane.displacement.ops._triton_span import N_MOMENTS, N_TOTALS, span_kernel
from quantvane.errors import DataError

__all__ = ["MAX_TOP_K", "PEER_FIELDS", "Shape", "Spans", "rows_all", "rows_peer"]

_ENTROPIES = ("entropy_ref", "entropy_cand")
PEER_FIELDS = (*(f for f in FINISH_FIELDS if f not in _ENTROPIES), "top1_ref", "top1_cand", "same_top1")
MAX_TOP_K = 26
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_PAIR = {"THREADS": 128, "VEC": 8, "LANES": 2, "INNER": 4, "UNROLL": 4}  # how the second read walks a row
_REPAIRERS = 128  # programs that compute rows again: one per multiprocessor, about
_CELLS_PER_WARP = 2048
_OVERLAP_REGISTERS = 128  # a thread: fewer spill, more leave too few programs on a multiprocessor
_LANES = 128  # bins of a row's cells in the selection of its top entries


@cache
def _early(device: torch.device) -> bool:
    """Whether the kernels of a call may overlap, see ``_triton_chain``."""
    return (
        device.type == "cuda"
        and torch.version.cuda is not None
        and torch.cuda.get_device_capability(device) >= (9, 0)
    )


def _chained(early: bool) -> dict[str, bool]:
    """The options of a launch that may start before the one before it ends."""
    return {"EARLY": True, "launch_pdl": True} if early else {"EARLY": False}


@dataclass(frozen=True, slots=True)
class Shape:
    """How a kernel walks a row: blocks of threads·vec columns, summed in two accumulators a thread, inner of them
    to a group of cells, unroll of those in one turn of the loop; the rest's moments in bins of single
    accumulators or of neighbouring threads. With ``seconds`` a cell's second largest is kept too, for rows that
    cannot be read again. Without ``lambdas`` the sums that λ_max needs are not taken and it is NaN: to measure what
    it costs."""

    threads: int
    vec: int
    inner: int
    unroll: int
    bins: int
    seconds: bool = False
    lambdas: bool = True

    @classmethod
    def of(cls, V: int, groups: int, most: int) -> Shape:
        """About ``groups`` groups for a row of V columns, of at most ``most`` blocks each."""
        if V < 4096:
            inner = min(max(-(-V // (64 * 4 * groups)), 4), most)
            return cls(64, 4, inner, inner, 64)
        inner = min(max(-(-V // (128 * 8 * groups)), 2), most)
        turns = -(-inner // 10)
        unroll = -(-inner // turns)
        return cls(128, 8, unroll * turns, unroll, 256)

    @classmethod
    def of_rows(cls, V: int) -> Shape:
        """The shape for whole rows of V columns."""
        return cls.of(V, 16, V)

    @classmethod
    def of_peer(cls, V: int) -> Shape:
        """As `of_rows` where entropies are not wanted: larger cells, fewer of them."""
        return cls.of(V, 8, 24)

    def cells(self, width: int) -> int:
        """Entries kept of the cells of a row of ``width`` columns."""
        return -(-width // (self.threads * self.vec * self.inner)) * self.threads * (1 + self.seconds)

    @property
    def wide(self) -> int:
        """Columns of a cell, as a power of two."""
        return int(triton.next_power_of_2(self.inner * self.vec))


@dataclass(frozen=True, slots=True)
class Done:
    """Metrics of T rows on the device: values (12, T) float64, integers (3, T) int32, same (T,) bool, flags (T,)
    int32; with a second read also pair (5, T) float64, derived (3, T) float64 and ranks (T,) int32, else empty.

    Starting at zero: queue (1 + T,) int32 of the flagged rows, their number first, unsure (1 + T,) int32 of those of
    which λ_max alone is open, arrived (2, T) int32 of the parts in which it is taken again, and ready (2, T) int32,
    which says what of a row the first read and the finish have left.
    """

    values: torch.Tensor
    integers: torch.Tensor
    same: torch.Tensor
    flags: torch.Tensor
    pair: torch.Tensor
    derived: torch.Tensor
    ranks: torch.Tensor
    queue: torch.Tensor
    unsure: torch.Tensor
    arrived: torch.Tensor
    ready: torch.Tensor

    @classmethod
    def allocate(cls, T: int, device: torch.device, second: bool) -> Done:
        """Uninitialised storage but for what starts at zero."""
        n = T if second else 0
        f64, i32 = ({"dtype": kind, "device": device} for kind in (torch.float64, torch.int32))
        signals = torch.zeros((2 + 6 * T,), **i32)
        return cls(
            torch.empty((len(FINISH_FIELDS) + 2, T), **f64),
            torch.empty((3, T), **i32),
            torch.empty((T,), dtype=torch.bool, device=device),
            torch.empty((T,), **i32),
            torch.empty((N_PAIR, n), **f64),
            torch.empty((N_DERIVED, n), **f64),
            torch.empty((n,), **i32),
            signals[: 1 + T],
            signals[1 + T : 2 + 2 * T],
            signals[2 + 2 * T : 2 + 4 * T].view(2, T),
            signals[2 + 4 * T :].view(2, T),
        )


@dataclass(frozen=True, slots=True)
class Spans:
    """What the first read leaves behind, ``parts`` times per row.

    held (2, T, parts, cells) and moments (2, T, parts, 3, bins) float32; totals (T, parts, 3) float64;
    shifts, observed (2, T) float32; tops (2, T, parts) float32 and top_cols (2, T, parts) int32 where the
    argmax is tracked, else empty. See ``span_kernel``.
    """

    shape: Shape
    cells: int
    held: torch.Tensor
    moments: torch.Tensor
    totals: torch.Tensor
    shifts: torch.Tensor
    observed: torch.Tensor
    tops: torch.Tensor
    top_cols: torch.Tensor

    @classmethod
    def allocate(cls, shape: Shape, T: int, parts: int, width: int, device: torch.device, track: bool) -> Spans:
        """Uninitialised storage for parts of ``width`` columns; the span kernel writes every element."""
        cells = shape.cells(width)
        n = parts if track else 0
        f32 = {"dtype": torch.float32, "device": device}
        return cls(
            shape,
            cells,
            torch.empty((2, T, parts, cells), **f32),
            torch.empty((2, T, parts, N_MOMENTS, shape.bins), **f32),
            torch.empty((T, parts, N_TOTALS), dtype=torch.float64, device=device),
            torch.empty((2, T), **f32),
            torch.empty((2, T), **f32),
            torch.empty((2, T, n), **f32),
            torch.empty((2, T, n), dtype=torch.int32, device=device),
        )

    def read(
        self,
        ref: torch.Tensor,
        cand: torch.Tensor,
        tokens: torch.Tensor,
        ready: torch.Tensor,
        *,
        origin: int = 0,
        part: int = 0,
        given: bool = False,
        entropy: bool = True,
    ) -> None:
        """Launch the span kernel over columns ``origin …`` of the vocabulary, which are ref and cand (T, width);
        shifts are taken as ``given`` or guessed. ready (T,) int32 says which rows are read."""
        T, width = ref.shape
        shape = self.shape
        span_kernel[(T,)](
            ref, cand, tokens, self.shifts, self.held, self.moments, self.totals, self.observed,
            self.tops, self.top_cols, ready, ref.stride(0), cand.stride(0), T, width, origin, part,
            self.held.shape[2], self.cells,
            THREADS=shape.threads, VEC=shape.vec, INNER=shape.inner, UNROLL=shape.unroll, SECOND=shape.seconds,
            BINS=shape.bins, PACKED=_packed(ref) and _packed(cand), GIVEN=given, TRACK=self.tops.numel() > 0,
            ENTROPY=entropy, LAMBDA=shape.lambdas, EARLY=_early(ref.device), num_warps=shape.threads // 32,
        )  # fmt: skip


def _packed(x: torch.Tensor) -> bool:
    """Whether every row may be read as words of two columns."""
    return bool(x.dtype == torch.bfloat16 and x.stride(0) % 2 == 0 and x.data_ptr() % 4 == 0)


def check(
    ref: torch.Tensor, cand: torch.Tensor, tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The three arguments with unit column stride and int64 tokens on the logits' device.

    Raises:
        DataError: other shapes, types or devices than (T, V) twice and (T,), or no row, or no column.
    """
    if ref.dim() != 2 or ref.shape != cand.shape or tokens.shape != ref.shape[:1] or 0 in ref.shape:
        raise DataError(
            "logits and tokens do not fit together",
            expected="ref and cand (T, V), tokens (T,), T and V at least 1",
            got=f"ref {tuple(ref.shape)}, cand {tuple(cand.shape)}, tokens {tuple(tokens.shape)}",
        )
    if ref.dtype not in _DTYPES or cand.dtype != ref.dtype or cand.device != ref.device:
        raise DataError(
            "the two logit matrices differ in type or device, or have a type without a kernel",
            expected="both bfloat16, both float16 or both float32, on one device",
            got=f"{ref.dtype} on {ref.device}, {cand.dtype} on {cand.device}",
            remedy="convert one of them with .to(...)",
        )
    tokens = tokens.to(device=ref.device, dtype=torch.int64)
    ref = ref if ref.stride(1) == 1 else ref.contiguous()
    cand = cand if cand.stride(1) == 1 else cand.contiguous()
    return ref, cand, tokens


def finish(
    store: Spans, done: Done, ref: torch.Tensor, cand: torch.Tensor, V: int, early: bool = False
) -> None:
    """Fill ``done`` from the first read's sums. Where the argmax was not tracked during the read, its cell is
    read again from ref and cand (T, V). ``early``: right after that read, whose last rows it may wait for."""
    T, parts = store.totals.shape[:2]
    shape = store.shape
    padded = max(_LANES, triton.next_power_of_2(parts * store.cells))
    warps = max(1, padded // _CELLS_PER_WARP)
    bins = min(padded, max(_LANES * warps, triton.next_power_of_2(parts * shape.bins)))
    finish_kernel[(T,)](
        store.held, store.moments, store.totals, store.shifts, store.observed, store.tops, store.top_cols,
        ref, cand, done.values, done.integers, done.flags, done.queue, done.unsure,
        done.ready[0], done.ready[1], ref.stride(0), cand.stride(0), V, T, store.cells, parts,
        CELLS=padded, MOMENTS=bins, PARTS=triton.next_power_of_2(parts), BINS=shape.bins,
        THREADS=shape.threads, VEC=shape.vec, INNER=shape.inner, WIDE=shape.wide,
        TRACKED=store.tops.numel() > 0, LAMBDA=shape.lambdas, num_warps=warps, **_chained(early),
    )  # fmt: skip


def _kept(top_k: int) -> int:
    return int(triton.next_power_of_2(top_k + 6))


def second_read(done: Done, ref: torch.Tensor, cand: torch.Tensor, early: bool = False) -> None:
    """Fill ``done.pair`` and ``done.ranks``, see ``pair_kernel``; may flag rows."""
    T, V = ref.shape
    pair_kernel[(T,)](
        ref, cand, done.values[len(FINISH_FIELDS) :], done.integers, done.pair, done.ranks, done.flags, done.queue,
        done.ready[1], ref.stride(0), cand.stride(0), V, T,
        **_PAIR, PACKED=_packed(ref) and _packed(cand), num_warps=_PAIR["THREADS"] // 32, **_chained(early),
    )  # fmt: skip


def overlap(
    store: Spans, done: Done, ref: torch.Tensor, cand: torch.Tensor, top_k: int, early: bool = False
) -> None:
    """Fill the third row of ``done.integers``, see ``overlap_kernel``; may flag rows."""
    T, V = ref.shape
    shape, kept = store.shape, _kept(top_k)
    overlap_kernel[(T,)](
        store.held, ref, cand, done.integers, done.flags, done.queue, done.ready[1],
        ref.stride(0), cand.stride(0), V, T, store.cells,
        ROWS=max(1, triton.next_power_of_2(store.cells) // _LANES), LANES=_LANES, THREADS=shape.threads,
        VEC=shape.vec, INNER=shape.inner, WIDE=shape.wide, K=top_k, KC=kept, SLOTS=2 * kept,
        num_warps=max(1, kept // 16), maxnreg=_OVERLAP_REGISTERS, **_chained(early),
    )  # fmt: skip


def complete(
    done: Done, store: Spans, ref: torch.Tensor, cand: torch.Tensor, tokens: torch.Tensor, top_k: int
) -> None:
    """Compute the declined rows again, in place, and ``same`` and ``derived`` of all. Overwrites the moments in
    ``store``, which nobody needs any more."""
    T, V = ref.shape
    exact_kernel[(min(T, _REPAIRERS),)](
        ref, cand, tokens, done.values, done.integers, done.same, done.pair, done.derived,
        done.ranks, done.flags, done.queue, done.unsure, done.arrived, store.moments,
        ref.stride(0), cand.stride(0), V, T,
        K=top_k, KC=_kept(top_k), ALL=len(done.ranks) > 0, WORDS=N_MOMENTS * store.shape.bins,
        BLOCK=min(8192, max(64, triton.next_power_of_2(V))), num_warps=16 if V > 4096 else 4,
        **_chained(_early(ref.device)),
    )  # fmt: skip


def peer_fields(values: torch.Tensor, integers: torch.Tensor, same: torch.Tensor) -> dict[str, torch.Tensor]:
    """`PEER_FIELDS` by name."""
    out = {name: values[i] for i, name in enumerate(FINISH_FIELDS) if name not in _ENTROPIES}
    return {**out, "top1_ref": integers[0], "top1_cand": integers[1], "same_top1": same}


def first_read(
    ref: torch.Tensor, cand: torch.Tensor, tokens: torch.Tensor, ready: torch.Tensor, shape: Shape,
    entropy: bool = True,
) -> Spans:  # fmt: skip
    """The span kernel over whole rows."""
    T, V = ref.shape
    store = Spans.allocate(shape, T, 1, V, ref.device, False)
    store.read(ref, cand, tokens, ready, entropy=entropy)
    return store


def rows_peer(ref: torch.Tensor, cand: torch.Tensor, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """The fields of PEER_FIELDS, (T,) each, in one read of both matrices.

    Args:
        ref, cand: (T, V) logits, bfloat16, float16 or float32, any row stride.
        tokens: (T,) observed token ids, in [0, V).

    Returns:
        float64, int32 and bool tensors on the logits' device. kld is accurate to 1e-6 absolute, not relative:
        for nearly equal rows it may come out below zero by that much.

    Raises:
        DataError: see ``check``.
    """
    ref, cand, tokens = check(ref, cand, tokens)
    return peer_of(ref, cand, tokens, Shape.of_peer(ref.shape[1]))


def peer_of(
    ref: torch.Tensor, cand: torch.Tensor, tokens: torch.Tensor, shape: Shape
) -> dict[str, torch.Tensor]:
    """``rows_peer`` of checked arguments by one shape."""
    T, V = ref.shape
    early = _early(ref.device)
    done = Done.allocate(T, ref.device, False)
    store = first_read(ref, cand, tokens, done.ready[0], shape, entropy=False)
    finish(store, done, ref, cand, V, early)
    complete(done, store, ref, cand, tokens, 1)
    return peer_fields(done.values, done.integers, done.same)


def rows_all(
    ref: torch.Tensor, cand: torch.Tensor, tokens: torch.Tensor, top_k: int = 10
) -> dict[str, torch.Tensor]:
    """Every field of TokenMetrics, (T,) each, in two reads of both matrices; arguments as for ``rows_peer``.

    topk_overlap divides by min(top_k, V); of equal logits the first columns belong to the set. No divergence
    is negative.

    Raises:
        DataError: see ``check``, or top_k outside [1, MAX_TOP_K].
    """
    if not 1 <= top_k <= MAX_TOP_K:
        raise DataError("top_k has no kernel", expected=f"1 to {MAX_TOP_K}", got=str(top_k))
    ref, cand, tokens = check(ref, cand, tokens)
    T, V = ref.shape
    k = min(top_k, V)
    early = _early(ref.device)
    done = Done.allocate(T, ref.device, True)
    store = first_read(ref, cand, tokens, done.ready[0], Shape.of_rows(V))
    finish(store, done, ref, cand, V, early)
    second_read(done, ref, cand, early)
    overlap(store, done, ref, cand, k, early)
    complete(done, store, ref, cand, tokens, k)
    out = peer_fields(done.values, done.integers, done.same)
    out.update((name, done.values[FINISH_FIELDS.index(name)]) for name in _ENTROPIES)
    for i, name in enumerate(("kld", "kld_rev", "jsd", "tv")):
        out[name] = done.pair[i]
    out["hellinger"], out["fisher_rao"], out["topk_overlap"] = done.derived
    out["rank_in_cand"] = done.ranks
    return out
