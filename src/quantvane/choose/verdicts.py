"""Which candidates may replace the reference: certified, tied, undecided or worse. Tables in, verdicts out.

Two ways to certify, by how the items were looked at:

- all items fixed beforehand: two one-sided tests at the margin (`quantvane.stats.equivalence`), their p-values
  adjusted by Holm over the candidates, because the best of several is picked;
- stopped when decided (``bench --until-decided``): the confidence sequence at α/k for k candidates
  (`quantvane.stats.sequential`). TOST would be wrong here: it has been peeked at.

Two candidates are *tied* where McNemar's test between them, adjusted by Holm over all pairs, does not tell them apart,
or where they differ on no more items than the noise floor flips.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from quantvane.choose.pareto import Point, pareto_front
from quantvane.errors import DataError
from quantvane.stats.equivalence import items_needed, tost
from quantvane.stats.multiplicity import holm
from quantvane.stats.paired import mcnemar, paired_interval
from quantvane.stats.pairs import pair_counts
from quantvane.stats.sequential import betting

__all__ = ["Choice", "Entry", "Rules", "Verdict", "choose_among"]

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Entry:
    """One model's outcomes.

    Attributes:
        name: the model's. file_bytes: of its weights.
        correct: item → was it right, in the order the items were looked at.
    """

    name: str
    file_bytes: int
    correct: Mapping[Any, bool]


@dataclass(frozen=True, slots=True)
class Rules:
    """Declared before the data are looked at.

    Attributes:
        margin: loss in score that would not matter, a share of items. alpha: error probability for all candidates.
        max_bytes: largest file that will do; inf for any. sequential: the run stopped when decided.
        floor_flips: items that the reference flips against itself; 0 where that was not measured.
    """

    margin: float
    alpha: float = 0.05
    max_bytes: float = math.inf
    sequential: bool = False
    floor_flips: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be said of one candidate.

    Attributes:
        verdict: "equivalent" (certified), "better", "worse" or "undecided".
        items, score_ref, score, delta, low, high: compared items, both shares right, their difference with interval.
        p: adjusted p-value of "the difference is at least the margin"; NaN under sequential rules.
        items_needed: in all, to certify an equal candidate with 80% power; None where it is certified or unknown.
        tied_with: candidates that cannot be told from it. fits: whether its file is small enough.
    """

    name: str
    verdict: str
    file_bytes: int
    items: int
    score_ref: float
    score: float
    delta: float
    low: float
    high: float
    p: float
    items_needed: int | None
    fits: bool
    tied_with: tuple[str, ...] = ()

    @property
    def qualifies(self) -> bool:
        """Certified to lose no more than the margin, and small enough."""
        return self.fits and self.verdict in ("equivalent", "better")


@dataclass(frozen=True, slots=True)
class Choice:
    """The decision.

    Attributes:
        rules: as declared. verdicts: in the candidates' order.
        chosen: the smallest that qualifies; None where none does. front: names on the size–score front,
            the reference among them, smallest first. reason: why nothing was chosen.
    """

    rules: Rules
    verdicts: tuple[Verdict, ...]
    chosen: str | None
    front: tuple[str, ...]
    reason: str = ""
    notes: tuple[str, ...] = field(default=())

    def of(self, verdict: str) -> list[str]:
        """Names with this verdict."""
        return [v.name for v in self.verdicts if v.verdict == verdict]


def choose_among(reference: Entry, candidates: Sequence[Entry], rules: Rules) -> Choice:
    """Decide.

    Raises:
        DataError: no candidate, no items, or an item the reference does not have.
    """
    if not candidates:
        raise DataError("there is nothing to choose from", expected="at least one candidate", got="none", remedy="")
    pairs = [_paired(reference, candidate) for candidate in candidates]
    tests = [tost(pair_counts(ref, cand), rules.margin, rules.alpha).p for ref, cand in pairs]
    adjusted = holm(tests)
    ties = _ties(candidates, rules)
    verdicts = tuple(
        _verdict(candidate, ref, cand, p, rules, len(candidates), tuple(ties[candidate.name]))
        for candidate, (ref, cand), p in zip(candidates, pairs, adjusted, strict=True)
    )
    fitting = [v for v in verdicts if v.qualifies]
    best = min(fitting, key=lambda v: (v.file_bytes, -v.score, v.name), default=None)
    points = [Point(v.name, v.file_bytes, v.delta) for v in verdicts]
    points.append(Point(reference.name, reference.file_bytes, 0.0))
    return Choice(rules, verdicts, best.name if best else None, pareto_front(points), _reason(verdicts, best))


