"""How ggml rounds the activations it multiplies with a weight matrix: what makes W·h reproduce its logits.

On the CPU, ggml converts the vector h to the type its dot product with the weight's type is written for
(``vec_dot_type`` in ggml-cpu.c) before it multiplies. A product with the unrounded h is another number: by
2e-3 of a logit's size for a BF16 matrix, 7e-3 for Q6_K. Arithmetic is float32, as in ggml's x86 kernels; other
processors and GPUs may round otherwise, which is why a recording is always checked against the engine.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

__all__ = ["ROUNDINGS", "rounding_of"]

Array = npt.NDArray[np.float32]


def _none(x: Array) -> Array:
    return x


def _f16(x: Array) -> Array:
    """Nearest half-precision value, ties to even; beyond 65504 infinite."""
    with np.errstate(over="ignore"):
        return x.astype(np.float16).astype(np.float32)


def _bf16(x: Array) -> Array:
    """Nearest bfloat16 value, ties to even: half of the dropped part is added, one less where the kept is even."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    kept = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    out: Array = kept.view(np.float32)
    out[np.isnan(x)] = np.nan
    return out


def _q8_0(x: Array) -> Array:
    """Blocks of 32: 8-bit integers times a half-precision scale; the integers are made with the exact scale."""
    blocks = x.reshape(-1, 32)
    high = np.abs(blocks).max(axis=1, keepdims=True)
    inverse = np.divide(np.float32(127), high, out=np.zeros_like(high), where=high != 0)
    scale = _f16(high / np.float32(127))
    out: Array = (np.rint(blocks * inverse) * scale).reshape(x.shape)
    return out


def _q8_k(x: Array) -> Array:
    """Blocks of 256: 8-bit integers times a float32 scale, signed so that the largest entry becomes −127."""
    blocks = x.reshape(-1, 256)
    at = np.abs(blocks).argmax(axis=1)[:, None]  # the first of equals, as in ggml
    extreme = np.take_along_axis(blocks, at, axis=1)
    inverse = np.divide(np.float32(-127), extreme, out=np.zeros_like(extreme), where=extreme != 0)
    scale = np.divide(np.float32(1), inverse, out=np.zeros_like(inverse), where=inverse != 0)
    return (np.minimum(np.rint(blocks * inverse), np.float32(127)) * scale).reshape(x.shape)


ROUNDINGS: dict[str, Callable[[Array], Array]] = {
    "f32": _none,
    "f16": _f16,
    "bf16": _bf16,
    "q8_0": _q8_0,
    "q8_K": _q8_k,
}
"""Name → (…, d) float32 → (…, d) float32. ``q8_0`` needs d a multiple of 32, ``q8_K`` of 256."""

# Q4_1 and Q5_1 are absent on purpose: their dot product also uses a rounded sum of h, so that no rounding of h
# alone reproduces it.
_DOT_TYPE = {
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "MXFP4"), "q8_0"),
    **dict.fromkeys(("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "TQ1_0", "TQ2_0", "IQ4_XS"), "q8_K"),
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"), "q8_K"),
    "F32": "f32",
    "F16": "f16",
    "BF16": "bf16",
}


def rounding_of(tensor_type: str) -> str | None:
    """The name in `ROUNDINGS` for a matrix of a GGUF tensor type; None where none is known to fit."""
    return _DOT_TYPE.get(tensor_type)
