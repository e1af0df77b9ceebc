"""Curvature of a model's output: λ_max of the Fisher information in logit, hidden, head and parameter space. Pure.

Importing it loads no torch: parameter space brings torch when something is computed.
"""

from quantvane.fisher.bounds import lambda_bounds_topk
from quantvane.fisher.estimates import LambdaEstimate, TraceBounds, gram_lambda, trace_bounds
from quantvane.fisher.head import head_empirical, head_gram, head_sampled, head_true
from quantvane.fisher.hidden import HiddenLambda, hidden_lambda, hidden_lambda_torch
from quantvane.fisher.lanczos import lanczos_lambda, lanczos_pair
from quantvane.fisher.line import WeightLine
from quantvane.fisher.logit import (
    lambda_bracket,
    lambda_heuristic_interval,
    lambda_max,
    lambda_max_from_logprobs,
    published_heuristic,
)
from quantvane.fisher.output_map import OutputMap
from quantvane.fisher.params import (
    empirical_gram,
    empirical_lambda,
    gradient_rows,
    sampled_labels,
    sampled_lambda,
    sketched_gram,
    true_lambda,
)
from quantvane.fisher.params_operator import gauss_newton
from quantvane.fisher.params_sketch import SKETCH_WIDTH, CountSketch
from quantvane.fisher.perturbation import output_terms, output_value, weyl_output
from quantvane.fisher.rounding import measure_noise, round_to_nearest
from quantvane.fisher.scored_model import ScoredModel, scored_model
from quantvane.fisher.torch_logit import lambda_max_torch

__all__ = [
    "SKETCH_WIDTH",
    "CountSketch",
    "HiddenLambda",
    "LambdaEstimate",
    "OutputMap",
    "ScoredModel",
    "TraceBounds",
    "WeightLine",
    "empirical_gram",
    "empirical_lambda",
    "gauss_newton",
    "gradient_rows",
    "gram_lambda",
    "head_empirical",
    "head_gram",
    "head_sampled",
    "head_true",
    "hidden_lambda",
    "hidden_lambda_torch",
    "lambda_bounds_topk",
    "lambda_bracket",
    "lambda_heuristic_interval",
    "lambda_max",
    "lambda_max_from_logprobs",
    "lambda_max_torch",
    "lanczos_lambda",
    "lanczos_pair",
    "measure_noise",
    "output_terms",
    "output_value",
    "published_heuristic",
    "round_to_nearest",
    "sampled_labels",
    "sampled_lambda",
    "scored_model",
    "sketched_gram",
    "trace_bounds",
    "true_lambda",
    "weyl_output",
]
