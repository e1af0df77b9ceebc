"""The whole study of a cohort: one declared set of choices in, one record of results out. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from quantvane.errors import DataError
from quantvane.stats.correlation import Correlation, Draws, Method, check_method, correlate
from quantvane.study.cohort import Cohort, Displacement, scores
from quantvane.study.decomposition import Part, Parts, decompose, parts_of
from quantvane.study.null import Ceiling, Null, noise_ceiling, range_null
from quantvane.study.prediction import Prediction, predict
from quantvane.study.resample import bootstrap_scores, items_interval, split_items
from quantvane.study.router import Route, route
from quantvane.study.signed import Signed, judge_signed
from quantvane.study.variants import VariantResult, judge_variants, main_metric
from quantvane.study.zone import Holdout, Judged, Rule, Step, Zone, find_zone, holdout, judge, parse_rule, sweep
from quantvane.types import FloatArray

__all__ = ["Choices", "Headline", "Study", "analyse"]


@dataclass(frozen=True, slots=True)
class Choices:
    """What is declared before the data are looked at.

    Attributes:
        zone: rule, see `quantvane.study.zone`. composite: see `quantvane.study.cohort.score_weights`.
        metric: the variant that stands for displacement. method: correlation. seed: of every draw.
        resamples: of items. splits: halves of the items.
    """

    zone: str = "score:0.02"
    composite: str = "groups"
    metric: str = "kld_mean"
    method: Method = "spearman"
    seed: int = 0
    resamples: int = 1000
    splits: int = 50

    def __post_init__(self) -> None:
        check_method(self.method)
        parse_rule(self.zone)


@dataclass(frozen=True, slots=True)
class Headline:
    """The main metric against the composite, with the intervals over items."""

    full: Correlation
    zone: Correlation
    items_full: tuple[float, float]
    items_zone: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Study:
    """All results; candidates in the cohort's order.

    Attributes:
        choices: as declared. rule: the zone's. main: the metric that stands for displacement.
        judged: the composite of every model. parts: volume, direction, Δ of the composite.
        zone, headline, variants, sweep, holdout, null, ceiling_zone, ceiling_full, decomposition, predictions,
        routes, signed: results of the modules of these names.
        reason: why there is no score, "" where there is one.
    """

    choices: Choices
    rule: Rule
    main: Displacement
    judged: Judged
    parts: Parts
    zone: Zone
    headline: Headline
    variants: tuple[VariantResult, ...]
    sweep: tuple[Step, ...]
    holdout: Holdout
    null: Null
    ceiling_zone: Ceiling
    ceiling_full: Ceiling
    decomposition: tuple[Part, ...]
    predictions: tuple[Prediction, ...]
    routes: tuple[Route, ...]
    signed: tuple[Signed, ...]
    reason: str = ""


def analyse(cohort: Cohort, choices: Choices) -> Study:
    """Carry out the study. Equal choices and tables give equal results.

    Raises:
        DataError: the cohort has no value of the main metric.
        SpecError: a choice that cannot be read.
    """
    main = main_metric(cohort, choices.metric)
    if main is None:
        raise DataError(
            f"the runs hold no '{choices.metric}'",
            expected="a compare run with this metric",
            got=", ".join(sorted({d.variant for d in cohort.displacement})) or "no compare run",
            remedy="name a compare run among the runs, or another --metric",
        )
    rule, method = parse_rule(choices.zone), choices.method
    # One stream a concern: more draws for one change nothing in another.
    streams = [np.random.default_rng([choices.seed, at]) for at in range(3)]
    draws = Draws(choices.seed, choices.resamples)
    everything = scores(cohort, choices.composite)
    composite, x = everything[0], main.values
    judged = judge(cohort, composite)
    zone = find_zone(rule, judged, x)
    full = np.ones(len(x), bool)
    boot = bootstrap_scores(cohort, composite, streams[0], choices.resamples)
    splits = split_items(cohort, choices.composite, streams[1], choices.splits)

    def main_rho(chosen: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> tuple[Correlation, tuple[float, float]]:
        found = correlate(x[chosen], judged.scores[chosen], method, draws)
        return found, items_interval(x[chosen], judged.scores[chosen], boot.candidates[:, chosen], method)

    (rho_full, items_full), (rho_zone, items_zone) = main_rho(full), main_rho(zone.members)
    return Study(
        choices=choices,
        rule=rule,
        main=main,
        judged=judged,
        parts=parts_of(cohort, composite),
        zone=zone,
        headline=Headline(rho_full, rho_zone, items_full, items_zone),
        variants=judge_variants(cohort, judged.scores, zone.members, boot.candidates, draws, method),
        sweep=sweep(rule, judged, x, method),
        holdout=holdout(cohort, rule, x, splits, method),
        null=range_null(rule, judged, x, boot, streams[2], method),
        ceiling_zone=noise_ceiling(cohort, zone.members, splits, draws, method),
        ceiling_full=noise_ceiling(cohort, full, splits, draws, method),
        decomposition=decompose(cohort, everything, zone.members, main, method),
        predictions=predict(cohort, zone.members),
        routes=route(cohort, zone.members, x, splits),
        signed=judge_signed(cohort, rule, x, _corpus_log_p(cohort, main), splits, method),
        reason=composite.reason,
    )


def _corpus_log_p(cohort: Cohort, main: Displacement) -> FloatArray:
    for metric in cohort.displacement:
        if (metric.variant, metric.corpus, metric.context) == ("ln_ppl_ratio", main.corpus, main.context):
            return -metric.values
    return np.full(len(cohort.names), math.nan)
