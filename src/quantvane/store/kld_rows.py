"""Rows of llama.cpp's ``--kl-divergence-base`` file: logits to 16-bit log-probabilities and back.

One row holds one position's distribution over V tokens in ``nv = 2·⌊(V+1)/2⌋ + 4`` 16-bit words: scale and
min_log_prob (float32, two words each), V codes, and one zero word where V is odd. All arithmetic is float32
except the sum of exponentials, so that the bytes are those llama.cpp writes:

    mx = max l,  mn = max(min l, mx − 16),  lse = ln Σ exp(l − mx),  scale = (mx − mn)/65535
    min_log_prob = mn − mx − lse,  code = rint((l − mn)·(1/scale)), 0 where l ≤ mn

and a decoded log-probability is ``scale·code + min_log_prob``. Everything 16 nats or more below the most
likely token is thereby stored as if it were 16 below: a clip, not a rounding.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, prange

from quantvane.errors import DataError

__all__ = ["HEAD_WORDS", "decode_rows", "encode_rows", "row_words"]

HEAD_WORDS = 4
"""16-bit words of a row before its codes: float32 scale, float32 min_log_prob."""

# A Python literal is float64 to numba and would silently widen the arithmetic.
_ZERO = np.float32(0)
_ONE = np.float32(1)
_CLIP = np.float32(16)
_STEPS = np.float32(65535)
# Adding 1.5·2²³ leaves a float32's integer part, rounded half to even, in its low mantissa bits.
_ROUNDER = np.float32(12582912)


def row_words(vocab_size: int) -> int:
    """16-bit words of one row over ``vocab_size`` tokens, padding included; always even."""
    return 2 * ((vocab_size + 1) // 2) + HEAD_WORDS


# math.exp of a float32 is the C library's expf, which llama.cpp calls too; NumPy's differs from it in the
# last bit for two values in five. The strictly ordered float64 sum keeps the loop scalar, so no vector
# library's exp can take its place.
@njit(cache=True, parallel=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _encode(logits: Any, highs: Any, lows: Any, heads: Any, words: Any) -> None:
    rows, size = logits.shape
    for r in prange(rows):
        row = logits[r]
        high = highs[r]
        low = max(lows[r], high - _CLIP)
        total = 0.0
        for i in range(size):
            total += math.exp(row[i] - high)
        log_sum = np.float32(math.log(total))
        scale = (high - low) / _STEPS
        heads[r, 0] = scale
        heads[r, 1] = low - high - log_sum
        if scale != _ZERO:
            inverse = _ONE / scale
            for i in range(size):
                rounded = np.float32(inverse * (row[i] - low) + _ROUNDER)
                code = (rounded.view(np.int32) & 0x7FFFFF) - 0x400000
                words[r, HEAD_WORDS + i] = np.uint16(code) if row[i] > low else np.uint16(0)


def encode_rows(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Encode logits (T, V) float32 as file rows (T, nv) uint16, bit for bit as llama.cpp does.

    −inf logits are stored as clipped. Cost: about 4 ns a logit on one core (one expf each), shared among
    numba's threads.

    Raises:
        DataError: not a float32 matrix, or a row whose log-softmax is not finite (NaN, +inf, or all −inf).
    """
    if logits.ndim != 2 or logits.dtype != np.float32 or logits.shape[1] < 1:
        raise DataError(
            "logits to be stored have the wrong shape or type",
            expected="a float32 array (positions, vocabulary)",
            got=f"{logits.dtype} {logits.shape}",
        )
    words = np.zeros((len(logits), row_words(logits.shape[1])), np.uint16)
    heads = words.view(np.float32)
    if len(logits):
        _encode(np.ascontiguousarray(logits), logits.max(axis=1), logits.min(axis=1), heads, words)
    bad = np.flatnonzero(~np.isfinite(heads[:, 1]))
    if bad.size:
        raise DataError(
            f"{bad.size} of {len(logits)} rows of logits have no finite log-softmax, first row {bad[0]}",
            expected="no NaN, no +inf and at least one finite logit in every row",
            got=f"maximum {logits[bad[0]].max()}, minimum {logits[bad[0]].min()}",
            remedy="check the model file and the engine settings: the engine computed these values",
        )
    return words


def decode_rows(
    scale: npt.NDArray[np.float32], min_log_prob: npt.NDArray[np.float32], codes: npt.NDArray[np.uint16]
) -> npt.NDArray[np.float32]:
    """Log-probabilities (T, V) float32 from scale (T,), min_log_prob (T,) and codes (T, V).

    ``scale·code + min_log_prob``, product and sum each rounded to float32, as llama.cpp reads them. The rows
    are not renormalised: clipping and rounding leave Σ exp within about 1e-4 of 1.
    """
    out = codes.astype(np.float32)
    out *= scale[:, None]
    out += min_log_prob[:, None]
    return out
