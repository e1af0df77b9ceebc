"""A transformers model on a line of weights θ + tδ: states, jets, gradients. Needs torch.

The model itself is never changed: every point of the line is a functional call. Derivatives of the states are
exact forward-mode derivatives (a Jacobian-vector product of a Jacobian-vector product), no finite differences.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from quantvane.errors import CapabilityError, DataError
from quantvane.fisher.jets import Jet, States
from quantvane.fisher.scored_model import ScoredModel
from quantvane.types import FloatArray

__all__ = ["WeightLine", "inner_products"]

Ids = npt.NDArray[np.integer]


class WeightLine:
    """θ + tδ of one model.

    Args:
        model: a transformers causal language model (any type) whose logits are W h + b of its final states.
        direction: parameter name → δ, in the parameter's shape; names left out do not move. Tied weights are
            named once, as ``model.named_parameters()`` names them.

    Raises:
        DataError: a name the model lacks, or another shape.
        CapabilityError: logits that are scaled or soft-capped.
    """

    def __init__(self, model: Any, direction: Mapping[str, npt.ArrayLike]) -> None:
        import torch

        self._torch, self._model = torch, model
        named = dict(model.named_parameters())
        unknown = sorted(set(direction) - set(named))
        if unknown:
            raise DataError(
                f"the model has no parameter '{unknown[0]}'",
                expected="names of model.named_parameters()",
                got=f"{len(unknown)} unknown names",
                remedy="take the direction from the same model's weights",
            )
        config = model.config.get_text_config()
        if any(getattr(config, name, None) for name in ("final_logit_softcapping", "logits_soft_cap")) or any(
            getattr(config, name, None) not in (None, 1, 1.0)
            for name in ("logit_scale", "logits_scaling", "lm_head_multiplier")
        ):
            raise CapabilityError(
                f"the logits of {type(model).__name__} are no linear function of its final states",
                expected="logits = W h + b",
                got="a scale or a soft cap in the config",
                remedy="use a model without one",
            )
        self._base = {k: v.detach() for k, v in named.items()}
        self._delta: dict[str, Any] = {}
        for name, array in direction.items():
            values = torch.as_tensor(np.asarray(array)).to(self._base[name])
            if values.shape != self._base[name].shape:
                raise DataError(
                    f"the direction of '{name}' has another shape than the parameter",
                    expected=str(tuple(self._base[name].shape)),
                    got=str(tuple(values.shape)),
                    remedy="take the direction from the same model's weights",
                )
            self._delta[name] = values
        head = model.get_output_embeddings()
        by_id = {id(v): k for k, v in named.items()}
        self._head = by_id[id(head.weight)]
        self._bias = by_id.get(id(head.bias)) if head.bias is not None else None
        self._prefix = model.base_model_prefix + "."

    @property
    def size(self) -> int:
        """P, number of parameters (tied ones counted once)."""
        return sum(v.numel() for v in self._base.values())

    @property
    def relative_norm(self) -> float:
        """‖δ‖/‖θ‖ over all parameters."""
        norms = [sum(float(v.double().square().sum()) for v in d.values()) for d in (self._delta, self._base)]
        return float(np.sqrt(norms[0] / norms[1])) if norms[1] > 0 else float("nan")

    def _weights(self, t: Any) -> dict[str, Any]:
        return {k: v + t * self._delta[k] if k in self._delta else v for k, v in self._base.items()}

    def _hidden(self, weights: Mapping[str, Any], ids: Ids, rows: Ids) -> Any:
        torch = self._torch
        own = {k.removeprefix(self._prefix): v for k, v in weights.items() if k.startswith(self._prefix)}
        device = self._base[self._head].device
        tokens = torch.as_tensor(np.asarray(ids, np.int64), device=device)[None]
        backend = torch.nn.attention.SDPBackend.MATH  # the fused kernels have no forward derivatives
        with torch.nn.attention.sdpa_kernel(backend):
            out = torch.func.functional_call(self._model.base_model, own, (), {"input_ids": tokens, "use_cache": False})
        return out.last_hidden_state[0, torch.as_tensor(np.asarray(rows, np.int64), device=device)]

    def _logits(self, weights: Mapping[str, Any], ids: Ids, rows: Ids) -> Any:
        bias = None if self._bias is None else weights[self._bias]
        return self._torch.nn.functional.linear(self._hidden(weights, ids, rows), weights[self._head], bias)

    def _states(self, hidden: Any, weights: Mapping[str, Any]) -> States:
        bias = None if self._bias is None else weights.get(self._bias)
        return States(_array(hidden), _array(weights[self._head]), None if bias is None else _array(bias))

    def states(self, ids: Ids, rows: Ids, t: float = 0.0) -> States:
        """The last step at θ + tδ for one sequence ``ids`` (n,), at the positions ``rows`` (N,)."""
        with self._torch.no_grad():
            weights = self._weights(t)
            return self._states(self._hidden(weights, ids, rows), weights)

    def jet(self, ids: Ids, rows: Ids) -> Jet:
        """`states` at t = 0 with first and second derivatives, by nested forward-mode differentiation."""
        torch = self._torch
        ref = self._base[self._head]
        zero, one = ref.new_zeros(()), ref.new_ones(())

        def along(t: Any) -> Any:
            return self._hidden(self._weights(t), ids, rows)

        def speed(t: Any) -> Any:
            return torch.func.jvp(along, (t,), (one,))

        with torch.enable_grad():  # without it the nested derivative of some activations is not implemented
            (hidden, first), (_, second) = torch.func.jvp(speed, (zero,), (one,))
        moved = {
            name: self._delta.get(name, torch.zeros_like(self._base[name]))
            for name in (self._head, self._bias)
            if name is not None
        }
        return Jet(self._states(hidden, self._base), self._states(first, moved), _array(second))

    def gradients(self, ids: Ids, rows: Ids, targets: Ids, t: float = 0.0) -> Any:
        """∂(−ln p(yᵢ))/∂θ at θ + tδ, one row a position: (N, P) tensor in the model's type.

        One backward pass a row; N·P numbers are held.
        """
        torch = self._torch
        leaves = {k: v.detach().clone().requires_grad_() for k, v in self._weights(t).items()}
        with torch.enable_grad():
            logits = self._logits(leaves, ids, rows)
            wanted = torch.as_tensor(np.asarray(targets, np.int64), device=logits.device)
            losses = torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
        out = losses.new_empty((len(losses), self.size))
        for row, loss in enumerate(losses):
            again = row + 1 < len(losses)
            parts = torch.autograd.grad(loss, list(leaves.values()), retain_graph=again, allow_unused=True)
            at = 0
            for leaf, part in zip(leaves.values(), parts, strict=True):
                out[row, at : at + leaf.numel()] = 0.0 if part is None else part.reshape(-1)
                at += leaf.numel()
        return out

    def gradient_jets(self, ids: Ids, rows: Ids, targets: Ids, step: float) -> tuple[Any, Any, Any]:
        """Gradients (N, P) at t = 0 with their first and second derivatives, by central differences of ``step``.

        The error is of order step² plus rounding/step²: a step of which step·‖δ‖/‖θ‖ is about 1e-2 suits float32,
        1e-3 float64; see `difference_step`.
        """
        down, middle, up = (self.gradients(ids, rows, targets, t) for t in (-step, 0.0, step))
        return middle, (up - down) / (2.0 * step), (up - middle - (middle - down)) / step**2

    def difference_step(self) -> float:
        """A step in t for central differences: 1e-2 (float64: 1e-3) of ‖θ‖ over ‖δ‖; 1 where δ is 0."""
        size = 1e-3 if self._base[self._head].dtype == self._torch.float64 else 1e-2
        relative = self.relative_norm
        return size / relative if relative > 0 else 1.0

    def scored(self, ids: Ids, rows: Ids, targets: Ids, t: float = 0.0) -> ScoredModel:
        """θ + tδ on one sequence, as the parameter-space functions take it."""
        wanted = self._torch.as_tensor(np.asarray(targets, np.int64), device=self._base[self._head].device)
        return ScoredModel(lambda weights: self._logits(weights, ids, rows), self._weights(t), wanted)


def inner_products(*groups: Any) -> FloatArray:
    """X Xᵀ of rows stacked from (Nₖ, P) tensors, products in float64 a slice of P at a time."""
    import torch

    count = sum(len(g) for g in groups)
    total = np.zeros((count, count))
    for at in range(0, groups[0].shape[1], 1 << 18):
        part = torch.cat([g[:, at : at + (1 << 18)].double() for g in groups])
        total += (part @ part.T).cpu().numpy()
    return total


def _array(tensor: Any) -> FloatArray:
    out: FloatArray = tensor.detach().double().cpu().numpy()
    return out
