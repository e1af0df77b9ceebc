"""Items drawn again, and items split in halves: both within each task, so that a composite keeps its weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import special

from quantvane.stats.correlation import MINIMUM, Method, correlate_rows
from quantvane.study.cohort import Bools, Cohort, Score, score_weights
from quantvane.types import FloatArray

__all__ = ["Bootstrap", "Splits", "bootstrap_scores", "items_interval", "split_items"]


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Scores on B resampled sets of items.

    Attributes:
        ref: (B,). candidates: (B, C).
    """

    ref: FloatArray
    candidates: FloatArray


def bootstrap_scores(cohort: Cohort, score: Score, rng: np.random.Generator, resamples: int = 1000) -> Bootstrap:
    """Draw each task's items again with replacement, the same ones for every model (they stay paired).

    Cost: O(B·N·C) multiplications.
    """
    outcomes = np.vstack([cohort.ref_correct, cohort.correct]).astype(np.float64)
    total = np.zeros((resamples, len(outcomes)))
    for task in range(len(cohort.tasks)):
        mine = np.flatnonzero((cohort.task == task) & (score.weights > 0))
        if len(mine):
            drawn = rng.integers(0, len(mine), (resamples, len(mine))) + len(mine) * np.arange(resamples)[:, None]
            counts = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
            total += (counts * score.weights[mine]) @ outcomes[:, mine].T
    return Bootstrap(total[:, 0], total[:, 1:])


def items_interval(
    x: FloatArray, score: FloatArray, replicates: FloatArray, method: Method = "spearman", level: float = 0.95
) -> tuple[float, float]:
    """Interval of a correlation over items: what other items of the same tasks would have given.

    A resampled score would hold the items' noise twice, which makes ρ* vary too little and lie too near 0. The scores
    are therefore drawn towards their mean first, each by √(T/(T + v)), v its sampling variance and T the variance
    of the scores beyond noise; the interval is atanh ρ ± z·sd(atanh ρ*). Measured coverage: docs/study.md.

    Args:
        x, score: (n,). replicates: (B, n).

    Returns:
        (low, high); NaN where ρ is not defined.
    """
    known = np.isfinite(x) & np.isfinite(score)
    if known.sum() < MINIMUM or np.ptp(x[known]) <= 0 or np.ptp(score[known]) <= 0:
        return math.nan, math.nan
    seen = float(correlate_rows(x[known], score[known], method))
    noise = replicates[:, known] - score[known]
    variance = noise.var(axis=0)
    beyond = max(0.0, float(score[known].var(ddof=1) - variance.mean()))
    total = beyond + variance
    share = np.sqrt(np.divide(beyond, total, out=np.ones_like(total), where=total > 0))
    centre = float(score[known].mean())
    drawn = correlate_rows(x[None, known], centre + share * (score[known] - centre) + noise, method)
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) < 20:
        return math.nan, math.nan
    edge = 1 - 1e-6
    middle = math.atanh(min(edge, max(-edge, seen)))
    reach = float(special.ndtri((1 + level) / 2)) * float(np.arctanh(np.clip(drawn, -edge, edge)).std())
    return math.tanh(middle - reach), math.tanh(middle + reach)


@dataclass(frozen=True, slots=True)
class Splits:
    """Repeated halves of the items.

    Attributes:
        first: (S, N) bool, the items of the first half. weights: two (S, N) arrays, the composite's weights on
            the first and on the second half. reason: why there are none.
    """

    first: Bools
    weights: tuple[FloatArray, FloatArray]
    reason: str = ""


def split_items(cohort: Cohort, composite: str, rng: np.random.Generator, splits: int = 100) -> Splits:
    """Halve every task's items at random, S times; an odd item falls to either half."""
    first = np.zeros((splits, len(cohort.task)), bool)
    for task in range(len(cohort.tasks)):
        mine = np.flatnonzero(cohort.task == task)
        order = rng.permuted(np.broadcast_to(np.arange(len(mine)), (splits, len(mine))), axis=1)
        half = len(mine) // 2 + (rng.integers(0, 2, (splits, 1)) if len(mine) % 2 else 0)
        first[:, mine] = order < half
    halves = []
    for chosen in (first, ~first):
        parts = [score_weights(cohort, composite, row) for row in chosen]
        bad = next((p.reason for p in parts if p.reason), "")
        if bad:
            return Splits(first, (np.zeros(first.shape), np.zeros(first.shape)), f"a half of the items is empty: {bad}")
        halves.append(np.array([p.weights for p in parts]))
    return Splits(first, (halves[0], halves[1]))
