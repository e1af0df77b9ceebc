"""Two published claims, judged on one model's numbers by rules that were written down first.

Claims, of *Spectral Perturbation of the Empirical Fisher Information Matrix under Weight Quantization*
(arXiv 2606.28432, known here by its abstract): **Theorem 4.3**, under quantization noise λ_max is bounded below by its
unperturbed value up to third order, and lies strictly above it under a genericity condition; **Proposition 3.2**,
departure from the reference inputs elevates λ_max, if curvature is locally monotone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from quantvane.errors import DataError
from quantvane.types import Interval

__all__ = ["Departure", "Finding", "Verdict", "WindowEvidence", "auroc", "verdict"]

MIN_WINDOWS = 5
"""Fewer usable windows give no verdict on the theorem, unless one of them contradicts it."""

TOLERANCE = 1e-5
"""Differences below this share of λ(0) are rounding."""


@dataclass(frozen=True, slots=True)
class WindowEvidence:
    """What one window says about Theorem 4.3.

    Attributes:
        value, moved: λ(0), λ(1). slope, curvature: λ', λ''.
        weyl: λ_min(E). lowest_first, lowest_second: smallest eigenvalues of F' and ½F''.
    """

    value: float
    moved: float
    slope: float
    curvature: float
    weyl: float = math.nan
    lowest_first: float = math.nan
    lowest_second: float = math.nan

    @property
    def remainder(self) -> float:
        """|λ(1) − λ(0) − λ' − ½λ''|: all that third and higher orders contribute."""
        return abs(self.moved - self.value - self.slope - 0.5 * self.curvature)


@dataclass(frozen=True, slots=True)
class Departure:
    """How well λ_max tells departed inputs from reference inputs; 0.5 is not at all, below it λ_max is *lower*."""

    kind: str
    auroc: Interval


