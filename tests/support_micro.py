"""A Llama so small that every matrix about it can be formed, in float64 throughout."""

from __future__ import annotations

from typing import Any

import numpy as np


def micro_llama(seed: int = 0, *, tie: bool = False, vocabulary: int = 40, width: int = 8, layers: int = 2) -> Any:
    """Random LlamaForCausalLM with weights large enough for peaked outputs."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width + 4,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        initializer_range=0.4,
        tie_word_embeddings=tie,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).double().eval()

    class Norm(torch.nn.Module):
        """The library's norm computes in float32 whatever the model's type is."""

        def __init__(self, weight: Any, epsilon: float) -> None:
            super().__init__()
            self.weight, self.epsilon = weight, epsilon

        def forward(self, x: Any) -> Any:
            return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.epsilon)

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__ == "LlamaRMSNorm":
                setattr(module, name, Norm(child.weight, child.variance_epsilon))
    return model


def micro_direction(model: Any, seed: int = 1, size: float = 0.05) -> dict[str, np.ndarray]:
    """A random perturbation of every parameter."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=tuple(v.shape)) * size for name, v in model.named_parameters()}
