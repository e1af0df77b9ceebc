"""One candidate against its reference on the same items: counts, intervals, tests, verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quantvane.direction.flips import as_outcomes, count_flips
from quantvane.direction.states import OutcomeStates, count_as, declared, rates
from quantvane.errors import DataError
from quantvane.stats.equivalence import Equivalence, items_needed, tost
from quantvane.stats.paired import direction_interval, mcnemar, paired_interval
from quantvane.stats.pairs import pair_counts
from quantvane.stats.sequential import EProcess, betting
from quantvane.types import Interval

__all__ = ["OutcomeComparison", "compare_outcomes"]


@dataclass(frozen=True, slots=True)
class OutcomeComparison:
    """What one candidate's outcomes say against the reference's; fields as in ``flips --json``.

    Attributes:
        n: items compared. score_ref, score_cand: shares right. delta: Δ = score_cand − score_ref.
        drops, leapfrogs, sidesteps: right→wrong, wrong→right, both wrong with different answers.
        answer_churn: share of items whose answer differs. volume: V. direction: D, with Δ = V·D.
        mcnemar_p: exact, two-sided; over clusters where items share a source.
        equivalent: two one-sided tests at the margin. items_needed: for that margin at 80% power.
        eprocess: the test that may be watched item by item.
        states: rates of the outcome states and what each counted as.
        reasons: field → why it is None or NaN.
    """

    n: int
    score_ref: float
    score_cand: float
    delta: Interval
    drops: int
    leapfrogs: int
    sidesteps: int | None
    answer_churn: float
    volume: float
    direction: Interval
    mcnemar_p: float
    equivalent: Equivalence
    items_needed: int | None
    eprocess: EProcess
    states: OutcomeStates
    reasons: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """The F object of the command-line contract; null for NaN, explained in ``reasons`` (there only if needed)."""
        plain: dict[str, Any] = {
            "n": self.n,
            "score_ref": self.score_ref,
            "score_cand": self.score_cand,
            "delta": self.delta.to_dict(),
            "drops": self.drops,
            "leapfrogs": self.leapfrogs,
            "sidesteps": self.sidesteps,
            "answer_churn": self.answer_churn,
            "volume": self.volume,
            "direction": self.direction.to_dict(),
            "mcnemar_p": self.mcnemar_p,
            "equivalent": self.equivalent.to_dict(),
            "items_needed": self.items_needed,
            "eprocess": self.eprocess.to_dict(),
            "states": self.states.to_dict(),
        }
        out = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in plain.items()}
        return out | ({"reasons": dict(self.reasons)} if self.reasons else {})


def compare_outcomes(
    ref_correct: Any,
    cand_correct: Any,
    margin: float = 0.02,
    clusters: Any = None,
    *,
    answers: tuple[Sequence[Any], Sequence[Any]] | None = None,
    states: tuple[Sequence[str | None], Sequence[str | None]] | None = None,
    counts_as: Mapping[str, str] | None = None,
    alpha: float = 0.05,
) -> OutcomeComparison:
    """Compare a candidate with its reference, item by item.

    Args:
        ref_correct, cand_correct: (n,) bool: was the item right.
        margin: difference in score that would not matter, declared before the data are seen (0.02: two points).
        clusters: (n,) labels of items that share a source (a passage, a template); intervals and tests then
            treat the cluster as the unit. None: items stand alone.
        answers: (reference's, candidate's) n answers each, for sidesteps and answer churn.
        states: (reference's, candidate's) n of `STATES` each, or None where the item is plainly right or wrong.
        counts_as: state → "wrong", "correct", "scored" (as in ``correct``) or "excluded" (the item leaves both
            sides); by default truncated is as scored, and unparsed, timeout and error are wrong.
        alpha: level of the tests; intervals cover 1 − alpha.

    Raises:
        DataError: lengths or types that do not fit, margin or alpha out of range.

    >>> found = compare_outcomes([True] * 90 + [False] * 10, [True] * 85 + [False] * 15)
    >>> found.drops, found.leapfrogs, found.mcnemar_p, found.equivalent.verdict
    (5, 0, 0.0625, 'undecided')

    Methods and their measured coverage: docs/direction.md.
    """
    ref, cand = as_outcomes(ref_correct, "ref_correct"), as_outcomes(cand_correct, "cand_correct")
    labels = None if clusters is None else _labels(clusters)
    scored = count_flips(ref, cand, *(answers or (None, None)))  # also checks that lengths agree
    seen = OutcomeStates(
        rates(ref, states[0] if states else None),
        rates(cand, states[1] if states else None),
        declared(counts_as),
    )
    if states is not None:
        (ref, ref_in), (cand, cand_in) = (
            count_as(side, words, counts_as) for side, words in zip((ref, cand), states, strict=True)
        )
        stay = ref_in & cand_in
        seen = OutcomeStates(seen.reference, seen.candidate, seen.counts_as, int((~stay).sum()))
        ref, cand = ref[stay], cand[stay]
        labels = labels[stay] if labels is not None and len(labels) == len(stay) else labels
        if answers is not None:
            where = np.flatnonzero(stay).tolist()
            answers = [answers[0][i] for i in where], [answers[1][i] for i in where]
        scored = count_flips(ref, cand, *(answers or (None, None)))
    pairs = pair_counts(ref, cand, labels)
    test, needed = mcnemar(pairs), items_needed(pairs, margin, alpha)
    reasons = {"items_needed": needed.reason, "mcnemar_p": test.reason}
    if answers is None:
        reasons |= dict.fromkeys(("sidesteps", "answer_churn"), "answers are not known")
    if not scored.n:
        reasons |= dict.fromkeys(("score_ref", "score_cand", "volume", "answer_churn"), "no items")
    return OutcomeComparison(
        n=scored.n,
        score_ref=scored.score_ref,
        score_cand=scored.score_cand,
        delta=paired_interval(pairs, 1 - alpha),
        drops=scored.drops,
        leapfrogs=scored.leapfrogs,
        sidesteps=scored.sidesteps,
        answer_churn=scored.answer_churn,
        volume=scored.volume,
        direction=direction_interval(pairs, 1 - alpha),
        mcnemar_p=test.p,
        equivalent=tost(pairs, margin, alpha),
        items_needed=needed.items,
        eprocess=betting(ref, cand, margin, labels, alpha),
        states=seen,
        reasons={field: reason for field, reason in reasons.items() if reason},
    )


def _labels(clusters: Any) -> npt.NDArray[Any]:
    found: npt.NDArray[Any] = np.asarray(clusters)
    if found.ndim == 1 and found.dtype != object:
        return found
    # mixed or nested labels: numbered by first appearance, so that 1 and "1" stay two clusters
    try:
        number: dict[Any, int] = {}
        return np.array([number.setdefault(label, len(number)) for label in clusters], dtype=np.int64)
    except TypeError:
        raise DataError(
            "clusters are no labels",
            expected="one number, word or tuple for each item",
            got=f"shape {found.shape}, type {found.dtype}",
            remedy="name each item's source",
        ) from None