@dataclass(frozen=True, slots=True)
class Finding:
    """One claim's verdict.

    Attributes:
        outcome: "contradicted", "supported", "not contradicted" or "undecided".
        sentence: the numbers it follows from, in words.
    """

    outcome: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Findings on both claims; ``weyl_holds`` is the check of the numbers themselves (None: not computed)."""

    theorem: Finding
    proposition: Finding
    weyl_holds: bool | None

    @property
    def sentence(self) -> str:
        """Both findings, one after the other."""
        return f"{self.theorem.sentence} {self.proposition.sentence}"


def verdict(windows: Sequence[WindowEvidence], departures: Sequence[Departure] = (), space: str = "") -> Verdict:
    """Judge both claims for one model, one candidate and one space.

    **Theorem 4.3.** Let ρ = |λ(1) − λ(0) − λ' − ½λ''| be what third and higher orders contribute in a window and
    τ = 1e-5·λ(0) the rounding. A window lies *below* where λ(1) < λ(0) − ρ − τ (the drop is larger than all the
    theorem lets third order take), *above* where λ(1) > λ(0) + ρ + τ, else *within*; NaN makes it unusable.

    - any window below: **contradicted** (a theorem has no exceptions);
    - else fewer than 5 usable windows: **undecided**;
    - else every window above: **supported** on these windows, strict form;
    - else: **not contradicted**; the strict form is open where windows lie within.

    **Proposition 3.2.** From the AUROC of λ_max for each kind of departed input, with its 95% interval:

    - any interval wholly below 0.5: **contradicted** (departure lowers λ_max there);
    - else every interval wholly above 0.5: **supported**;
    - else, or with no departures given: **undecided**.

    The proposition's own hypothesis, local monotonicity of curvature, is not observable: "contradicted" says that
    its conclusion fails, so either it or its hypothesis is false for this model.

    Args:
        space: the statistic's name, for the sentence.
    """
    return Verdict(_theorem(windows, space), _proposition(departures, space), _weyl(windows))


def _weyl(windows: Sequence[WindowEvidence]) -> bool | None:
    known = [w for w in windows if math.isfinite(w.weyl)]
    return all(w.moved >= w.value + w.weyl - TOLERANCE * abs(w.value) for w in known) if known else None


def _theorem(windows: Sequence[WindowEvidence], space: str) -> Finding:
    usable = [w for w in windows if all(map(math.isfinite, (w.value, w.moved, w.slope, w.curvature)))]
    name = f"λ_max ({space})" if space else "λ_max"
    n = len(usable)
    if n == 0:
        return Finding("undecided", f"Theorem 4.3 is undecided: no window has all of {name}'s terms.")
    gains = [(w.moved - w.value, w.remainder + TOLERANCE * abs(w.value)) for w in usable]
    below = sum(g < -slack for g, slack in gains)
    above = sum(g > slack for g, slack in gains)
    falling = sum(g < -TOLERANCE * abs(w.value) for (g, _), w in zip(gains, usable, strict=True))
    numbers = (
        f"{name} fell in {falling} of {n} windows, in {below} of them by more than third and higher orders explain, "
        f"and rose by more than that in {above}"
    )
    psd = _leading(usable)
    if below:
        return Finding("contradicted", f"Theorem 4.3 does not hold for this model: {numbers}{psd}.")
    if n < MIN_WINDOWS:
        return Finding(
            "undecided", f"Theorem 4.3 is undecided on {n} windows, {MIN_WINDOWS} are needed: {numbers}{psd}."
        )
    if above == n:
        return Finding("supported", f"Theorem 4.3 agrees with this model, in its strict form: {numbers}{psd}.")
    return Finding(
        "not contradicted", f"Theorem 4.3 is not contradicted by this model, its strict form is open: {numbers}{psd}."
    )


def _leading(windows: Sequence[WindowEvidence]) -> str:
    moving = sum(abs(w.slope) > TOLERANCE * abs(w.value) for w in windows)
    text = f"; its first-order term is not zero in {moving}, so that the opposite perturbation changes it the other way"
    known = [w for w in windows if math.isfinite(w.lowest_first) and math.isfinite(w.lowest_second)]
    if known:
        tiny = [TOLERANCE * abs(w.value) for w in known]
        first = sum(w.lowest_first >= -t for w, t in zip(known, tiny, strict=True))
        second = sum(w.lowest_second >= -t for w, t in zip(known, tiny, strict=True))
        text += (
            f"; the first-order change of F is positive semidefinite in {first} of {len(known)} windows, "
            f"the second-order change in {second}"
        )
    return text


def _proposition(departures: Sequence[Departure], space: str) -> Finding:
    name = f"λ_max ({space})" if space else "λ_max"
    known = [d for d in departures if math.isfinite(d.auroc.low) and math.isfinite(d.auroc.high)]
    if not known:
        return Finding("undecided", "Proposition 3.2 is undecided: no departed inputs with an interval.")
    lowered = [d for d in known if d.auroc.high < 0.5]
    raised = [d for d in known if d.auroc.low > 0.5]
    numbers = ", ".join(f"{d.kind} {d.auroc.value:.2f} [{d.auroc.low:.2f}, {d.auroc.high:.2f}]" for d in known)
    numbers = f"AUROC of {name} against reference inputs: {numbers}"
    if lowered:
        kinds = " and ".join(d.kind for d in lowered)
        return Finding(
            "contradicted",
            f"Proposition 3.2's conclusion does not hold for this model: {kinds} lower {name} ({numbers}).",
        )
    if len(raised) == len(departures):
        return Finding(
            "supported", f"Proposition 3.2 agrees with this model: every departure raises {name} ({numbers})."
        )
    return Finding("undecided", f"Proposition 3.2 is undecided for this model: some intervals hold 0.5 ({numbers}).")


def auroc(reference: Sequence[float], departed: Sequence[float], level: float = 0.95) -> Interval:
    """P(departed > reference) + ½P(equal), with DeLong's variance and a logit interval.

    Where every pair agrees (0 or 1) the variance is 0; the far end is then the exact one-sided bound
    1 − (1 − level)^{1/m}, m the smaller sample, as for a share never seen.

    Source: DeLong, DeLong & Clarke-Pearson, Biometrics 44 (1988).
    """
    x, y = np.asarray(reference, np.float64), np.asarray(departed, np.float64)
    if x.ndim != 1 or y.ndim != 1:
        raise DataError("AUROC needs two lists of numbers", expected="shapes (m,), (n,)", got=f"{x.shape}, {y.shape}")
    if len(x) < 2 or len(y) < 2 or not (np.isfinite(x).all() and np.isfinite(y).all()):
        return Interval(math.nan, reason="fewer than 2 values on a side, or not finite", level=level)
    wins = (y[:, None] > x).astype(float) + 0.5 * (y[:, None] == x)
    value = float(wins.mean())
    if value in (0.0, 1.0):
        bound = 1 - (1 - level) ** (1 / min(len(x), len(y)))
        low, high = (0.0, bound) if value == 0.0 else (1.0 - bound, 1.0)
        return Interval(value, low, high, "the samples do not overlap; one-sided bound", level)
    error = math.sqrt(wins.mean(axis=1).var(ddof=1) / len(y) + wins.mean(axis=0).var(ddof=1) / len(x))
    reach = float(special.ndtri((1 + level) / 2)) * error / (value * (1 - value))
    logit = math.log(value / (1 - value))
    low, high = (1 / (1 + math.exp(-(logit + s * reach))) for s in (-1, 1))
    return Interval(value, low, high, level=level)
