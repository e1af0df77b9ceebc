"""Displacement on the GPU from materialised logits: one read of both rows, or two.

``rows_peer`` reads each logit once and returns what one read can give, λ_max included; ``rows_all`` adds a
second read and gives every field. ``rows`` is the backend's entry point and equals ``rows_all``.

Method. Exponentials are taken relative to a fixed shift per row, guessed from the first columns and the
observed token, and never normalised inside the loop. Each lane (a residue class of columns) keeps its
largest exponential; power sums of all the others give ψ(λ) = Σ_{i≥2} p_i/(λ−p_i) between two bounds.
Float32 within a few thousand columns, float64 across. A row on which that is not enough (λ not certain to
3e-7, overflow, −inf or NaN, an infinite divergence, more ties at the top than are kept) is computed again:
first by the same kernels with −inf provided for, then in float64. On logits of language models the last is
rare; on nearly uniform rows (p_max near 1/V) it is common and slow.

Accuracy against float64: λ relative 1e-6; the others 1e-6·max(1, |value|). The kld of ``rows_all``, and of
``rows_peer`` with ``precise=True``, is a sum of non-negative terms, so it keeps its relative accuracy where
the two rows are close. Equal rows give exactly 0. A −inf logit has probability 0; a row with NaN, +inf or
no finite logit gives NaN, indices −1 and False.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import triton

from quantvane.displacement.ops._torch_exact import EXACT_ROWS, exact_rows
from quantvane.displacement.ops._triton_finish import FINISH_FIELDS, combine_kernel, finish_kernel
from quantvane.displacement.ops._triton_pair import N_PAIR, pair_kernel
from quantvane.displacement.ops._triton_span import N_SUMS, span_kernel
from quantvane.errors import DataError

__all__ = ["PEER_FIELDS", "Spans", "finish", "first_read", "rows", "rows_all", "rows_peer", "second_read"]

PEER_FIELDS = (*FINISH_FIELDS, "top1_ref", "top1_cand", "same_top1")
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_FILL = 512  # programs that keep a large GPU busy: fewer rows than this are split
_MAX_PARTS = 4
THREADS = 64
INNER = 4  # blocks of THREADS·VEC columns summed in float32 before float64


@dataclass(frozen=True, slots=True)
class Spans:
    """What the first read leaves behind, and how the vocabulary was cut.

    sums (T, parts, 12) float64; held (2, T, parts, lanes) float32; shifts, observed (2, T) float32;
    tops (2, T, parts) float32 and top_cols (2, T, parts) int32 where the argmax was tracked, else empty.
    """

    sums: torch.Tensor
    held: torch.Tensor
    shifts: torch.Tensor
    observed: torch.Tensor
    tops: torch.Tensor
    top_cols: torch.Tensor
    span: int
    lanes: int

    @classmethod
    def allocate(cls, T: int, parts: int, span: int, lanes: int, device: torch.device, track: bool) -> Spans:
        """Uninitialised storage; every element is written by the span kernel."""
        n = parts if track else 0
        f32 = {"dtype": torch.float32, "device": device}
        return cls(
            torch.empty((T, parts, N_SUMS), dtype=torch.float64, device=device),
            torch.empty((2, T, parts, lanes), **f32),
            torch.empty((2, T), **f32),
            torch.empty((2, T), **f32),
            torch.empty((2, T, n), **f32),
            torch.empty((2, T, n), dtype=torch.int32, device=device),
            span,
            lanes,
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


def first_read(
    ref: torch.Tensor, cand: torch.Tensor, tokens: torch.Tensor, precise: bool, clamp: bool
) -> Spans:
    """Launch the span kernel over whole rows, split where there are few of them; clamp provides for −inf."""
    T, V = ref.shape
    vec = 16 // ref.element_size()
    lanes = THREADS * vec
    parts = max(1, min(_MAX_PARTS, _FILL // T, V // (8 * lanes)))
    span = -(-V // (parts * lanes)) * lanes
    parts = -(-V // span)
    store = Spans.allocate(T, parts, span, lanes, ref.device, track=False)
    span_kernel[(T, parts)](
        ref, cand, tokens, store.shifts, store.sums, store.held, store.observed, store.tops, store.top_cols,
        ref.stride(0), cand.stride(0), V, T, V, span, 0, parts,
        THREADS=THREADS, VEC=vec, INNER=INNER, ROUNDS=triton.next_power_of_2(-(-span // lanes)),
        GIVEN=False, TRACK=False, PRECISE=precise, CLAMP=clamp, num_warps=THREADS // 32,
    )  # fmt: skip
    return store


def finish(
    store: Spans, ref: torch.Tensor, cand: torch.Tensor, shape: tuple[int, int], top_k: int, precise: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(values (11, T) float64, integers (3, T) int32, flags (T,) int32) from the first read's sums.

    ``top_k`` = 0 takes the argmax that was tracked during the read; otherwise the top entries are reread.
    """
    T, V = shape
    device = store.sums.device
    parts = store.sums.shape[1]
    kc = triton.next_power_of_2(top_k + 3) if top_k > 1 else 4
    held = triton.next_power_of_2(parts * store.lanes)
    values = torch.empty((len(FINISH_FIELDS) + 1, T), dtype=torch.float64, device=device)
    integers = torch.empty((3, T), dtype=torch.int32, device=device)
    flags = torch.empty((T,), dtype=torch.int32, device=device)
    sides = torch.empty((2, 4, T), dtype=torch.float64, device=device)
    chosen = torch.empty((2, T, kc), dtype=torch.int32, device=device)
    side_flags = torch.empty((2, T), dtype=torch.int32, device=device)
    padded = triton.next_power_of_2(parts)
    finish_kernel[(T, 2)](
        store.sums, store.held, store.tops, store.top_cols, ref, cand, sides, chosen, side_flags,
        ref.stride(0), cand.stride(0), V, T, store.span, parts,
        LANES=store.lanes, HELD=held, PARTS=padded,
        ROUNDS=triton.next_power_of_2(-(-store.span // store.lanes)),
        K=max(top_k, 1), KC=kc, TRACK=top_k == 0, num_warps=max(2 if top_k > 1 else 1, min(8, held // 1024)),
    )  # fmt: skip
    combine_kernel[(-(-T // 32),)](
        store.sums, sides, chosen, store.shifts, store.observed, side_flags,
        values, integers, flags, T, parts,
        ROWS=32, PARTS=padded, KC=kc, PRECISE=precise, num_warps=4,
    )  # fmt: skip
    return values, integers, flags


def second_read(
    store: Spans,
    done: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    logits: tuple[torch.Tensor, torch.Tensor],
    clamp: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(pair (6, T) float64, ranks (T,) int32) after ``done = finish(…)``; flags infinite divergences
    there."""
    values, integers, flags = done
    ref, cand = logits
    T, V = ref.shape
    pair = torch.empty((N_PAIR, T), dtype=torch.float64, device=ref.device)
    ranks = torch.empty((T,), dtype=torch.int32, device=ref.device)
    pair_kernel[(T,)](
        ref, cand, store.shifts, values[len(FINISH_FIELDS)], integers, pair, ranks, flags,
        ref.stride(0), cand.stride(0), V, T,
        THREADS=THREADS, VEC=16 // ref.element_size(), INNER=INNER, CLAMP=clamp, num_warps=THREADS // 32,
    )  # fmt: skip
    return pair, ranks


def peer_fields(values: torch.Tensor, integers: torch.Tensor) -> dict[str, torch.Tensor]:
    """Named views of the finish kernel's output."""
    out = {name: values[i] for i, name in enumerate(FINISH_FIELDS)}
    out["top1_ref"], out["top1_cand"] = integers[0], integers[1]
    out["same_top1"] = integers[0] == integers[1]
    return out


Logits = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Attempt = Callable[[Logits, bool], tuple[dict[str, torch.Tensor], torch.Tensor]]


def with_repair(attempt: Attempt, logits: Logits, top_k: int) -> dict[str, torch.Tensor]:
    """attempt(logits, clamp) → (fields, flags); flagged rows are tried again with clamp, then in float64.

    One synchronisation with the device, more only where rows are flagged.
    """
    out, flags = attempt(logits, False)
    flagged = torch.nonzero(flags).squeeze(1)
    if not len(flagged):
        return out
    some: Logits = (logits[0][flagged], logits[1][flagged], logits[2][flagged])
    again, flags = attempt(some, True)
    hopeless = torch.nonzero(flags).squeeze(1)
    for part in hopeless.split(EXACT_ROWS):
        exact = exact_rows(some[0][part], some[1][part], some[2][part], top_k)
        for name, value in again.items():
            value[part] = exact[name].to(value.dtype)
    for name, value in out.items():
        value[flagged] = again[name]
    return out


def rows_peer(
    ref: torch.Tensor, cand: torch.Tensor, tokens: torch.Tensor, *, precise: bool = True
) -> dict[str, torch.Tensor]:
    """The fields of PEER_FIELDS, (T,) each, in one read of both matrices.

    Args:
        ref, cand: (T, V) logits, bfloat16, float16 or float32, any row stride.
        tokens: (T,) observed token ids, in [0, V).
        precise: sum the divergence as Σ p(eᵈ−1−d), which keeps its relative accuracy when it is small; False
            takes Σ p(a−b) less the normalisers' difference, absolute accuracy about 1e-7, and is faster.

    Raises:
        DataError: see ``check``.
    """

    def attempt(some: Logits, clamp: bool) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        a, b, y = some
        store = first_read(a, b, y, precise, clamp)
        values, integers, flags = finish(store, a, b, (a.shape[0], a.shape[1]), 1, precise)
        return peer_fields(values, integers), flags

    return with_repair(attempt, check(ref, cand, tokens), 1)


def rows_all(
    ref: torch.Tensor, cand: torch.Tensor, tokens: torch.Tensor, top_k: int = 10
) -> dict[str, torch.Tensor]:
    """Every field of TokenMetrics, (T,) each, in two reads of both matrices; arguments as for ``rows_peer``.

    topk_overlap divides by min(top_k, V); of equal logits the first columns belong to the set.

    Raises:
        DataError: see ``check``, or top_k outside [1, 29].
    """
    if not 1 <= top_k <= 29:
        raise DataError("top_k has no kernel", expected="1 to 29", got=str(top_k))

    def attempt(some: Logits, clamp: bool) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        a, b, y = some
        k = min(top_k, a.shape[1])
        store = first_read(a, b, y, False, clamp)
        done = finish(store, a, b, (a.shape[0], a.shape[1]), k, False)
        pair, ranks = second_read(store, done, (a, b), clamp)
        out = peer_fields(done[0], done[1])
        for i, name in enumerate(("kld", "kld_rev", "jsd", "tv", "hellinger")):
            out[name] = pair[i]
        out["fisher_rao"] = 4.0 * torch.asin((0.5 * pair[5]).sqrt())
        out["topk_overlap"] = done[1][2].double() / k
        out["rank_in_cand"] = ranks
        return out, done[2]

    return with_repair(attempt, check(ref, cand, tokens), top_k)


def rows(ref: torch.Tensor, cand: torch.Tensor, tokens: torch.Tensor, top_k: int) -> dict[str, torch.Tensor]:
    """Backend entry point: ``rows_all``; float64, int32 and bool tensors on the logits' device."""
    return rows_all(ref, cand, tokens, top_k)
