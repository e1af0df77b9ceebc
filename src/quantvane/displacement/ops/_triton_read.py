"""How a kernel walks logit rows, the storage of what it leaves, and the first read's launch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton

from quantvane.displacement.ops._triton_derive import N_DERIVED
from quantvane.displacement.ops._triton_entropy import entropy_kernel
from quantvane.displacement.ops._triton_finish import FINISH_FIELDS
from quantvane.displacement.ops._triton_pair import N_PAIR
from quantvane.displacement.ops._triton_span import N_MOMENTS, N_TOTALS, span_kernel

__all__ = ["Done", "Shape", "Spans", "chained", "early_of", "first_read", "packed"]


@cache
def early_of(device: torch.device) -> bool:
    """Whether the kernels of a call may overlap, see ``_triton_chain``."""
    return (
        device.type == "cuda"
        and torch.version.cuda is not None
        and torch.cuda.get_device_capability(device) >= (9, 0)
    )


def chained(early: bool) -> dict[str, bool]:
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

    held (2, T, parts, cells) and moments (2, T, parts, 3, bins) float32; totals (T, parts, 2) float64;
    shifts, observed (2, T) float32; tops (2, T, parts) float32 and top_cols (2, T, parts) int32 where the
    argmax is tracked, else empty. See ``span_kernel`` and, where the entropies are wanted, ``entropy_kernel``.
    """

    shape: Shape
    cells: int
    entropies: bool
    held: torch.Tensor
    moments: torch.Tensor
    totals: torch.Tensor
    shifts: torch.Tensor
    observed: torch.Tensor
    tops: torch.Tensor
    top_cols: torch.Tensor

    @classmethod
    def allocate(
        cls, shape: Shape, T: int, parts: int, width: int, device: torch.device,
        *, track: bool = False, entropies: bool = False,
    ) -> Spans:  # fmt: skip
        """Uninitialised storage for parts of ``width`` columns; the kernel that reads writes what is read of it."""
        cells = shape.cells(width)
        n = parts if track else 0
        f32 = {"dtype": torch.float32, "device": device}
        return cls(
            shape,
            cells,
            entropies,
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
            BINS=shape.bins, PACKED=packed(ref, cand), GIVEN=given, TRACK=self.tops.numel() > 0,
            LAMBDA=shape.lambdas, EARLY=early_of(ref.device), num_warps=shape.threads // 32,
        )  # fmt: skip

    def read_sides(
        self, ref: torch.Tensor, cand: torch.Tensor, tokens: torch.Tensor, ready: torch.Tensor
    ) -> None:
        """Launch the entropy kernel over whole rows."""
        T, V = ref.shape
        shape = self.shape
        entropy_kernel[(2 * T,)](
            ref, cand, tokens, self.shifts, self.held, self.moments, self.totals, self.observed, ready,
            ref.stride(0), cand.stride(0), T, V, self.cells,
            THREADS=shape.threads, VEC=shape.vec, INNER=shape.inner, UNROLL=shape.unroll, BINS=shape.bins,
            PACKED=packed(ref, cand), EARLY=early_of(ref.device), num_warps=shape.threads // 32,
        )  # fmt: skip


def packed(*logits: torch.Tensor) -> bool:
    """Whether every row of all may be read as words of two columns."""
    return all(x.dtype == torch.bfloat16 and x.stride(0) % 2 == 0 and x.data_ptr() % 4 == 0 for x in logits)


def first_read(
    ref: torch.Tensor, cand: torch.Tensor, tokens: torch.Tensor, ready: torch.Tensor, shape: Shape,
    entropies: bool,
) -> Spans:  # fmt: skip
    """What one read of whole rows leaves, with the divergence or with both entropies."""
    T, V = ref.shape
    store = Spans.allocate(shape, T, 1, V, ref.device, entropies=entropies)
    if entropies:
        store.read_sides(ref, cand, tokens, ready)
    else:
        store.read(ref, cand, tokens, ready)
    return store
