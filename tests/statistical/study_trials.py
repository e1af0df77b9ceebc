"""Simulated studies with a known truth: how often do intervals cover, tests reject, ceilings and nulls hold?

Each function takes a number of trials and returns named shares or means. Outcomes of items are drawn with flip
probabilities: a candidate of volume V and direction D drops a right item with probability V(1 − D)/2 / P(right) and
wins a wrong one with V(1 + D)/2 / P(wrong), so that its expected Δscore is V·D.
"""

from __future__ import annotations

import math

import numpy as np

from quantvane.stats.correlation import Draws, correlate, correlate_rows, permutation_p, resampled
from quantvane.study.cohort import Cohort, Displacement, score_weights
from quantvane.study.null import noise_ceiling, range_null
from quantvane.study.prediction import auroc, log_mean_ratio
from quantvane.study.resample import bootstrap_scores, items_interval, split_items
from quantvane.study.router import route
from quantvane.study.zone import judge, parse_rule, zone_members
from support_study import cohort

RIGHT = 0.7


def flipped(rng, volume, direction, x, items=800, tasks=4) -> Cohort:
    """A cohort of given expected volume and direction; the metric is ``x``."""
    volume, direction = np.asarray(volume, float), np.asarray(direction, float)
    ref = rng.random(items) < RIGHT
    drop, win = volume * (1 - direction) / 2 / RIGHT, volume * (1 + direction) / 2 / (1 - RIGHT)
    flips = rng.random((len(volume), items)) < np.where(ref, drop[:, None], win[:, None])
    nothing = np.zeros((len(volume), items), np.float32)
    return Cohort(
        reference="reference", names=tuple(map(str, range(len(volume)))), bits=np.ones(len(volume)),
        displacement=(Displacement("kld_mean", "text", 512, np.asarray(x, float)),),
        tasks=tuple(map(str, range(tasks))), groups=("all",), task=np.arange(items, dtype=np.int32) % tasks,
        group=np.zeros(tasks, np.int32), choice=np.ones(items, bool), ref_correct=ref, correct=ref[None] ^ flips,
        kld=nothing, ref_evidence=nothing[0], evidence=nothing,
    )  # fmt: skip


def candidate_intervals(trials, n, r, seed=0):
    """Coverage of both intervals over candidates for bivariate normal candidates; truth 6/π·asin(r/2)."""
    rng, truth = np.random.default_rng([seed, n, round(-100 * r)]), 6 / math.pi * math.asin(r / 2)
    draws, jackknife, boot = Draws(seed, 600), 0, 0
    for _ in range(trials):
        x = rng.normal(size=n)
        y = r * x + math.sqrt(1 - r * r) * rng.normal(size=n)
        found = correlate(x, y)
        low, high = np.quantile(resampled(x, y, draws.drawn(n)), [0.025, 0.975])
        jackknife += found.low <= truth <= found.high
        boot += low <= truth <= high
    return {"jackknife": jackknife / trials, "bootstrap": float(boot / trials)}


def permutation_level(trials, n, seed=0):
    """Share of permutation p ≤ 0.05 where there is no association."""
    rng, draws = np.random.default_rng([seed, n]), Draws(seed, 100, 999)
    hits = sum(permutation_p(rng.normal(size=n), rng.normal(size=n), "spearman", draws) <= 0.05 for _ in range(trials))
    return hits / trials


def item_intervals(trials, candidates=25, items=800, seed=0):
    """Coverage of the interval over items: the cohort is fixed, the items are new; truth is the mean ρ."""
    rng = np.random.default_rng([seed, candidates, items])
    volume = np.exp(rng.uniform(math.log(0.01), math.log(0.3), candidates))
    direction = rng.normal(-0.2, 0.15, candidates)
    seen, ends = [], []
    for _ in range(trials):
        held = flipped(rng, volume, direction, volume, items)
        score = score_weights(held, "items")
        judged = judge(held, score)
        seen.append(float(correlate_rows(volume, judged.scores)))
        boot = bootstrap_scores(held, score, rng, 200)
        ends.append(items_interval(volume, judged.scores, boot.candidates))
    truth = float(np.mean(seen))
    return {"coverage": float(np.mean([low <= truth <= high for low, high in ends])), "mean_rho": truth}


def null_law(trials, direction_of, candidates=40, items=800, seed=0):
    """Share of p ≤ 0.05 of the range-restriction null, and the mean ρ seen and expected in the zone.

    Args:
        direction_of: (rng, volume) → direction of each candidate.
    """
    rng, rule = np.random.default_rng([seed, candidates, items]), parse_rule("score:0.03")
    hits, seen, expected = [], [], []
    for _ in range(trials):
        volume = np.exp(rng.uniform(math.log(0.01), math.log(0.4), candidates))
        held = flipped(rng, volume, direction_of(rng, volume), volume, items)
        score = score_weights(held, "items")
        found = range_null(rule, judge(held, score), volume, bootstrap_scores(held, score, rng, 200), rng)
        if math.isfinite(found.p):
            hits.append(found.p <= 0.05)
            seen.append(found.seen)
            expected.append(found.median)
    return {
        "rejected": float(np.mean(hits)), "rho_seen": float(np.mean(seen)), "rho_expected": float(np.mean(expected)),
        "trials": len(hits),
    }  # fmt: skip


