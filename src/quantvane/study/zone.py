"""The near-baseline zone: declared rules, the sweep over their thresholds, and the hold-out by item halves.

A rule is NAME or NAME:VALUE.

- ``score:0.02`` (default): composite at least (1 − 0.02) of the reference's.
- ``kld:0.05``: the main metric at most 0.05 nats. ``nearest:10``: the 10 smallest of the main metric.
- ``same:0.05``: not significantly different: a two-sided z-test of the paired difference, Δ/se with
  se² = Σ w²(d − Δ)², does not reject at 0.05.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import special

from quantvane.errors import SpecError
from quantvane.stats.correlation import Correlation, Method, correlate
from quantvane.study.cohort import Bools, Cohort, Score
from quantvane.study.resample import Splits
from quantvane.types import FloatArray

__all__ = [
    "Holdout", "Judged", "Rule", "Step", "Zone", "find_zone", "holdout", "judge", "parse_rule", "sweep",
    "zone_members",
]  # fmt: skip

_DEFAULTS = {"score": 0.02, "kld": 0.05, "nearest": 10.0, "same": 0.05}
_STEPS = {
    "score": (0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 1.0),
    "same": (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.001, 1e-6),
}


@dataclass(frozen=True, slots=True)
class Rule:
    """A declared rule; ``text`` is its canonical spelling."""

    kind: str
    value: float

    @property
    def text(self) -> str:
        return f"{self.kind}:{self.value:g}"

    @property
    def words(self) -> str:
        """The rule in words."""
        return {
            "score": f"composite no more than {self.value * 100:.3g}% (relative) below the reference's",
            "kld": f"main metric at most {self.value:.3g}",
            "nearest": f"the {self.value:.0f} candidates nearest by the main metric",
            "same": f"composite not significantly different from the reference's at {self.value:.3g}",
        }[self.kind]


def parse_rule(text: str) -> Rule:
    """Read ``NAME[:VALUE]``.

    Raises:
        SpecError: an unknown name, or a value out of range.
    """
    kind, colon, number = text.strip().partition(":")
    try:
        value = float(number) if colon else _DEFAULTS.get(kind, math.nan)
    except ValueError:
        value = math.nan
    if kind not in _DEFAULTS or not 0 < value < math.inf or (kind in ("score", "same") and value > 1):
        raise SpecError(
            f"no zone rule reads '{text}'",
            expected="score:LOSS, kld:NATS, nearest:COUNT or same:ALPHA; LOSS and ALPHA at most 1",
            got=text,
            remedy="correct --zone",
        )
    return Rule(kind, float(int(value)) if kind == "nearest" else value)


@dataclass(frozen=True, slots=True)
class Judged:
    """Scores on some items: the reference's, (C,) the candidates', (C,) standard errors of the differences."""

    ref: float
    scores: FloatArray
    error: FloatArray


def judge(cohort: Cohort, score: Score) -> Judged:
    """The score of every model; NaN where the score has a reason not to be."""
    if score.reason:
        nothing = np.full(len(cohort.names), math.nan)
        return Judged(math.nan, nothing, nothing)
    ref = float(score.weights @ cohort.ref_correct)
    difference = cohort.correct.astype(np.float64) - cohort.ref_correct
    delta = difference @ score.weights
    error = np.sqrt(((difference - delta[:, None]) ** 2) @ (score.weights**2))
    return Judged(ref, ref + delta, error)


def zone_members(rule: Rule, judged: Judged, x: FloatArray) -> Bools:
    """(C,) bool: who is in the zone. Candidates without the value the rule needs are not."""
    with np.errstate(invalid="ignore", divide="ignore"):
        if rule.kind == "score":
            inside = judged.scores >= (1 - rule.value) * judged.ref - 1e-12
        elif rule.kind == "kld":
            inside = x <= rule.value
        elif rule.kind == "nearest":
            order = np.argsort(np.where(np.isfinite(x), x, math.inf), kind="stable")
            inside = np.zeros(len(x), bool)
            inside[order[: int(rule.value)]] = True
            inside &= np.isfinite(x)
        else:
            reach = float(special.ndtri(1 - rule.value / 2))
            inside = np.abs(judged.scores - judged.ref) <= reach * judged.error
    return np.asarray(inside, bool)


@dataclass(frozen=True, slots=True)
class Zone:
    """The zone as found: the rule, (C,) members, and why it is empty or too small to be ranked."""

    rule: Rule
    members: Bools
    reason: str = ""


def find_zone(rule: Rule, judged: Judged, x: FloatArray) -> Zone:
    """Apply a rule to the whole cohort."""
    members = zone_members(rule, judged, x)
    reason = ""
    if not members.any():
        lost = rule.kind in ("score", "same") and not math.isfinite(judged.ref)
        reason = "there is no score" if lost else f"no candidate is in the zone ({rule.words})"
    return Zone(rule, members, reason)


@dataclass(frozen=True, slots=True)
class Step:
    """One threshold of the sweep."""

    rule: Rule
    members: int
    rho: Correlation


def sweep(rule: Rule, judged: Judged, x: FloatArray, method: Method = "spearman") -> tuple[Step, ...]:
    """The main metric's correlation inside zones of every size that the rule can make."""
    values: tuple[float, ...] = _STEPS.get(rule.kind, ())
    if rule.kind == "nearest":
        values = tuple(float(k) for k in range(5, len(x) + 1))
    elif rule.kind == "kld":
        values = tuple(float(v) for v in np.unique(x[np.isfinite(x) & (x > 0)])[4:])
    out = []
    for value in sorted({*values, rule.value}, reverse=rule.kind == "same"):
        step = Rule(rule.kind, value)
        inside = zone_members(step, judged, x)
        out.append(Step(step, int(inside.sum()), correlate(x[inside], judged.scores[inside], method)))
    return tuple(out)


