"""How far a candidate's next-token distributions lie from the reference's. Pure: no file, engine or CLI."""

from quantvane.displacement.metrics import token_metrics

__all__ = ["token_metrics"]