def _paired(reference: Entry, candidate: Entry) -> tuple[Bools, Bools]:
    missing = [key for key in candidate.correct if key not in reference.correct]
    if missing or not candidate.correct:
        raise DataError(
            f"'{candidate.name}' and the reference do not share their items",
            expected="outcomes of the reference for every item of the candidate",
            got=f"{len(missing)} items only the candidate has" if missing else "no items",
            remedy="run quantvane bench on both together",
        )
    keys = list(candidate.correct)
    return (
        np.array([reference.correct[key] for key in keys], bool),
        np.array([candidate.correct[key] for key in keys], bool),
    )


def _verdict(
    candidate: Entry, ref: Bools, cand: Bools, p: float, rules: Rules, candidates: int, tied: tuple[str, ...]
) -> Verdict:
    counts = pair_counts(ref, cand)
    if rules.sequential:
        found = betting(ref, cand, rules.margin, alpha=rules.alpha / candidates)
        verdict, low, high, p = found.decision, found.low, found.high, math.nan
        if verdict in ("better", "worse") and -rules.margin < low and high < rules.margin:
            verdict = "equivalent"  # different, and by less than matters
    else:
        interval = paired_interval(counts, 1 - rules.alpha)
        low, high = interval.low, interval.high
        verdict = "undecided"
        if p <= rules.alpha:
            verdict = "equivalent"
        elif mcnemar(counts).p <= rules.alpha / candidates:
            verdict = "better" if counts.delta > 0 else "worse"
    needed = items_needed(counts, rules.margin, rules.alpha).items if verdict == "undecided" else None
    return Verdict(
        name=candidate.name,
        verdict=verdict,
        file_bytes=candidate.file_bytes,
        items=len(ref),
        score_ref=float(ref.mean()),
        score=float(cand.mean()),
        delta=float(cand.mean() - ref.mean()),
        low=low,
        high=high,
        p=p,
        items_needed=needed,
        fits=candidate.file_bytes <= rules.max_bytes,
        tied_with=tied,
    )


def _ties(candidates: Sequence[Entry], rules: Rules) -> dict[str, list[str]]:
    ties: dict[str, list[str]] = {candidate.name: [] for candidate in candidates}
    couples = list(combinations(candidates, 2))
    values, flips = [], []
    for one, other in couples:
        shared = [key for key in one.correct if key in other.correct]
        a = np.array([one.correct[key] for key in shared], bool)
        b = np.array([other.correct[key] for key in shared], bool)
        values.append(mcnemar(pair_counts(a, b)).p)
        flips.append(int((a != b).sum()))
    for (one, other), p, count in zip(couples, holm(values), flips, strict=True):
        if not p <= rules.alpha or count <= rules.floor_flips:
            ties[one.name].append(other.name)
            ties[other.name].append(one.name)
    return ties


def _reason(verdicts: Sequence[Verdict], best: Verdict | None) -> str:
    if best is not None:
        return ""
    sound = [v for v in verdicts if v.verdict in ("equivalent", "better")]
    if sound:
        small = min(sound, key=lambda v: v.file_bytes)
        return f"no certified candidate is small enough; the smallest is {small.name} with {small.file_bytes} bytes"
    open_ones = [v for v in verdicts if v.verdict == "undecided" and v.items_needed]
    if open_ones:
        least = min(open_ones, key=lambda v: v.items_needed or 0)
        return f"nothing is certified; {least.name} would need about {least.items_needed} items, it has {least.items}"
    return "nothing is certified"
