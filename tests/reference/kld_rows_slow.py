"""Slow, obvious twin of the base file's row encoder: one value at a time, every rounding spelled out."""

from __future__ import annotations

import ctypes
import ctypes.util
import math
import struct

import numpy as np

_libm = ctypes.CDLL(ctypes.util.find_library("m"))
_libm.expf.restype = ctypes.c_float
_libm.expf.argtypes = [ctypes.c_float]


def f32(value: float) -> float:
    """Round to float32. One + − × ÷ of float32 values in double, then this, is the float32 operation."""
    with np.errstate(over="ignore"):  # to infinity, as in float32
        return float(np.float32(value))


def expf(value: float) -> float:
    """The C library's float32 exponential."""
    return float(_libm.expf(value))


def encode_row(logits: list[float]) -> bytes:
    """The bytes of one row for float32-valued logits with scale 0 or of normal size."""
    high = max(logits)
    low = max(min(logits), f32(high - 16.0))
    total = 0.0
    for value in logits:
        total += expf(f32(value - high))
    log_sum = f32(math.log(total))
    scale = f32(f32(high - low) / 65535.0)
    min_log_prob = f32(f32(low - high) - log_sum)
    codes = []
    for value in logits:
        if scale == 0.0 or value <= low:
            codes.append(0)
        else:
            inverse = f32(1.0 / scale)
            codes.append(round(f32(inverse * f32(value - low))))  # Python's round: half to even
    if len(codes) % 2:
        codes.append(0)
    return struct.pack("<2f", scale, min_log_prob) + struct.pack(f"<{len(codes)}H", *codes)


def decode_row(row: bytes, size: int) -> list[float]:
    """Log-probabilities of one row."""
    scale, min_log_prob = struct.unpack_from("<2f", row)
    codes = struct.unpack_from(f"<{size}H", row, 8)
    return [f32(f32(scale * code) + min_log_prob) for code in codes]
