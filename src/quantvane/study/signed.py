"""Direction-aware metrics, judged on items they have not seen, beside KLD and the score itself.

On one half of the items each metric is computed for every candidate; the score on the other half judges it, in
full and in the zone (chosen on the first half), over repeated splits, both ways round. Larger is better for:

- ``log_odds_shift``: Σ w (ℓ_c − ℓ_r), ℓ the log-odds of the right answer (`quantvane.study.cohort.log_odds`);
- ``margin_flow``: expected Δscore from the margin distribution: per task, the mean over all pairs (i, j) of
  [ℓ_r,i + δ_j > θ] − [ℓ_r,i > θ], δ_j = ℓ_c,j − ℓ_r,j, as if a shift met every margin alike. θ = 0 for choices; for
  generated answers the quantile at which as many references lie above as are right;
- ``gold_log_p``: mean Δ ln p of the right answer to generated items; ``corpus_log_p``: −ln PPL ratio on the corpus;
- ``score``: the score on the first half itself, what repeating the benchmark would say.

Smaller is better for ``kld_items``, the mean KLD of the items, and ``kld_corpus``, the main metric.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from quantvane.stats.correlation import Correlation, Method, correlate_rows, correlation_interval
from quantvane.study.cohort import Bools, Cohort, log_odds
from quantvane.study.resample import Splits
from quantvane.study.zone import Rule, half_scores, zone_members
from quantvane.types import FloatArray

__all__ = ["SIGNED", "Signed", "judge_signed", "margin_flow"]

SIGNED: dict[str, tuple[str, int]] = {
    "kld_corpus": ("KLD on the corpus", -1),
    "kld_items": ("KLD on other items", -1),
    "log_odds_shift": ("shift of the right answer's log-odds", 1),
    "margin_flow": ("expected flips from the margins", 1),
    "gold_log_p": ("Δ log p of the right answer (generated items)", 1),
    "corpus_log_p": ("−ln PPL ratio on the corpus", 1),
    "score": ("score on other items", 1),
}


@dataclass(frozen=True, slots=True)
class Signed:
    """One metric in one region.

    Attributes:
        expected: the sign a useful metric has. rho: mean over splits, its interval over candidates for the mean
            number of them. low, high: 2.5 and 97.5% of the splits. beats_kld: share of splits in which it is more
            strongly of its expected sign than ``kld_corpus``; NaN for that itself.
    """

    metric: str
    region: str
    expected: int
    rho: Correlation
    low: float
    high: float
    beats_kld: float


def judge_signed(
    cohort: Cohort, rule: Rule, x: FloatArray, corpus_log_p: FloatArray, splits: Splits, method: Method = "spearman"
) -> tuple[Signed, ...]:
    """See the module. (C,) ``x``: the main metric; (C,) ``corpus_log_p``."""
    regions = ("full", "zone")
    values: dict[str, dict[str, list[float]]] = {r: {m: [] for m in SIGNED} for r in regions}
    counts: dict[str, list[int]] = {r: [] for r in regions}
    if not splits.reason:
        halves = [half_scores(cohort, weights) for weights in splits.weights]
        for one in (0, 1):
            table = _metrics(cohort, splits.first if one == 0 else ~splits.first, splits.weights[one])
            for at, (ours, theirs) in enumerate(zip(halves[one], halves[1 - one], strict=True)):
                found = {name: rows[at] for name, rows in table.items()}
                found |= {"kld_corpus": x, "corpus_log_p": corpus_log_p, "score": ours.scores}
                inside = zone_members(rule, ours, x)
                for region, who in zip(regions, (np.ones(len(x), bool), inside), strict=True):
                    counts[region].append(int(who.sum()))
                    for name, metric in found.items():
                        values[region][name].append(_rho(metric[who], theirs.scores[who], method))
    return tuple(
        _summary(name, region, values[region], counts[region], splits.reason, method)
        for region in regions
        for name in SIGNED
    )


def _rho(metric: FloatArray, score: FloatArray, method: Method) -> float:
    known = np.isfinite(metric) & np.isfinite(score)
    return float(correlate_rows(metric[known], score[known], method)) if known.sum() >= 5 else math.nan


def _summary(
    name: str, region: str, values: dict[str, list[float]], counts: list[int], reason: str, method: Method
) -> Signed:
    expected = SIGNED[name][1]
    rho = np.array(values[name])
    known = np.isfinite(rho)
    if reason or not known.any() or known.mean() < 0.5:
        words = reason or "not measured, constant, or fewer than 5 candidates in most splits"
        return Signed(name, region, expected, Correlation(math.nan, 0, reason=words), math.nan, math.nan, math.nan)
    members = round(float(np.mean(counts)))
    mean = float(rho[known].mean())
    ends = correlation_interval(mean, members, method)
    low, high = np.quantile(rho[known], [0.025, 0.975])
    beats = math.nan
    if name != "kld_corpus":
        kld = np.array(values["kld_corpus"])
        both = known & np.isfinite(kld)
        beats = float((expected * rho[both] > -kld[both]).mean()) if both.any() else math.nan
    return Signed(name, region, expected, Correlation(mean, members, *ends), float(low), float(high), beats)


def _means(values: FloatArray, weights: FloatArray) -> FloatArray:
    """Weighted means over known items; (C, N), (S, N) → (S, C), NaN where none is known."""
    known = np.isfinite(values)
    total = weights @ known.T
    with np.errstate(invalid="ignore", divide="ignore"):
        out: FloatArray = np.where(total > 0, weights @ np.where(known, values, 0.0).T / total, math.nan)
    return out


def _metrics(cohort: Cohort, chosen: Bools, weights: FloatArray) -> dict[str, FloatArray]:
    """Metric → (S, C), each on the items of its split; (S, N) both."""
    ref = log_odds(cohort.ref_evidence, cohort.choice)
    shift = log_odds(cohort.evidence, cohort.choice) - ref
    evidence = cohort.evidence.astype(np.float64) - cohort.ref_evidence
    return {
        "kld_items": _means(cohort.kld.astype(np.float64), weights),
        "log_odds_shift": _means(shift, weights),
        "margin_flow": _flows(cohort, chosen, weights, shift, ref),
        "gold_log_p": _means(evidence, weights * ~cohort.choice),
    }


def _flows(cohort: Cohort, chosen: Bools, weights: FloatArray, shift: FloatArray, ref: FloatArray) -> FloatArray:
    total = np.zeros((len(chosen), len(cohort.names)))
    counted = np.zeros(len(chosen))
    for task in range(len(cohort.tasks)):
        items = np.flatnonzero((cohort.task == task) & np.isfinite(ref))
        m, d, right = ref[items], shift[:, items], cohort.ref_correct[items]
        choice = bool(cohort.choice[items].all())
        for at, mask in enumerate(chosen[:, items]):
            if mask.any():
                threshold = 0.0 if choice else _threshold(m[mask], right[mask])
                share = float(weights[at, items[mask]].sum())
                total[at] += share * margin_flow(m[mask], d[:, mask], threshold)
                counted[at] += share
    with np.errstate(invalid="ignore", divide="ignore"):
        out: FloatArray = np.where(counted[:, None] > 0, total / counted[:, None], math.nan)
    return out


def _threshold(ref: FloatArray, right: Bools) -> float:
    """The value that as many log-odds exceed as references are right."""
    order = np.sort(ref)
    wrong = int((~right).sum())
    if wrong == 0:
        return float(order[0]) - 1e-9
    if wrong == len(order):
        return float(order[-1])
    return float(order[wrong - 1] + order[wrong]) / 2


def margin_flow(ref: FloatArray, shift: FloatArray, threshold: float = 0.0) -> FloatArray:
    """Expected Δscore of one task; (n,) and (C, n) → (C,). Candidates with unknown shifts give NaN.

    Cost: O(C·n log(C·n)): the candidates are laid side by side on one line, which is sorted once.
    """
    known = np.isfinite(shift).all(axis=1)
    out = np.full(len(shift), math.nan)
    if not known.any():
        return out
    rows, needed = shift[known], threshold - ref
    low = min(rows.min(), needed.min())
    span = max(rows.max(), needed.max()) - low + 1.0
    places = span * np.arange(len(rows))[:, None] - low
    line = np.sort(rows + places, axis=1).ravel()
    below = np.searchsorted(line, (needed[None, :] + places).ravel(), side="right").reshape(len(rows), -1)
    above = (1 + np.arange(len(rows)))[:, None] * len(ref) - below
    out[known] = above.mean(axis=1) / len(ref) - float((ref > threshold).mean())
    return out
