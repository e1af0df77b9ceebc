"""llama.cpp's per-token pass over a base row and a candidate's logits, in its own mixed precision.

Float32 throughout, except the sum of exponentials, its logarithm and the sum of the divergence (float64). The
exponential is the C library's expf, as in llama.cpp: numba compiles math.exp of a float32 to it, and the
strictly ordered sums keep these loops scalar.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit, prange

__all__ = ["peer_pass"]

# A Python literal is float64 to numba and would silently widen the arithmetic.
_FLOOR = np.float32(-16)


@njit(cache=True, parallel=True, error_model="numpy")  # type: ignore[untyped-decorator]
def peer_pass(
    scale: Any, min_log_prob: Any, codes: Any, logits: Any, targets: Any, kld: Any, floats: Any, same_top: Any
) -> None:
    """Fill kld (T,) float64, floats (3, T) float32 = nll, nll_base, delta_p, and same_top (T,) bool.

    Args:
        scale, min_log_prob: (T,) float32. codes: (T, V) uint16. logits: (T, V) float32. targets: (T,) int32.
    """
    rows, size = logits.shape
    for r in prange(rows):
        high = logits[r, 0]
        top = 0
        for i in range(1, size):
            if logits[r, i] > high:
                high = logits[r, i]
                top = i
        total = 0.0
        for i in range(size):
            total += math.exp(logits[r, i] - high)
        log_sum = np.float32(math.log(total))
        target = targets[r]
        nll = high + log_sum - logits[r, target]
        nll_base = -(scale[r] * np.float32(codes[r, target]) + min_log_prob[r])

        normaliser = high + log_sum
        divergence = 0.0
        base_high = np.float32(0)
        base_top = -1
        for i in range(size):
            log_base = scale[r] * np.float32(codes[r, i]) + min_log_prob[r]
            if i == 0 or log_base > base_high:
                base_high = log_base
                base_top = i
            if log_base > _FLOOR:
                divergence += math.exp(log_base) * (log_base - logits[r, i] + normaliser)
        kld[r] = divergence
        floats[0, r] = nll
        floats[1, r] = nll_base
        floats[2, r] = math.exp(-nll) - math.exp(-nll_base)
        same_top[r] = top == base_top
