"""The backend ``triton``: NumPy logits to an NVIDIA GPU and every field of TokenMetrics back."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from quantvane.displacement.ops import numpy_rows
from quantvane.displacement.ops.common import bad_row
from quantvane.errors import CapabilityError
from quantvane.types import TOKEN_FIELDS, TokenMetrics

__all__ = ["rows"]

_BLOCK_BYTES = 1 << 30  # of logits on the device at once, if one row does not need more


def rows(
    ref: npt.NDArray[Any], cand: npt.NDArray[Any], tokens: npt.NDArray[np.int64], top_k: int
) -> TokenMetrics:
    """Every field of `TokenMetrics`; see `quantvane.displacement.token_metrics` for shapes and errors.

    float64 logits are rounded to float32; float16 and float32 are used as they are. top_k at most 26.

    Raises:
        CapabilityError: torch or triton is not installed, there is no CUDA device, or top_k is larger.
    """
    try:
        import torch
        import triton  # noqa: F401
    except ImportError as error:
        raise CapabilityError(
            "backend 'triton' cannot be loaded",
            expected="torch and triton to be installed",
            got=str(error),
            remedy="pip install torch triton, or name the backend 'numba' or 'numpy'",
        ) from error
    if not torch.cuda.is_available():
        raise CapabilityError(
            "backend 'triton' has no device to run on",
            expected="a CUDA device that torch can see",
            got="torch.cuda.is_available() is False",
            remedy="run where there is an NVIDIA GPU, or name the backend 'numba' or 'numpy'",
        )
    from quantvane.displacement.ops.triton_rows import MAX_TOP_K, rows_all

    if top_k > MAX_TOP_K:
        raise CapabilityError(
            f"backend 'triton' compares at most {MAX_TOP_K} top entries",
            expected=f"top_k from 1 to {MAX_TOP_K}",
            got=str(top_k),
            remedy="name the backend 'numba' or 'numpy'",
        )
    count, vocab = ref.shape
    if not count:
        return numpy_rows.rows(ref, cand, tokens, top_k)  # nothing to compute
    kind = np.float16 if ref.dtype == cand.dtype == np.float16 else np.float32
    step = max(1, _BLOCK_BYTES // (2 * vocab * np.dtype(kind).itemsize))
    blocks: list[dict[str, npt.NDArray[Any]]] = []
    for start in range(0, count, step):
        part = slice(start, start + step)
        x, y = (np.ascontiguousarray(side[part], dtype=kind) for side in (ref, cand))
        device = [torch.from_numpy(array).to("cuda") for array in (x, y, np.ascontiguousarray(tokens[part]))]
        out = rows_all(device[0], device[1], device[2], top_k)
        block = {name: value.cpu().numpy() for name, value in out.items()}
        _refuse_bad(x, y, block["top1_ref"], start)
        blocks.append(block)
    return TokenMetrics(**{name: np.concatenate([block[name] for block in blocks]) for name in TOKEN_FIELDS})


def _refuse_bad(x: npt.NDArray[Any], y: npt.NDArray[Any], top: npt.NDArray[np.int32], start: int) -> None:
    if (top < 0).any():
        row = int((top < 0).argmax())
        name, side = ("ref_logits", x) if not np.isfinite(x[row].max()) else ("cand_logits", y)
        raise bad_row(name, start + row, side[row])
