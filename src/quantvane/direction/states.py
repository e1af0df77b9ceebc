"""Outcome states stay apart: what each counts as is declared, and how often it occurred is reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quantvane.direction.flips import as_outcomes
from quantvane.errors import DataError

__all__ = ["DEFAULT_COUNTS_AS", "STATES", "OutcomeStates", "count_as", "declared"]

STATES = ("correct", "wrong", "truncated", "unparsed", "timeout", "error")
"""``truncated``: stopped by a token cap; ``unparsed``: no answer found in the output."""

DEFAULT_COUNTS_AS = {"truncated": "scored", "unparsed": "wrong", "timeout": "wrong", "error": "wrong"}
_TREATMENTS = ("wrong", "correct", "scored", "excluded")


@dataclass(frozen=True, slots=True)
class OutcomeStates:
    """How often each state occurred, and what it counted as.

    Attributes:
        reference, candidate: state → share of all items, excluded ones included; without states only
            ``correct`` and ``wrong``, as scored.
        counts_as: state → "wrong", "correct", "scored" (what the harness said) or "excluded".
        excluded: items left out because either side's state is excluded.
    """

    reference: Mapping[str, float]
    candidate: Mapping[str, float]
    counts_as: Mapping[str, str]
    excluded: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "reference": dict(self.reference),
            "candidate": dict(self.candidate),
            "counts_as": dict(self.counts_as),
            "excluded": self.excluded,
        }


def declared(counts_as: Mapping[str, str] | None) -> dict[str, str]:
    """The default declaration with the given one over it.

    Raises:
        DataError: a state or treatment that does not exist.
    """
    found = dict(DEFAULT_COUNTS_AS)
    for state, treatment in (counts_as or {}).items():
        if state not in found or treatment not in _TREATMENTS:
            raise DataError(
                f"'{state}={treatment}' declares nothing",
                expected=f"one of {', '.join(found)} = one of {', '.join(_TREATMENTS)}",
                got=f"{state}={treatment}",
                remedy="for example truncated=wrong",
            )
        found[state] = treatment
    return found


def count_as(
    correct: Any, states: Sequence[str | None], counts_as: Mapping[str, str] | None = None
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Outcomes once states are counted as declared.

    Args:
        correct: (n,) bool, as the harness scored.
        states: n states; None or "correct"/"wrong" leaves the outcome as scored.

    Returns:
        (n,) outcomes and (n,) which items stay in.

    Raises:
        DataError: unknown state, lengths differ, or a state "correct"/"wrong" that contradicts the outcome.
    """
    scored = as_outcomes(correct, "correct")
    rules = declared(counts_as)
    known = {*STATES, None}
    unknown = sorted({str(s) for s in states if s not in known})
    if unknown or len(states) != len(scored):
        raise DataError(
            "these are no states of the outcomes",
            expected=f"{len(scored)} of {', '.join(STATES)}",
            got=f"{len(states)} states" + (f", among them {', '.join(unknown[:5])}" if unknown else ""),
            remedy="map other words to these first",
        )
    against = [i for i, s in enumerate(states) if s in ("correct", "wrong") and (s == "correct") != scored[i]]
    if against:
        raise DataError(
            f"{len(against)} states contradict their outcome",
            expected="state 'correct' exactly where the outcome is correct",
            got=f"items {', '.join(map(str, against[:5]))}",
            remedy="leave the state out, or mend the outcome",
        )
    treatment = np.array([rules.get(s or "", "scored") for s in states], dtype="U8")
    outcome = np.where(treatment == "scored", scored, treatment == "correct")
    return outcome.astype(np.bool_), treatment != "excluded"


def rates(correct: npt.NDArray[np.bool_], states: Sequence[str | None] | None) -> dict[str, float]:
    """State → share of items; empty without items."""
    n = len(correct)
    if not n:
        return {}
    if states is None:
        right = int(correct.sum())
        return {"correct": right / n, "wrong": (n - right) / n}
    words = [s or ("correct" if right else "wrong") for s, right in zip(states, correct, strict=True)]
    return {state: words.count(state) / n for state in STATES}
