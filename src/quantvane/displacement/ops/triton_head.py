"""Displacement on the GPU from hidden states and output heads, without ever holding T×V logits.

The vocabulary is cut into chunks. For each, two matrix products put float32 logits into a small workspace
(products of bf16 are exact in float32, and nothing is rounded back to bf16), and the one-read kernel folds
them into per-row sums; a last kernel turns the sums of all chunks into metrics. Given those logits the
metrics are as accurate as those of ``triton_rows``. The logits themselves carry the matrix unit's
accumulation over d, which on Hopper truncates: about 1e-5 relative at d = 2048, so NLL and entropy are
within 1e-4 and λ_max within a relative 1e-4 of float64 logits, kld (in which a common error cancels) within
1e-6.

Cost: two matrix products of 2·T·d·V operations, and 8·T·V bytes of workspace written and read again. Extra
memory: two workspaces of ROW_BLOCK×chunk float32 and about 1 KiB per row and chunk, together under 512 MiB at any
T and V.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from quantvane.displacement.ops._triton_read import Done, Shape, Spans
from quantvane.displacement.ops._triton_span import shift_kernel
from quantvane.displacement.ops.triton_rows import finish, peer_fields, rows_peer
from quantvane.errors import DataError

__all__ = ["Heads", "head_peer"]

ROW_BLOCK = 4096
CHUNK = 8192
SHAPE = Shape(threads=64, vec=4, inner=32, unroll=8, bins=16, seconds=True)
_REPAIR = 64  # rows whose full logits are formed at once, where the sums were not enough


@dataclass(frozen=True, slots=True)
class Heads:
    """Two output heads (V, d), row-major; the same tensor twice where the head is shared. Logits are h·Wᵀ."""

    ref: torch.Tensor
    cand: torch.Tensor


def _logits(hidden: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
    """out (n, w) float32 = hidden (n, d) · weightᵀ, accumulated and kept in float32."""
    if hidden.dtype == torch.float32:
        torch.mm(hidden, weight.t(), out=out)
    elif hidden.is_cuda:
        torch.mm(hidden, weight.t(), out_dtype=torch.float32, out=out)
    else:  # only CUDA has the mixed product
        torch.mm(hidden.float(), weight.float().t(), out=out)


def _check(h_ref: torch.Tensor, h_cand: torch.Tensor, heads: Heads, tokens: torch.Tensor) -> None:
    T, d = h_ref.shape if h_ref.dim() == 2 else (0, 0)
    V = heads.ref.shape[0]
    if (
        not T
        or not V
        or h_cand.shape[:1] != (T,)
        or heads.ref.shape != (V, d)
        or heads.cand.shape != (V, *h_cand.shape[1:])
        or tokens.shape != (T,)
    ):
        raise DataError(
            "hidden states, heads and tokens do not fit together",
            expected="hidden states (T, d), heads (V, d) with the d of their side, tokens (T,)",
            got=f"{tuple(h_ref.shape)}, {tuple(h_cand.shape)}, {tuple(heads.ref.shape)}, "
            f"{tuple(heads.cand.shape)}, {tuple(tokens.shape)}",
        )
    kinds = {(x.dtype, x.device) for x in (h_ref, h_cand, heads.ref, heads.cand)}
    if len(kinds) != 1 or h_ref.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise DataError(
            "hidden states and heads differ in type or device, or have a type without a kernel",
            expected="one of bfloat16, float16, float32, on one device",
            got=str(sorted(map(str, kinds))),
        )


def _chunk_width(V: int, chunk: int) -> int:
    """Nearly equal chunks, in multiples of 256 columns (a matrix product's tile)."""
    parts = max(1, round(V / chunk))
    return -(-V // (parts * 256)) * 256


def _row_block(
    h: tuple[torch.Tensor, torch.Tensor], heads: Heads, tokens: torch.Tensor, work: torch.Tensor, width: int
) -> Done:
    """Metrics of one block of rows, flagged rows not yet repaired; work (2, ≥ n·width) float32."""
    n, V = len(tokens), heads.ref.shape[0]
    parts = triton.cdiv(V, width)
    store = Spans.allocate(SHAPE, n, parts, width, tokens.device, track=True)
    if store.cells > SHAPE.cells(V - (parts - 1) * width):
        store.held.zero_()  # the last, narrower part fills fewer cells
    guess = torch.stack([  # only a guess of the scale of each row's exponentials
        torch.bmm(x[:, None, :], w[tokens][:, :, None])[:, 0, 0].float()
        for x, w in zip(h, (heads.ref, heads.cand), strict=True)
    ])  # fmt: skip
    done = Done.allocate(n, tokens.device, False)
    a = b = work[0]
    for part in range(parts):
        low = part * width
        w = min(width, V - low)
        a, b = (side[: n * w].view(n, w) for side in work)
        _logits(h[0], heads.ref[low : low + w], a)
        _logits(h[1], heads.cand[low : low + w], b)
        if part == 0:
            shift_kernel[(n,)](a, b, guess, store.shifts, w, w, w, n, SAMPLE=1024, num_warps=4)
        store.read(a, b, tokens, done.ready[0], origin=low, part=part, given=True)
    finish(store, done, a, b, V)
    return done


def head_peer(
    h_ref: torch.Tensor,
    h_cand: torch.Tensor,
    heads: Heads,
    tokens: torch.Tensor,
    *,
    row_block: int = ROW_BLOCK,
    chunk: int = CHUNK,
) -> dict[str, torch.Tensor]:
    """The fields of ``triton_rows.PEER_FIELDS``, (T,) each, from hidden states after the final norm.

    Waits once for the device, to ask whether any row must be computed again.

    Args:
        h_ref, h_cand: (T, d) bfloat16, float16 or float32; the two d may differ.
        heads: the two heads, in the same type.
        tokens: (T,) observed token ids, in [0, V).
        row_block, chunk: rows and (about) columns of the workspaces.

    Raises:
        DataError: shapes, types or devices that do not fit together.
    """
    _check(h_ref, h_cand, heads, tokens)
    device = h_ref.device
    tokens = tokens.to(device=device, dtype=torch.int64)
    T, V = len(tokens), heads.ref.shape[0]
    width = _chunk_width(V, chunk)
    work = torch.empty((2, min(T, row_block) * min(width, V)), dtype=torch.float32, device=device)
    blocks = []
    for low in range(0, T, row_block):
        some = slice(low, low + row_block)
        blocks.append(_row_block((h_ref[some], h_cand[some]), heads, tokens[some], work, width))
    values, integers, flags = (
        torch.cat(tensors, dim=-1)
        for tensors in zip(*((b.values, b.integers, b.flags) for b in blocks), strict=True)
    )
    del work
    out = peer_fields(values, integers, (integers[0] == integers[1]) & (integers[0] >= 0))
    flagged = torch.nonzero(flags).squeeze(1)
    for some in flagged.split(_REPAIR) if len(flagged) else ():
        pair = torch.empty((2, len(some), V), dtype=torch.float32, device=device)
        _logits(h_ref[some], heads.ref, pair[0])
        _logits(h_cand[some], heads.cand, pair[1])
        again = rows_peer(pair[0], pair[1], tokens[some])
        for name, value in out.items():
            value[some] = again[name]
    return out
