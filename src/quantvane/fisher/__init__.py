"""Curvature of the output distribution: λ_max of the Fisher information, exact and bounded. Pure."""

from quantvane.fisher.bounds import lambda_bounds_topk
from quantvane.fisher.logit import (
    lambda_bracket,
    lambda_heuristic_interval,
    lambda_max,
    lambda_max_from_logprobs,
    published_heuristic,
)
from quantvane.fisher.torch_logit import lambda_max_torch

__all__ = [
    "lambda_bounds_topk",
    "lambda_bracket",
    "lambda_heuristic_interval",
    "lambda_max",
    "lambda_max_from_logprobs",
    "lambda_max_torch",
    "published_heuristic",
]
