"""The last step of a model as plain arrays: logits = softcap(scale · (W h + b)), h rounded as the engine does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from quantvane.engines.base import Engine
from quantvane.engines.ggml_rounding import ROUNDINGS
from quantvane.types import Window

__all__ = ["HiddenEngine", "OutputHead", "output_heads"]

Array = npt.NDArray[np.float32]

# What a transformers model computed in: its hidden states are values of that type.
_HF_TYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


@dataclass(frozen=True, slots=True)
class OutputHead:
    """logits = softcap · tanh(scale · (W r(h) + b) / softcap); without a soft cap, scale · (W r(h) + b).

    Attributes:
        weight: W, (V, d) float32. bias: b, (V,) float32 or None.
        scale: factor on W h + b. softcap: the cap c of c·tanh(x/c), or None.
        rounding: r, a name in `quantvane.engines.ggml_rounding.ROUNDINGS`.
        tensor_type: the type W has in its own file, for the record.
    """

    weight: Array
    bias: Array | None = None
    scale: float = 1.0
    softcap: float | None = None
    rounding: str = "f32"
    tensor_type: str = ""

    def round(self, hidden: Array) -> Array:
        """(rows, d) as the engine gives them → (rows, d) as it multiplies them; rounding twice changes nothing."""
        return ROUNDINGS[self.rounding](hidden)

    def logits(self, rounded: Array) -> Array:
        """(rows, d) rounded hidden states → (rows, V) float32. Cost: 2·rows·d·V operations in float32."""
        out = rounded @ self.weight.T
        if self.bias is not None:
            out += self.bias
        if self.scale != 1.0:
            out *= np.float32(self.scale)
        if self.softcap is not None:
            out /= np.float32(self.softcap)
            np.tanh(out, out=out)
            out *= np.float32(self.softcap)
        return out


@runtime_checkable
class HiddenEngine(Engine, Protocol):
    """An engine with the capability ``hidden``."""

    def hidden(self, windows: Sequence[Window]) -> Iterator[Array]:
        """Final hidden states, after the norm, of every scored position in order: (rows, d) float32 blocks.

        A block may be a view that is valid until the next is asked for. Raises EngineError where decoding fails.
        """
        ...


def output_heads(engine: Any) -> list[OutputHead]:
    """Heads that may reproduce an engine's logits from its hidden states, likeliest first.

    None of them is proved: the one to use is the one that reproduces logits. The list is empty where the engine's
    head is of a type whose arithmetic is not known here.
    """
    if hasattr(engine, "output_heads"):
        return list(engine.output_heads())
    if not hasattr(engine, "head"):
        return []
    weight, bias, scale, softcap = engine.head()
    rounding = _HF_TYPES.get(str(engine.info.settings.get("dtype", "")), "f32")
    return [OutputHead(weight, bias, scale, softcap, kind) for kind in dict.fromkeys((rounding, "f32"))]
