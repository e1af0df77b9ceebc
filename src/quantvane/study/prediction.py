"""Does an item's KLD say that the candidate fails on it?

All comparisons are made within a candidate and then put together, so that a bad candidate's large KLD on all items
predicts nothing here.

- Ratio of geometric means, failed against passed: exp(Σ_c ω_c·(mean ln KLD | failed − mean ln KLD | passed)/Σ_c ω_c),
  ω_c = n_f·n_p/(n_f + n_p).
- AUROC: Σ_c (pairs in which the positive item has the larger KLD, ties half)/Σ_c (pairs), for "failed" against
  "passed", "flipped" against "kept" (volume), and "dropped" against "leapfrogged" among the flipped (direction).

Items are shared by the candidates: standard errors come from the items' influence on the estimate, summed over
candidates (the jackknife's linear part; Obuchowski's clustered AUROC), and intervals are Student's, of the ratio on the
logarithm's scale, of the AUROC on the logit's.

Sources: Mann & Whitney (1947); DeLong et al. (1988), Biometrics 44, 837–845; Obuchowski (1997), Biometrics 53, 567–578.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy import special

from quantvane.study.cohort import Bools, Cohort
from quantvane.types import FloatArray, Interval

__all__ = ["Prediction", "auroc", "log_mean_ratio", "predict"]

_FEW = 5


@dataclass(frozen=True, slots=True)
class Prediction:
    """What KLD per item predicts, on some items and candidates.

    Attributes:
        items: "all" or a group's name. region: "full" or "zone". candidates, failed, passed, drops, leapfrogs:
            counts over all candidates. without: (candidate, item) pairs without a positive KLD, left out.
        ratio: geometric mean KLD, failed over passed. auroc_failed, auroc_flipped, auroc_direction: see the module.
    """

    items: str
    region: str
    candidates: int
    failed: int
    passed: int
    drops: int
    leapfrogs: int
    without: int
    ratio: Interval
    auroc_failed: Interval
    auroc_flipped: Interval
    auroc_direction: Interval
    notes: tuple[str, ...] = field(default=())


def predict(cohort: Cohort, members: Bools) -> tuple[Prediction, ...]:
    """On all items and on each group's, over all candidates and over the zone's."""
    chosen = {"all": np.ones(len(cohort.task), bool)}
    if len(cohort.groups) > 1:
        chosen |= {name: cohort.group[cohort.task] == i for i, name in enumerate(cohort.groups)}
    regions = {"full": np.ones(len(members), bool), "zone": members}
    return tuple(
        _predict(cohort, items, where, name, region)
        for name, items in chosen.items()
        for region, where in regions.items()
    )


def _predict(cohort: Cohort, items: Bools, members: Bools, name: str, region: str) -> Prediction:
    kld = cohort.kld[members][:, items].astype(np.float64)
    right, ref = cohort.correct[members][:, items], cohort.ref_correct[items]
    known = np.isfinite(kld) & (kld > 0)
    flipped = right != ref
    drop, leap = flipped & ref, flipped & ~ref
    return Prediction(
        items=name,
        region=region,
        candidates=int(members.sum()),
        failed=int((~right & known).sum()),
        passed=int((right & known).sum()),
        drops=int((drop & known).sum()),
        leapfrogs=int((leap & known).sum()),
        without=int((~known).sum()),
        ratio=log_mean_ratio(kld, ~right & known, right & known),
        auroc_failed=auroc(kld, ~right & known, right & known),
        auroc_flipped=auroc(kld, flipped & known, ~flipped & known),
        auroc_direction=auroc(kld, drop & known, leap & known),
    )


def _influence_error(influence: FloatArray, counted: Bools) -> tuple[float, int]:
    """(standard error, items) from (N,) summed influences."""
    items = int(counted.sum())
    if items < 2:
        return math.nan, items
    return math.sqrt(float((influence**2).sum()) * items / (items - 1)), items


def _reach(items: int, level: float) -> float:
    return float(special.stdtrit(items - 1, (1 + level) / 2))


def log_mean_ratio(values: FloatArray, failed: Bools, passed: Bools, level: float = 0.95) -> Interval:
    """Ratio of geometric means; (C, N) each, disjoint masks."""
    logs = np.log(np.where(failed | passed, values, 1.0))
    n_f, n_p = failed.sum(1).astype(float), passed.sum(1).astype(float)
    both = (n_f > 0) & (n_p > 0)
    short = _too_few(n_f[both].sum(), n_p[both].sum(), "failed", "passed")
    if short:
        return Interval(math.nan, reason=short, level=level)
    logs, failed, passed, n_f, n_p = logs[both], failed[both], passed[both], n_f[both], n_p[both]
    mean_f, mean_p = (logs * failed).sum(1) / n_f, (logs * passed).sum(1) / n_p
    share = n_f * n_p / (n_f + n_p)
    share /= share.sum()
    value = float((share * (mean_f - mean_p)).sum())
    own = failed * (logs - mean_f[:, None]) / n_f[:, None] - passed * (logs - mean_p[:, None]) / n_p[:, None]
    error, items = _influence_error(share @ own, np.asarray((failed | passed).any(axis=0), bool))
    if math.isnan(error):
        return Interval(math.exp(value), reason="one item only", level=level)
    reach = _reach(items, level) * error
    return Interval(math.exp(value), math.exp(value - reach), math.exp(value + reach), "", level)


def _too_few(positive: float, negative: float, one: str, other: str) -> str:
    for count, word in ((positive, one), (negative, other)):
        if count < _FEW:
            return f"only {int(count)} {word} (candidate, item) pairs; at least {_FEW} are needed"
    return ""


def auroc(values: FloatArray, positive: Bools, negative: Bools, level: float = 0.95) -> Interval:
    """Within-candidate AUROC; (C, N) each, disjoint masks. Cost: O(C·N log N)."""
    influence = np.zeros(values.shape[1])
    wins = pairs = 0.0
    placed = []
    for row, pos, neg in zip(values, positive, negative, strict=True):
        above = np.flatnonzero(pos)
        below = np.flatnonzero(neg)
        if not len(above) or not len(below):
            continue
        # share of the other side that lies on the right side of each item, ties half
        v_pos = _placement(row[above], row[below])
        v_neg = 1 - _placement(row[below], row[above])
        wins += float(v_pos.sum()) * len(below)
        pairs += float(len(above)) * len(below)
        placed.append((above, below, v_pos, v_neg))
    counted = sum(len(a) for a, *_ in placed), sum(len(b) for _, b, *_ in placed)
    short = _too_few(*counted, "positive", "negative")
    if short:
        return Interval(math.nan, reason=short, level=level)
    value = wins / pairs
    for above, below, v_pos, v_neg in placed:
        influence[above] += len(below) * (v_pos - value) / pairs
        influence[below] += len(above) * (v_neg - value) / pairs
    error, items = _influence_error(influence, np.asarray((positive | negative).any(axis=0), bool))
    if not 0 < value < 1:
        return Interval(value, reason="complete separation: no interval", level=level)
    centre, spread = float(special.logit(value)), _reach(items, level) * error / (value * (1 - value))
    return Interval(value, float(special.expit(centre - spread)), float(special.expit(centre + spread)), "", level)


def _placement(ours: FloatArray, theirs: FloatArray) -> npt.NDArray[np.float64]:
    """Share of ``theirs`` below each of ``ours``, ties half."""
    order = np.sort(theirs)
    places = np.searchsorted(order, ours, "left") + np.searchsorted(order, ours, "right")
    out: npt.NDArray[np.float64] = places / (2 * len(theirs))
    return out
