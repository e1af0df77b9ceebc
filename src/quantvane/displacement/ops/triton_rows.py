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

import torch
import triton

from quantvane.displacement.ops._triton_exact import exact_kernel
from quantvane.displacement.ops._triton_finish import FINISH_FIELDS, finish_kernel
from quantvane.displacement.ops._triton_overlap import overlap_kernel
from quantvane.displacement.ops._triton_pair import pair_kernel
from quantvane.displacement.ops._triton_read import Done, Shape, Spans, chained, early_of, first_read, packed
from quantvane.displacement.ops._triton_span import N_MOMENTS
from quantvane.errors import DataError

__all__ = ["MAX_TOP_K", "PEER_FIELDS", "rows_all", "rows_peer"]

_ENTROPIES = ("entropy_ref", "entropy_cand")
PEER_FIELDS = (*(f for f in FINISH_FIELDS if f not in _ENTROPIES), "top1_ref", "top1_cand", "same_top1")
MAX_TOP_K = 26
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_PAIR = {"THREADS": 128, "VEC": 8, "LANES": 2, "INNER": 4, "UNROLL": 4}  # how the second read walks a row
_REPAIRERS = 128  # programs that compute rows again: one per multiprocessor, about
_CELLS_PER_WARP = 2048
_OVERLAP_REGISTERS = 128  # a thread: fewer spill, more leave too few programs on a multiprocessor
_LANES = 128  # bins of a row's cells in the selection of its top entries


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
        TRACKED=store.tops.numel() > 0, LAMBDA=shape.lambdas, ENTROPY=store.entropies, num_warps=warps,
        **chained(early),
    )  # fmt: skip


def _kept(top_k: int) -> int:
    return int(triton.next_power_of_2(top_k + 6))


def second_read(done: Done, ref: torch.Tensor, cand: torch.Tensor, early: bool = False) -> None:
    """Fill ``done.pair`` and ``done.ranks``, see ``pair_kernel``; may flag rows."""
    T, V = ref.shape
    pair_kernel[(T,)](
        ref, cand, done.values[len(FINISH_FIELDS) :], done.integers, done.pair, done.ranks, done.flags, done.queue,
        done.ready[1], ref.stride(0), cand.stride(0), V, T,
        **_PAIR, PACKED=packed(ref, cand), num_warps=_PAIR["THREADS"] // 32, **chained(early),
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
        num_warps=max(1, kept // 16), maxnreg=_OVERLAP_REGISTERS, **chained(early),
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
        **chained(early_of(ref.device)),
    )  # fmt: skip


def peer_fields(values: torch.Tensor, integers: torch.Tensor, same: torch.Tensor) -> dict[str, torch.Tensor]:
    """`PEER_FIELDS` by name."""
    out = {name: values[i] for i, name in enumerate(FINISH_FIELDS) if name not in _ENTROPIES}
    return {**out, "top1_ref": integers[0], "top1_cand": integers[1], "same_top1": same}


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
    early = early_of(ref.device)
    done = Done.allocate(T, ref.device, False)
    store = first_read(ref, cand, tokens, done.ready[0], shape, False)
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
    early = early_of(ref.device)
    done = Done.allocate(T, ref.device, True)
    store = first_read(ref, cand, tokens, done.ready[0], Shape.of_rows(V), True)
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
