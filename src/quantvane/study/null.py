"""What the zone would show if nothing but its narrowness and the benchmark's noise were at work.

**Range-restriction null.** The relation of the whole cohort is taken to hold in the zone: Δ_c = −a·x_c^b·(1 + τ·ε_c),
ε standard normal, x the metric. a and b are fitted to all candidates by least squares (b on a grid), so the
candidates far off, where the relation shows, decide; τ² = max(0, Σ[(Δ − f)² − v]/Σ f²), v the sampling variance
of Δ, f the fit. Each draw takes the fit to another resample of the candidates, so that the fit's own uncertainty is in
the law. To a Δ drawn so the benchmark's own noise is added, as items drawn again give it (paired over
candidates). The rule then chooses a zone of the drawn scores. The law of ρ inside it, its quantiles, and the p-value of
a ρ as weak as the observed one or weaker follow.

**Noise ceiling.** r: correlation of the scores on two halves of the items, over the zone's candidates, mean over
splits. Reliability by Spearman and Brown: 2r/(1 + r). No metric's |ρ| can exceed √reliability in expectation.

Sources: Thorndike, Personnel Selection (1949), ch. 6 (restriction of range); Spearman (1910), Brown (1910), Br. J.
Psychol. 3, 271–322 (reliability).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from quantvane.stats.correlation import MINIMUM, Draws, Method, correlate_rows, resampled
from quantvane.study.cohort import Bools, Cohort
from quantvane.study.resample import Bootstrap, Splits
from quantvane.study.zone import Judged, Rule, zone_members
from quantvane.types import FloatArray

__all__ = ["Ceiling", "Null", "Relation", "fit_relation", "noise_ceiling", "range_null"]


@dataclass(frozen=True, slots=True)
class Relation:
    """Δ = −scale·x^power, with relative scatter; NaN and a reason where none can be fitted."""

    scale: float
    power: float
    scatter: float
    reason: str = ""

    def at(self, x: FloatArray) -> FloatArray:
        """The fitted Δ."""
        out: FloatArray = -self.scale * x**self.power
        return out


def fit_relation(x: FloatArray, delta: FloatArray, variance: FloatArray) -> Relation:
    """Fit the relation to (C,) candidates; those without a value or with x ≤ 0 take no part."""
    used = np.isfinite(x) & np.isfinite(delta) & (x > 0)
    if used.sum() < MINIMUM:
        return Relation(math.nan, math.nan, math.nan, f"only {int(used.sum())} candidates to fit the relation to")
    x, delta, variance = x[used], delta[used], variance[used]
    if not (delta != 0).any():
        return Relation(math.nan, math.nan, math.nan, "no candidate's score differs from the reference's")
    powers = np.linspace(0.1, 3, 59)
    shapes = x ** powers[:, None]
    slopes = (shapes @ delta) / (shapes**2).sum(axis=1)
    best = int(((delta - slopes[:, None] * shapes) ** 2).sum(axis=1).argmin())
    slope, power = float(slopes[best]), float(powers[best])
    fit = slope * x**power
    scatter = math.sqrt(max(0.0, float(((delta - fit) ** 2 - variance).sum() / (fit**2).sum())))
    return Relation(-slope, power, scatter)


_REFITS = 100


def _refits(x: FloatArray, delta: FloatArray, variance: FloatArray, rng: np.random.Generator) -> list[Relation]:
    drawn = rng.integers(0, len(x), (_REFITS, len(x)))
    fits = (fit_relation(x[row], delta[row], variance[row]) for row in drawn)
    return [fit for fit in fits if not fit.reason]


@dataclass(frozen=True, slots=True)
class Null:
    """The law of ρ in the zone under the null.

    Attributes:
        median, low, high: of ρ (2.5 and 97.5%). p: probability of a ρ as weak as ``seen`` or weaker. seen: the ρ
            observed. members: mean size of the drawn zones. relation: the fit. reason: why there is none.
    """

    median: float
    low: float
    high: float
    p: float
    seen: float
    members: float
    relation: Relation
    reason: str = ""


def range_null(
    rule: Rule,
    judged: Judged,
    x: FloatArray,
    boot: Bootstrap,
    rng: np.random.Generator,
    method: Method = "spearman",
) -> Null:
    """See the module's first point. One draw for each of the bootstrap's B resamples."""
    delta = judged.scores - judged.ref
    relation = fit_relation(x, delta, judged.error**2)

    def nothing(reason: str, seen: float = math.nan, members: float = math.nan) -> Null:
        return Null(math.nan, math.nan, math.nan, math.nan, seen, members, relation, reason)

    if relation.reason:
        return nothing(relation.reason)
    inside = zone_members(rule, judged, x) & np.isfinite(x)
    seen = float(correlate_rows(x[inside], judged.scores[inside], method)) if inside.sum() >= MINIMUM else math.nan
    if math.isnan(seen):
        return nothing("no correlation was observed in the zone")
    fits = _refits(x, delta, judged.error**2, rng) or [relation]
    draws, sizes = [], []
    for at, (ref, scores) in enumerate(zip(boot.ref, boot.candidates, strict=True)):
        noise = (scores - ref) - delta
        fit = fits[at % len(fits)]
        drawn = fit.at(np.maximum(x, 0.0)) * (1 + fit.scatter * rng.standard_normal(len(x))) + noise
        mine = Judged(float(ref), ref + drawn, judged.error)
        chosen = zone_members(rule, mine, x) & np.isfinite(x)
        sizes.append(int(chosen.sum()))
        if sizes[-1] >= MINIMUM:
            draws.append(float(correlate_rows(x[chosen], mine.scores[chosen], method)))
    rho = np.array([r for r in draws if math.isfinite(r)])
    members = float(np.mean(sizes))
    if len(rho) < len(sizes) / 2:
        return nothing("fewer than 5 candidates fall into most drawn zones", seen, members)
    low, median, high = np.quantile(rho, [0.025, 0.5, 0.975])
    side = -1.0 if relation.scale >= 0 else 1.0
    p = (1 + int((side * rho <= side * seen + 1e-12).sum())) / (1 + len(rho))
    return Null(float(median), float(low), float(high), p, seen, members, relation)


@dataclass(frozen=True, slots=True)
class Ceiling:
    """The noise ceiling.

    Attributes:
        value: √reliability; 0 with a reason where the halves do not agree at all. low, high: 95%, over candidates.
        halves: mean correlation of the two halves. reliability: 2r/(1 + r). members: candidates.
    """

    value: float
    low: float
    high: float
    halves: float
    reliability: float
    members: int
    reason: str = ""


def noise_ceiling(
    cohort: Cohort,
    members: Bools,
    splits: Splits,
    draws: Draws,
    method: Method = "spearman",
) -> Ceiling:
    """See the module's second point."""
    count = int(members.sum())

    def nothing(reason: str) -> Ceiling:
        return Ceiling(math.nan, math.nan, math.nan, math.nan, math.nan, count, reason)

    if splits.reason:
        return nothing(splits.reason)
    if count < MINIMUM:
        return nothing(f"only {count} candidates; at least {MINIMUM} are needed")
    outcomes = cohort.correct[members].astype(np.float64)
    one, other = (weights @ outcomes.T for weights in splits.weights)
    halves = _mean(correlate_rows(one, other, method))
    if math.isnan(halves):
        return nothing("the score is the same for all candidates")
    # The mean over splits needs few of them in each resample.
    few = [resampled(a, b, draws.drawn(count), method) for a, b in zip(one[:20], other[:20], strict=True)]
    again = [_ceiling(r) for r in map(_mean, np.array(few).T) if math.isfinite(r)]
    ends = np.quantile(again, [0.025, 0.975]) if again else (math.nan, math.nan)
    reliability = 2 * halves / (1 + halves) if halves > -1 else -math.inf
    reason = "" if halves > 0 else "the halves' scores do not agree: the benchmark tells nobody in the zone apart"
    return Ceiling(_ceiling(halves), float(ends[0]), float(ends[1]), halves, reliability, count, reason)


def _mean(values: FloatArray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan


def _ceiling(halves: float) -> float:
    return math.sqrt(2 * halves / (1 + halves)) if halves > 0 else 0.0
