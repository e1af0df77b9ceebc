"""Which way: items a candidate loses, wins and changes, and what can be concluded from them.

Formulas and measured coverages: docs/direction.md.
"""

from quantvane.direction.compare import OutcomeComparison, compare_outcomes
from quantvane.direction.flips import Flips, count_flips
from quantvane.direction.states import STATES, OutcomeStates, count_as

__all__ = [
    "STATES",
    "Flips",
    "OutcomeComparison",
    "OutcomeStates",
    "compare_outcomes",
    "count_as",
    "count_flips",
]
