"""Displacement on the GPU from materialised logits: one read of both rows, or two.

``rows_peer`` reads each logit once and returns what one read can give, λ_max included; ``rows_all`` adds a
second read and gives every field.

Method. Exponentials are taken relative to a fixed shift per row, guessed from the first columns and the
observed token, and never normalised inside the loop. Of every cell of a few dozen columns the largest
exponential is kept; three power sums of all the others give ψ(λ) = Σ_{i≥2} p_i/(λ−p_i) between two bounds.
A row on which that is not enough (λ not certain to 1e-6, overflow, −inf or NaN, an infinite divergence, more
ties at the top than are kept) is flagged on the device and computed again by a kernel that reads it
many times; the host is never asked. On logits of language models that is rare.

Accuracy against float64: λ relative 1e-6 (4e-6 where λ < 1e-9); the others 1e-6·max(1, |value|); equal rows
give exactly 0. A −inf logit has probability 0; a row with NaN, +inf or no finite logit gives NaN, indices −1
and False.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from quantvane.displacement.ops._triton_exact import exact_kernel
from quantvane.displacement.ops._triton_finish import FINISH_FIELDS, finish_kernel
from quantvane.displacement.ops._triton_pair import N_PAIR
from quantvane.displacement.ops._triton_second import second_kernel
from quantvane.displacement.ops._triton_span import N_MOMENTS, N_TOTALS, span_kernel
from quantvane.errors import DataError

__all__ = ["MAX_TOP_K", "PEER_FIELDS", "Shape", "Spans", "rows_all", "rows_peer"]

_ENTROPIES = ("entropy_ref", "entropy_cand")
PEER_FIELDS = (*(f for f in FINISH_FIELDS if f not in _ENTROPIES), "top1_ref", "top1_cand", "same_top1")
MAX_TOP_K = 26
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
PAIR_SHAPE = (128, 4, 8)  # THREADS, VEC, INNER of the second read
_PAIR_REGISTERS = 80  # a thread: the most at which the second read still keeps six programs on a multiprocessor
_REPAIRERS = 128  # programs that look for rows to repair: one per multiprocessor, about
_CELLS_PER_WARP = 2048


@dataclass(frozen=True, slots=True)
class Shape:
    """How a kernel walks a row: blocks of threads·vec columns, inner of them to a group of cells, unroll of
    those in one turn of the loop; the rest's moments in bins of neighbouring threads."""

    threads: int
    vec: int
    inner: int
    unroll: int
    bins: int

    @classmethod
    def of_rows(cls, V: int) -> Shape:
        """The shape for whole rows of V columns: about 16 groups."""
        threads, vec = (128, 4) if V >= 4096 else (64, 4)
        inner = min(max(-(-V // (threads * vec * 16)), 4), 24)
        return cls(threads, vec, inner, inner, threads)

    @classmethod
    def of_peer(cls, V: int) -> Shape:
        """As `of_rows` where entropies are not wanted: larger cells, fewer of them."""
        if V < 4096:
            return cls.of_rows(V)
        return cls(128, 4, 32 if V >= 1 << 17 else 16 if V >= 1 << 16 else 8, 8, 64)

    def cells(self, width: int) -> int:
        """Cells of a row of ``width`` columns."""
        return -(-width // (self.threads * self.vec * self.inner)) * self.threads


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
        *,
        origin: int = 0,
        part: int = 0,
        given: bool = False,
        entropy: bool = True,
    ) -> None:
        """Launch the span kernel over columns ``origin …`` of the vocabulary, which are ref and cand (T, width);
        shifts are taken as ``given`` or guessed."""
        T, width = ref.shape
        shape = self.shape
        span_kernel[(T,)](
            ref, cand, tokens, self.shifts, self.held, self.moments, self.totals, self.observed,
            self.tops, self.top_cols, ref.stride(0), cand.stride(0), T, width, origin, part,
            self.held.shape[2], self.cells,
            THREADS=shape.threads, VEC=shape.vec, INNER=shape.inner, UNROLL=shape.unroll, BINS=shape.bins,
            GIVEN=given, TRACK=self.tops.numel() > 0, ENTROPY=entropy, num_warps=shape.threads // 32,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Done:
    """Metrics of T rows on the device: values (12, T) float64, integers (3, T) int32, flags (T,) int32; with
    a second read also pair (5, T) float64 and ranks (T,) int32, else empty."""

    values: torch.Tensor
    integers: torch.Tensor
    flags: torch.Tensor
    pair: torch.Tensor
    ranks: torch.Tensor

    @classmethod
    def allocate(cls, T: int, device: torch.device, second: bool) -> Done:
        """Uninitialised storage."""
        n = T if second else 0
        f64, i32 = ({"dtype": kind, "device": device} for kind in (torch.float64, torch.int32))
        return cls(
            torch.empty((len(FINISH_FIELDS) + 2, T), **f64),
            torch.empty((3, T), **i32),
            torch.empty((T,), **i32),
            torch.empty((N_PAIR, n), **f64),
            torch.empty((n,), **i32),
        )


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


def finish(store: Spans, done: Done, ref: torch.Tensor, cand: torch.Tensor, V: int) -> None:
    """Fill ``done`` from the first read's sums. Where the argmax was not tracked during the read, its cell is
    read again from ref and cand (T, V)."""
    T, parts = store.totals.shape[:2]
    shape = store.shape
    bins = max(128, triton.next_power_of_2(parts * shape.bins))
    padded = max(bins, triton.next_power_of_2(parts * store.cells))
    finish_kernel[(T,)](
        store.held, store.moments, store.totals, store.shifts, store.observed, store.tops, store.top_cols,
        ref, cand, done.values, done.integers, done.flags, ref.stride(0), cand.stride(0), V, T,
        store.cells, parts,
        CELLS=padded, MOMENTS=bins, PARTS=triton.next_power_of_2(parts), BINS=shape.bins,
        THREADS=shape.threads, VEC=shape.vec, INNER=shape.inner, WIDE=triton.next_power_of_2(shape.inner * shape.vec),
        TRACKED=store.tops.numel() > 0, num_warps=max(1, padded // _CELLS_PER_WARP),
    )  # fmt: skip


def _kept(top_k: int) -> int:
    return triton.next_power_of_2(top_k + 6) if top_k > 1 else 4


def second_read(store: Spans, done: Done, ref: torch.Tensor, cand: torch.Tensor, top_k: int) -> None:
    """Fill ``done.pair``, ``done.ranks`` and the third row of ``done.integers``, see ``second_kernel``; may set
    ``done.flags``."""
    T, V = ref.shape
    shape, bins = store.shape, 256
    threads, vec, inner = PAIR_SHAPE
    second_kernel[(T,)](
        store.held, ref, cand, done.values[len(FINISH_FIELDS) :], done.pair, done.integers, done.ranks, done.flags,
        ref.stride(0), cand.stride(0), V, T, store.cells,
        CELLS=max(bins, triton.next_power_of_2(store.cells)), BINS=bins, THREADS=shape.threads, VEC=shape.vec,
        INNER=shape.inner, WIDE=triton.next_power_of_2(shape.inner * shape.vec), K=top_k, KC=_kept(top_k),
        PAIR_THREADS=threads, PAIR_VEC=vec, PAIR_INNER=inner, num_warps=threads // 32, maxnreg=_PAIR_REGISTERS,
    )  # fmt: skip


def repair(done: Done, ref: torch.Tensor, cand: torch.Tensor, tokens: torch.Tensor, top_k: int) -> None:
    """Compute the flagged rows again, in place."""
    T, V = ref.shape
    exact_kernel[(min(T, _REPAIRERS),)](
        ref, cand, tokens, done.values, done.integers, done.pair, done.ranks, done.flags,
        ref.stride(0), cand.stride(0), V, T,
        K=top_k, KC=_kept(top_k), ALL=len(done.ranks) > 0, BLOCK=min(8192, max(64, triton.next_power_of_2(V))),
        num_warps=16 if V > 4096 else 4,
    )  # fmt: skip


def peer_fields(values: torch.Tensor, integers: torch.Tensor, entropies: bool = False) -> dict[str, torch.Tensor]:
    """Named views of the finish kernel's output; `PEER_FIELDS`, and the entropies where they were summed."""
    out = {name: values[i] for i, name in enumerate(FINISH_FIELDS) if entropies or name not in _ENTROPIES}
    out["top1_ref"], out["top1_cand"] = integers[0], integers[1]
    out["same_top1"] = (integers[0] == integers[1]) & (integers[0] >= 0)
    return out


def first_read(
    ref: torch.Tensor, cand: torch.Tensor, tokens: torch.Tensor, shape: Shape, entropy: bool = True
) -> Spans:
    """The span kernel over whole rows."""
    T, V = ref.shape
    store = Spans.allocate(shape, T, 1, V, ref.device, False)
    store.read(ref, cand, tokens, entropy=entropy)
    return store


def rows_peer(ref: torch.Tensor, cand: torch.Tensor, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """The fields of PEER_FIELDS, (T,) each, in one read of both matrices.

    Args:
        ref, cand: (T, V) logits, bfloat16, float16 or float32, any row stride.
        tokens: (T,) observed token ids, in [0, V).

    Returns:
        float64, int32 and bool tensors on the logits' device. kld is accurate to 1e-7 absolute, not relative:
        for nearly equal rows it may come out below zero by that much.

    Raises:
        DataError: see ``check``.
    """
    ref, cand, tokens = check(ref, cand, tokens)
    T, V = ref.shape
    store = first_read(ref, cand, tokens, Shape.of_peer(V), entropy=False)
    done = Done.allocate(T, ref.device, False)
    finish(store, done, ref, cand, V)
    repair(done, ref, cand, tokens, 1)
    return peer_fields(done.values, done.integers)


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
    store = first_read(ref, cand, tokens, Shape.of_rows(V))
    done = Done.allocate(T, ref.device, True)
    finish(store, done, ref, cand, V)
    second_read(store, done, ref, cand, k)
    repair(done, ref, cand, tokens, k)
    out = peer_fields(done.values, done.integers, entropies=True)
    for i, name in enumerate(("kld", "kld_rev", "jsd", "tv")):
        out[name] = done.pair[i]
    out["hellinger"] = done.pair[4].sqrt()
    out["fisher_rao"] = 4.0 * torch.asin((0.5 * done.pair[4]).sqrt())
    out["topk_overlap"] = torch.where(done.integers[0] >= 0, done.integers[2].double() / k, torch.nan)
    out["rank_in_cand"] = done.ranks
    return out
