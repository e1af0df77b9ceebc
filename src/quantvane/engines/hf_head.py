"""The last step of a causal model, taken apart: logits = softcap(scale · (W h + b)), in float32.

Run in half precision, a model computes this step in half precision too, which rounds every logit to 8 or 11
bits: a displacement of its own that has nothing to do with the weights compared. Here it is always float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quantvane.errors import EngineError

__all__ = ["BLOCK_BYTES", "Head", "candidates", "recognise"]

BLOCK_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Head:
    """logits = softcap · tanh(scale · (W h + b) / softcap); without a soft cap, scale · (W h + b).

    Attributes:
        weight: (V, d) float32 tensor. bias: (V,) float32 tensor or None.
        scale: factor on W h + b. softcap: the cap c of c·tanh(x/c), or None.
    """

    weight: Any
    bias: Any
    scale: float
    softcap: float | None

    def apply(self, hidden: Any) -> Any:
        """(rows, d) tensor of any type → (rows, V) float32 tensor."""
        import torch

        logits = torch.nn.functional.linear(hidden.float(), self.weight, self.bias)
        if self.scale != 1.0:
            logits *= self.scale
        if self.softcap is not None:
            logits = torch.tanh_(logits.div_(self.softcap)).mul_(self.softcap)
        return logits

    def blocks(self, hidden: Any, block_bytes: int = BLOCK_BYTES) -> Iterator[npt.NDArray[np.float32]]:
        """`apply` in blocks of at most ``block_bytes`` (and at least one row)."""
        rows = max(1, block_bytes // (4 * int(self.weight.shape[0])))
        for start in range(0, int(hidden.shape[0]), rows):
            block: npt.NDArray[np.float32] = self.apply(hidden[start : start + rows]).cpu().numpy()
            yield block


def candidates(config: Any) -> list[tuple[float, float | None]]:
    """(scale, softcap) pairs that the config's own fields suggest, likeliest first.

    Fields: ``final_logit_softcapping`` (Gemma 2 and 3), ``logits_soft_cap`` (RecurrentGemma); ``logit_scale``
    (Cohere, multiplies), ``logits_scaling`` (Granite divides by it, HyperCLOVA X multiplies),
    ``lm_head_multiplier`` (Falcon-H1, multiplies). One name may mean two things: both readings are listed.
    """

    def positive(name: str) -> float | None:
        value = getattr(config, name, None)
        usable = isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
        return float(value) if usable and value is not None else None

    scales: list[float] = []
    for name in ("logit_scale", "lm_head_multiplier"):
        if (value := positive(name)) is not None:
            scales.append(value)
    if (value := positive("logits_scaling")) is not None:
        scales += [1.0 / value, value]
    scales.append(1.0)
    caps: list[float | None] = [
        c for n in ("final_logit_softcapping", "logits_soft_cap") if (c := positive(n))
    ]
    caps.append(None)
    return list(dict.fromkeys((scale, cap) for cap in caps for scale in scales))


def recognise(model: Any, hidden: Any, own_logits: Any) -> Head:
    """The head of a model, proved on rows of the model's own logits.

    Args:
        model: the transformers model. hidden: (rows, d) final hidden states.
        own_logits: (rows, V) what the model itself makes of them.

    Raises:
        EngineError: no combination of scale and cap reproduces them; the difference is named.
    """
    import torch

    layer = model.get_output_embeddings()
    weight = getattr(layer, "weight", None)
    config = model.config.get_text_config()
    name = type(model).__name__
    if weight is None or weight.ndim != 2 or weight.shape[1] != hidden.shape[-1]:
        shape = None if weight is None else tuple(weight.shape)
        raise _unknown(name, f"a head weight of shape (V, {hidden.shape[-1]})", f"shape {shape}")
    bias = getattr(layer, "bias", None)
    weight32 = weight.detach().float()
    bias32 = None if bias is None else bias.detach().float()
    own = own_logits.float()
    if own.shape[-1] != weight32.shape[0]:
        raise _unknown(name, f"{weight32.shape[0]} logits", f"{own.shape[-1]} logits")
    # The model's own logits are rounded to its type, and so may be the sums behind them: two units of that.
    tolerance = max(1e-4, 2 * float(torch.finfo(weight.dtype).eps))
    size = max(float(own.abs().max()), 1e-6)
    tried = []
    for scale, cap in candidates(config):
        head = Head(weight32, bias32, scale, cap)
        difference = float((head.apply(hidden) - own).abs().max()) / size
        if difference <= tolerance:
            return head
        tried.append(f"scale {scale:g}, softcap {cap}: {difference:.2e}")
    raise _unknown(
        name,
        f"a relative difference of at most {tolerance:.0e} from the model's own logits",
        "; ".join(tried),
    )


def _unknown(name: str, expected: str, got: str) -> EngineError:
    return EngineError(
        f"the head of {name} cannot be computed apart from the model",
        expected=expected,
        got=got,
        remedy="measure this architecture through another engine, for example a GGUF of it",
    )
