"""The Gauss–Newton matrix of a model as a matrix-vector product, by curvlinops."""

from __future__ import annotations

from typing import Any

import numpy as np

from quantvane.errors import CapabilityError
from quantvane.fisher.lanczos import MatVec
from quantvane.fisher.scored_model import ScoredModel
from quantvane.types import FloatArray

__all__ = ["gauss_newton"]


def gauss_newton(model: ScoredModel) -> MatVec:
    """v (P,) float64 → F v (P,), F = (1/N) Σ J_iᵀ (diag p_i − p_i p_iᵀ) J_i: the true Fisher.

    Coordinates are those of `ScoredModel.flat`. Computed in the parameters' own type. The forward pass must have a
    forward-mode derivative, which fused attention has not: open such models with spelled-out attention.

    Raises:
        CapabilityError: curvlinops is not installed, or the forward pass cannot be differentiated forward.
    """
    try:
        import torch
        from curvlinops.ggn import make_ggn_vector_product
    except ImportError as problem:
        raise CapabilityError(
            "Gauss–Newton products need curvlinops",
            expected="the package curvlinops-for-pytorch",
            got=str(problem),
            remedy='pip install "quantvane[fisher]"',
        ) from None

    names = list(model.params)
    theta = tuple(model.params[name] for name in names)

    def forward(*args: Any) -> Any:  # curvlinops's order: parameters, then the input, which is fixed here
        return model.logits(dict(zip(names, args[:-1], strict=True)))

    product = make_ggn_vector_product(forward, torch.nn.functional.cross_entropy)

    def matvec(vector: FloatArray) -> FloatArray:
        try:
            parts = product(theta, None, model.labels, *model.unflat(vector).values())
        except (RuntimeError, NotImplementedError) as problem:
            if "forward AD" not in str(problem) and "forward-mode" not in str(problem):
                raise
            raise CapabilityError(
                "this forward pass has no forward-mode derivative",
                expected="attention that is spelled out",
                got=str(problem).strip().splitlines()[0][:200],
                remedy="open the model with ?attn=eager",
            ) from None
        return np.concatenate([part.detach().double().cpu().numpy().ravel() for part in parts])

    return matvec
