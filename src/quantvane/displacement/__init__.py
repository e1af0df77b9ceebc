"""How far a candidate's next-token distributions lie from the reference's. Pure: no file, engine or CLI."""

from quantvane.displacement.metrics import token_metrics
from quantvane.displacement.topk import kld_bounds_topk

__all__ = ["kld_bounds_topk", "token_metrics"]
