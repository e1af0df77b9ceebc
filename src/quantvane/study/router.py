"""A router between two candidates: where exactly one of them is right, which rule picks it?

Over all pairs of the region's candidates and all items on which one is right and the other wrong: the share of such
cases in which the rule picks the right one. A tie of the rule counts half. Items are shared by the pairs, so the
interval is of a ratio of sums over items, Student's on the logit scale.

Rules: ``kld``: lower KLD on the item; ``random``: ½ by definition; ``global``: the better composite on the other half
of the items (each half judged by the other); ``kld_corpus``: lower main metric; ``nll``: lower NLL of the right
answer to a generated item, which looks at the answer and is therefore a bound, no router; ``margin``: on choices, the
larger difference between the model's own choice and the runner-up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from quantvane.stats.resampling import Resampling, ratio_intervals
from quantvane.study.cohort import Bools, Cohort
from quantvane.study.resample import Splits
from quantvane.study.zone import half_scores
from quantvane.types import FloatArray, Interval

__all__ = ["RULES", "Route", "route"]

RULES: dict[str, str] = {
    "kld": "lower KLD on the item",
    "random": "random pick",
    "global": "better on the other half of the items",
    "kld_corpus": "lower KLD on the corpus",
    "nll": "lower NLL of the right answer (knows it)",
    "margin": "larger margin of its own choice",
}


@dataclass(frozen=True, slots=True)
class Route:
    """One rule in one region: share of decided cases it gets right, and how many (pair, item) cases there were."""

    rule: str
    region: str
    accuracy: Interval
    cases: int
    pairs: int


Prefer = Callable[[int, int], FloatArray]


def route(cohort: Cohort, members: Bools, x: FloatArray, splits: Splits) -> tuple[Route, ...]:
    """Every rule in both regions. Cost: O(pairs·N)."""
    everyone = np.flatnonzero(np.isfinite(cohort.kld).any(1)) if cohort.kld.size else np.empty(0, int)
    inside = np.array([c for c in everyone if members[c]], int)
    return tuple(
        found for region, chosen in (("full", everyone), ("zone", inside)) for found in _routes(
            cohort, chosen, region, x, splits
        )
    )  # fmt: skip


def _values(cohort: Cohort, x: FloatArray, splits: Splits) -> dict[str, FloatArray]:
    """Rule → (C, N) of what it prefers the larger of; NaN where it has nothing to go by."""
    shape = cohort.kld.shape
    evidence = cohort.evidence.astype(np.float64)
    values = {
        "kld": -cohort.kld.astype(np.float64),
        "kld_corpus": np.broadcast_to(-x[:, None], shape),
        "nll": np.where(cohort.choice, math.nan, evidence),
        "margin": np.where(cohort.choice, np.abs(evidence), math.nan),
    }
    if not splits.reason:
        first, second = (half_scores(cohort, w[:1])[0].scores for w in splits.weights)
        values["global"] = np.where(splits.first[0], second[:, None], first[:, None])
    return values


def _routes(cohort: Cohort, chosen: np.ndarray[tuple[int], np.dtype[np.int64]], region: str, x: FloatArray,
            splits: Splits) -> list[Route]:  # fmt: skip
    values, items = _values(cohort, x, splits), len(cohort.task)
    wins = {rule: np.zeros(items) for rule in RULES}
    cases = {rule: np.zeros(items) for rule in RULES}
    pairs = 0
    for at, one in enumerate(chosen):
        for other in chosen[at + 1 :]:
            where = np.flatnonzero(cohort.correct[one] != cohort.correct[other])
            pairs += 1
            if not len(where):
                continue
            right = cohort.correct[one, where]
            cases["random"][where] += 1
            wins["random"][where] += 0.5
            for rule, value in values.items():
                gap = value[one, where] - value[other, where]
                known = np.isfinite(gap)
                good = np.where(gap == 0, 0.5, (gap > 0) == right)
                cases[rule][where[known]] += 1
                wins[rule][where[known]] += good[known]
    return [
        Route(rule, region, _accuracy(wins[rule], cases[rule], pairs), int(cases[rule].sum()), pairs)
        for rule in RULES
    ]


def _accuracy(wins: FloatArray, cases: FloatArray, pairs: int) -> Interval:
    used = cases > 0
    if not pairs:
        return Interval(math.nan, reason="fewer than two candidates with outcomes")
    if used.sum() < 5:
        return Interval(math.nan, reason=f"only {int(used.sum())} items on which the rule can decide")
    if (wins == 0.5 * cases).all():
        return Interval(0.5, 0.5, 0.5, "every case is a tie")
    found = ratio_intervals(wins[None, used], cases[None, used], ["logit"], Resampling(int(used.sum())))
    return found[0]
