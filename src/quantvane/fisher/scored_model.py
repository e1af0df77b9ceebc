"""A model on fixed inputs as a function of its parameters: what parameter space is measured on.

torch is imported when something is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from quantvane.errors import DataError
from quantvane.types import FloatArray

__all__ = ["ScoredModel", "scored_model"]

Tensor = Any  # a torch tensor; torch is not imported for a type


@dataclass(frozen=True, slots=True)
class ScoredModel:
    """A model on fixed inputs, as a function of its parameters.

    Attributes:
        logits: parameters (name → tensor) → logits (N, V) of the N scored positions, differentiable.
        params: θ, name → tensor. Weights that shall not count stay inside ``logits``.
        labels: (N,) int64 tensor, the observed tokens.
    """

    logits: Callable[[Mapping[str, Tensor]], Tensor]
    params: Mapping[str, Tensor]
    labels: Tensor

    @property
    def size(self) -> int:
        """P, the number of parameters."""
        return sum(int(tensor.numel()) for tensor in self.params.values())

    def at(self, params: Mapping[str, Tensor]) -> ScoredModel:
        """The same model and inputs at other parameters of the same names and shapes.

        Raises:
            DataError: other names or shapes.
        """
        ours = {name: tuple(tensor.shape) for name, tensor in self.params.items()}
        theirs = {name: tuple(tensor.shape) for name, tensor in params.items()}
        if ours != theirs:
            raise DataError(
                "these are not the model's parameters",
                expected=f"{len(ours)} tensors of the same names and shapes",
                got=f"{len(theirs)} tensors; differing: {sorted(set(ours.items()) ^ set(theirs.items()))[:2]}",
                remedy="keep names, order and shapes",
            )
        return replace(self, params={name: params[name] for name in self.params})

    def flat(self) -> FloatArray:
        """θ as one (P,) float64 vector, in the order of ``params``: the coordinates of every vector here."""
        return np.concatenate([t.detach().double().cpu().numpy().ravel() for t in self.params.values()])

    def unflat(self, vector: FloatArray) -> dict[str, Tensor]:
        """(P,) → name → tensor, in the parameters' types and on their devices."""
        import torch

        out, start = {}, 0
        for name, tensor in self.params.items():
            part = torch.from_numpy(np.ascontiguousarray(vector[start : start + tensor.numel()]))
            out[name] = part.reshape(tensor.shape).to(tensor)
            start += tensor.numel()
        return out


def scored_model(
    module: Any, inputs: Mapping[str, Tensor], pick: Callable[[Any], Tensor], labels: Tensor
) -> ScoredModel:
    """A torch module on fixed inputs.

    Args:
        module: the model, in evaluation mode; all its parameters count, tied ones once.
        inputs: keyword arguments of its forward pass.
        pick: its output → logits (N, V) of the scored positions.
        labels: (N,) observed tokens.
    """
    from torch.func import functional_call

    def logits(params: Mapping[str, Tensor]) -> Tensor:
        return pick(functional_call(module, dict(params), (), dict(inputs)))

    return ScoredModel(logits, {n: p.detach() for n, p in module.named_parameters()}, labels)