@dataclass(frozen=True, slots=True)
class Holdout:
    """Zone chosen on one half of the items, correlation on the other, over repeated splits, both ways.

    Attributes:
        mean, low, high: over splits (2.5 and 97.5% of them; no interval over candidates). members: mean number
            of candidates in the zone. splits: with a coefficient. same_half: mean where zone and correlation share
            the half, to show what choosing and judging on the same items does. reason: why there is none.
    """

    mean: float
    low: float
    high: float
    members: float
    splits: int
    same_half: float
    reason: str = ""


def holdout(cohort: Cohort, rule: Rule, x: FloatArray, splits: Splits, method: Method = "spearman") -> Holdout:
    """See `Holdout`."""
    if splits.reason:
        return Holdout(math.nan, math.nan, math.nan, math.nan, 0, math.nan, splits.reason)
    halves = [half_scores(cohort, weights) for weights in splits.weights]
    across, within, sizes = [], [], []
    for one, other in ((0, 1), (1, 0)):
        for ours, theirs in zip(halves[one], halves[other], strict=True):
            inside = zone_members(rule, ours, x)
            sizes.append(int(inside.sum()))
            across.append(correlate(x[inside], theirs.scores[inside], method).value)
            within.append(correlate(x[inside], ours.scores[inside], method).value)
    known = np.array([v for v in across if math.isfinite(v)])
    same = np.array([v for v in within if math.isfinite(v)])
    members = float(np.mean(sizes))
    if len(known) < len(across) / 2:
        words = "fewer than 5 candidates, or constant scores, in the zones of most splits"
        return Holdout(math.nan, math.nan, math.nan, members, len(known), math.nan, words)
    low, high = np.quantile(known, [0.025, 0.975])
    return Holdout(float(known.mean()), float(low), float(high), members, len(known), float(same.mean()))


def half_scores(cohort: Cohort, weights: FloatArray) -> list[Judged]:
    """`judge` for many weightings; (S, N)."""
    difference = cohort.correct.astype(np.float64) - cohort.ref_correct
    ref = weights @ cohort.ref_correct
    delta = weights @ difference.T
    squares = weights**2
    # Σ w²(d − Δ)², expanded
    spread = squares @ (difference**2).T - 2 * delta * (squares @ difference.T) + delta**2 * squares.sum(1)[:, None]
    error = np.sqrt(np.maximum(spread, 0.0))
    return [Judged(float(r), r + d, e) for r, d, e in zip(ref, delta, error, strict=True)]