def relation_holds(rng, volume):
    """The null itself: Δ = −0.5·V·(1 + 0.3·ε)."""
    return np.clip(-0.5 * (1 + 0.3 * rng.normal(size=len(volume))), -1, 1)


def silent_near(rng, volume):
    """A silent zone: direction has no sign where volume is small, and a firm one where it is large."""
    return np.where(volume < 0.1, rng.normal(0, 0.5, len(volume)).clip(-1, 1), -0.7)


def ceiling_against_truth(trials, candidates=25, items=800, seed=0):
    """Mean ceiling in a zone of pure direction, beside what the perfect metric (the true Δ) reaches there."""
    rng = np.random.default_rng([seed, candidates, items])
    draws, ceilings, reached, beyond = Draws(seed, 100), [], [], []
    everyone = np.ones(candidates, bool)
    for _ in range(trials):
        volume, direction = np.full(candidates, 0.1), rng.normal(0, 0.25, candidates).clip(-1, 1)
        held = flipped(rng, volume, direction, volume, items)
        judged = judge(held, score_weights(held, "items"))
        found = noise_ceiling(held, everyone, split_items(held, "items", rng, 20), draws)
        ceilings.append(found.value)
        reached.append(float(correlate_rows(volume * direction, judged.scores)))
        beyond.append(found.low <= reached[-1] <= found.high)
    means = {"ceiling": ceilings, "perfect_metric": reached, "inside": beyond}
    return {name: float(np.mean(values)) for name, values in means.items()}


def zone_tests(trials, metric_of, candidates=25, items=800, seed=0):
    """Share of zones in which the permutation test finds a metric at 0.05; and its mean ρ.

    Args:
        metric_of: (rng, volume, direction) → the metric. Direction is independent of volume here: a silent zone.
    """
    rng, draws = np.random.default_rng([seed, candidates]), Draws(seed, 500, 499)
    hits, seen = 0, []
    silent = {"jackknife": 0, "bootstrap": 0}
    for _ in range(trials):
        volume = np.exp(rng.uniform(math.log(0.02), math.log(0.2), candidates))
        direction = rng.normal(0, 0.4, candidates).clip(-1, 1)
        held = flipped(rng, volume, direction, volume, items)
        scores = judge(held, score_weights(held, "items")).scores
        x = metric_of(rng, volume, direction)
        found = correlate(x, scores, "spearman", draws)
        hits += found.p <= 0.05
        seen.append(found.value)
        silent["jackknife"] += found.low <= 0 <= found.high
        silent["bootstrap"] += found.boot_low <= 0 <= found.boot_high
    covers = {f"{name}_has_0": count / trials for name, count in silent.items()}
    return {"found": hits / trials, "mean_rho": float(np.mean(seen)), **covers}


def item_estimators(trials, candidates=8, items=300, seed=0):
    """Coverage of AUROC (failed, direction), of the geometric-mean ratio and of the router's accuracy."""
    rng, rule = np.random.default_rng([seed, candidates, items]), parse_rule("score:0.05")
    volume, drift = np.linspace(0.3, 0.9, candidates), np.full(candidates, -0.05)
    names = ("auroc_failed", "auroc_direction", "ratio", "router")
    values: dict[str, list[float]] = {n: [] for n in names}
    ends: dict[str, list[tuple[float, float]]] = {n: [] for n in names}
    for _ in range(trials):
        held = cohort(rng, volume, drift, {"kld_mean": volume}, items=items)
        kld, right, ref = held.kld.astype(float), held.correct, held.ref_correct
        routes = route(held, zone_members(rule, judge(held, score_weights(held)), volume), volume,
                       split_items(held, "items", rng, 2))  # fmt: skip
        found = {
            "auroc_failed": auroc(kld, ~right, right),
            "auroc_direction": auroc(kld, ref & ~right, ~ref & right),
            "ratio": log_mean_ratio(kld, ~right, right),
            "router": next(r.accuracy for r in routes if (r.rule, r.region) == ("kld", "full")),
        }
        for name, interval in found.items():
            values[name].append(interval.value)
            ends[name].append((interval.low, interval.high))
    out = {}
    for name in names:
        # The truth is what very many items give; the mean over trials is within a hundredth of a width of it.
        truth = float(np.exp(np.mean(np.log(values[name]))) if name == "ratio" else np.mean(values[name]))
        out[name] = float(np.mean([low <= truth <= high for low, high in ends[name]]))
    return out
