"""Volume, direction and score: what does each metric track? In both regions, for the composite, groups and tasks.

Weighted by the score's item weights w: V = Σ w·[c ≠ r], Δ = Σ w·(c − r), D = Δ/V, undefined where nothing flipped.
Δ = V·D holds by construction and is checked on the integers of every unweighted task by `quantvane.direction`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from quantvane.stats.correlation import Correlation, Method, correlate
from quantvane.study.cohort import Bools, Cohort, Displacement, Score
from quantvane.types import FloatArray

__all__ = ["Part", "Parts", "decompose", "parts_of"]


@dataclass(frozen=True, slots=True)
class Parts:
    """Volume, direction (NaN where nothing flipped) and Δscore of every candidate; (C,) each."""

    volume: FloatArray
    direction: FloatArray
    delta: FloatArray


@dataclass(frozen=True, slots=True)
class Part:
    """One metric against the three parts of one score in one region ("full" or "zone")."""

    score: str
    region: str
    metric: Displacement
    volume: Correlation
    direction: Correlation
    delta: Correlation


def parts_of(cohort: Cohort, score: Score) -> Parts:
    """The parts of every candidate's score; all NaN where the score has a reason."""
    if score.reason:
        nothing = np.full(len(cohort.names), math.nan)
        return Parts(nothing, nothing, nothing)
    difference = cohort.correct.astype(np.float64) - cohort.ref_correct
    volume, delta = np.abs(difference) @ score.weights, difference @ score.weights
    with np.errstate(invalid="ignore", divide="ignore"):
        direction = np.where(volume > 0, delta / volume, math.nan)
    return Parts(volume, direction, delta)


def decompose(
    cohort: Cohort,
    scores: tuple[Score, ...],
    members: Bools,
    main: Displacement,
    method: Method = "spearman",
) -> tuple[Part, ...]:
    """Every metric for the composite; the main metric for every further score."""
    out = []
    for score in scores:
        parts = parts_of(cohort, score)
        metrics = cohort.displacement if score is scores[0] else (main,)
        for metric in metrics:
            for region, chosen in (("full", np.ones(len(members), bool)), ("zone", members)):
                x = metric.values[chosen]
                out.append(
                    Part(
                        score.name,
                        region,
                        metric,
                        _correlate(x, parts.volume[chosen], method, score, "volume"),
                        _correlate(x, parts.direction[chosen], method, score, "direction"),
                        _correlate(x, parts.delta[chosen], method, score, "Δscore"),
                    )
                )
    return tuple(out)


def _correlate(x: FloatArray, y: FloatArray, method: Method, score: Score, word: str) -> Correlation:
    if score.reason:
        return Correlation(math.nan, 0, reason=score.reason)
    found = correlate(x, y, method)
    if found.reason.startswith("the score"):
        return Correlation(math.nan, found.n, reason=found.reason.replace("the score", f"the {word}", 1))
    return found
