"""Curvature of the output distribution: λ_max of the Fisher information, exact and bounded. Pure; loads no torch."""

from quantvane.fisher.bounds import lambda_bounds_topk
from quantvane.fisher.logit import (
    lambda_bracket,
    lambda_heuristic_interval,
    lambda_max,
    lambda_max_from_logprobs,
    published_heuristic,
)

__all__ = [
    "lambda_bounds_topk",
    "lambda_bracket",
    "lambda_heuristic_interval",
    "lambda_max",
    "lambda_max_from_logprobs",
    "published_heuristic",
]
