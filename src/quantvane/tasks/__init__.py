"""Outcomes per item: read from evaluation harnesses' files, aligned item by item."""

from quantvane.tasks.outcomes import AlignedTask, Alignment, Outcome, OutcomeSet, align
from quantvane.tasks.reading import ReadOptions, read_outcomes

__all__ = ["AlignedTask", "Alignment", "Outcome", "OutcomeSet", "ReadOptions", "align", "read_outcomes"]
