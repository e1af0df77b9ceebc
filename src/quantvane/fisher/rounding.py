"""Rounding of weights as arrays: round-to-nearest at b bits, and the noise any rounding leaves behind.

Two uses: candidates of a declared, engine-free kind (round-to-nearest), and *a type's own rounding noise*, the
per-tensor size of (dequantized − original) that a prediction may use without running the quantized model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantvane.errors import DataError
from quantvane.types import FloatArray

__all__ = ["GROUP", "Noise", "draw_noise", "measure_noise", "round_to_nearest"]

GROUP = 64
"""Weights that share a scale and an offset, along the last axis."""


def round_to_nearest(weight: npt.ArrayLike, bits: int, group: int = GROUP) -> FloatArray:
    """Weights after asymmetric round-to-nearest with 2^bits levels between each group's smallest and largest.

    A group is ``group`` neighbours of one row, the last of a row may be shorter; with a = min, b = max and the
    step s = (b − a)/(2^bits − 1), w becomes a + s·round((w − a)/s), ties to even. Scale and offset are kept
    exactly, so this measures the rounding of the weights alone; both ends of a group are preserved, |error| ≤
    s/2, and a constant group is preserved.

    Args:
        weight: (…, n), real. bits: 1 to 16. group: 1 or more.

    Returns:
        float64 of the same shape.

    Raises:
        DataError: an array without a last axis, non-finite weights, bits or group out of range.
    """
    array = np.asarray(weight, dtype=np.float64)
    if array.ndim == 0 or array.size == 0 or not bool(np.isfinite(array).all()):
        raise DataError(
            "these weights cannot be rounded",
            expected="a non-empty array of finite numbers with a last axis",
            got=f"shape {array.shape}, {int(np.count_nonzero(~np.isfinite(array)))} not finite",
            remedy="pass a weight matrix",
        )
    if not 1 <= bits <= 16 or group < 1:
        raise DataError(
            "rounding parameters out of range",
            expected="bits from 1 to 16, group of 1 or more",
            got=f"bits={bits}, group={group}",
            remedy="correct them",
        )
    n = array.shape[-1]
    starts = np.arange(0, n, group)
    sizes = np.diff(np.append(starts, n))
    low = np.repeat(np.minimum.reduceat(array, starts, axis=-1), sizes, axis=-1)
    high = np.repeat(np.maximum.reduceat(array, starts, axis=-1), sizes, axis=-1)
    step = (high - low) / (2**bits - 1)
    level = np.rint(np.divide(array - low, step, out=np.zeros_like(array), where=step > 0))
    return np.where(level == 2**bits - 1, high, low + level * step)


@dataclass(frozen=True, slots=True)
class Noise:
    """Rounding noise of one model under one type.

    Attributes:
        scale: tensor name → root mean square of (rounded − original), 0 where a tensor was kept.
        bias: tensor name → mean of (rounded − original).
        sizes: tensor name → number of weights.
        weight_norm: ‖θ‖ over the same tensors.
    """

    scale: dict[str, float]
    bias: dict[str, float]
    sizes: dict[str, int]
    weight_norm: float

    @property
    def norm(self) -> float:
        """‖δ‖ = √Σ nₖ scaleₖ²."""
        return math.sqrt(sum(self.sizes[k] * s * s for k, s in self.scale.items()))

    @property
    def relative(self) -> float:
        """‖δ‖/‖θ‖; NaN for a model of zeros."""
        return self.norm / self.weight_norm if self.weight_norm > 0 else math.nan


def measure_noise(original: Mapping[str, npt.ArrayLike], rounded: Mapping[str, npt.ArrayLike]) -> Noise:
    """Per-tensor noise of rounded weights against the originals.

    Raises:
        DataError: other names, or a tensor of another shape.
    """
    if set(original) != set(rounded):
        odd = sorted(set(original) ^ set(rounded))
        raise DataError(
            "two sets of weights do not match",
            expected="the same tensor names",
            got=f"{len(odd)} names in one of them only, for example {odd[0]}",
            remedy="pass the original and the rounded weights of one model",
        )
    scale, bias, sizes, total = {}, {}, {}, 0.0
    for name, before in original.items():
        first, second = np.asarray(before, np.float64), np.asarray(rounded[name], np.float64)
        if first.shape != second.shape:
            raise DataError(
                f"tensor '{name}' has another shape after rounding",
                expected=str(first.shape),
                got=str(second.shape),
                remedy="pass the original and the rounded weights of one model",
            )
        delta = second - first
        scale[name] = math.sqrt(float(np.mean(delta**2))) if delta.size else 0.0
        bias[name] = float(np.mean(delta)) if delta.size else 0.0
        sizes[name] = int(delta.size)
        total += float(np.sum(first**2))
    return Noise(scale, bias, sizes, math.sqrt(total))


def draw_noise(
    noise: Noise, shapes: Mapping[str, tuple[int, ...]], rng: np.random.Generator
) -> dict[str, npt.NDArray[np.float32]]:
    """A perturbation of the noise's size and no other structure: independent N(0, scale²) per weight.

    Rounding errors of a group are uniform rather than normal and depend on the weight; only their second moment
    enters the expected first- and second-order terms, which is why the shape does not matter there.

    Args:
        shapes: tensor name → shape, for every name of the noise.
    """
    return {
        name: (
            rng.standard_normal(shapes[name], dtype=np.float32) * np.float32(noise.scale[name])
            if noise.scale[name] > 0
            else np.zeros(shapes[name], np.float32)
        )
        for name in sorted(noise.scale)
    }
