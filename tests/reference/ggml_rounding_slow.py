"""Slow, obvious twins of ggml's roundings: one value at a time, each float32 step spelled out."""

from __future__ import annotations

import math
import struct

import numpy as np


def f32(value: float) -> float:
    """Round a double to float32. One × or ÷ of float32 values, then this, is the float32 operation."""
    return float(np.float32(value))


def f16(value: float) -> float:
    """Nearest half-precision value by its definition: 11 significant bits, exponent at least −14."""
    if value == 0 or not math.isfinite(value):
        return value
    exponent = max(math.frexp(value)[1] - 11, -24)
    rounded = math.ldexp(round(math.ldexp(value, -exponent)), exponent)  # Python's round: ties to even
    return math.copysign(math.inf, value) if abs(rounded) > 65504 else rounded


def bf16(value: float) -> float:
    """Nearest of the two bfloat16 values around a float32 one; the even one of a tie."""
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    low = bits & 0xFFFF0000
    rest = bits & 0xFFFF
    odd = (bits >> 16) & 1
    if rest > 0x8000 or (rest == 0x8000 and odd):
        low += 0x10000
    return struct.unpack("<f", struct.pack("<I", low & 0xFFFFFFFF))[0]


def q8_0(values: list[float]) -> list[float]:
    out: list[float] = []
    for at in range(0, len(values), 32):
        block = values[at : at + 32]
        high = max(abs(v) for v in block)
        inverse = f32(127 / high) if high else 0.0
        scale = f16(f32(high / 127))
        out += [f32(round(f32(v * inverse)) * scale) for v in block]
    return out


def q8_k(values: list[float]) -> list[float]:
    out: list[float] = []
    for at in range(0, len(values), 256):
        block = values[at : at + 256]
        extreme = 0.0
        for v in block:
            if abs(v) > abs(extreme):
                extreme = v
        if extreme == 0:
            out += [0.0] * 256
            continue
        inverse = f32(-127 / extreme)
        scale = f32(1 / inverse)
        out += [f32(min(127, round(f32(inverse * v))) * scale) for v in block]
    return out
