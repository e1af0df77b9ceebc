"""Cluster bootstrap: whole clusters (documents or windows) are drawn again, tokens within them stay together.

Every estimate here is a ratio of sums over clusters, θ = Σ_g T_g / Σ_g N_g, with residuals e_g = T_g − θ·N_g
and the linearised standard error se = √(G/(G−1) · Σ e_g²) / Σ N_g. How the interval is made depends on
the scale (measured coverages: docs/intervals.md):

- ``real``: the hull of Student's θ ± t_{G−1}·se and of bootstrap-t's θ − t*·se, t* the bootstrap quantiles of
  (θ* − θ)/se*. For signed means: differences, Δp, ln PPL ratio. Student's is short for skewed differences,
  bootstrap-t for symmetric heavy-tailed ones; which of the two a difference is cannot be told from the data.
- ``log``: θ·exp(−t*·se/θ), t* the bootstrap quantiles of (ln θ* − ln θ)/(se*/θ*) (bootstrap-t). For
  non-negative, skewed means: KLD and its kin.
- ``logit``: logit⁻¹(logit θ ± t_{G−1}·se/(θ(1−θ))). For shares and agreement.

Sources: Efron & Tibshirani, An Introduction to the Bootstrap (1993), ch. 12 (bootstrap-t); Hesterberg, What
Teachers Should Know About the Bootstrap (2015), §3.2 (expanded percentile); Korn & Graubard, Analysis of
Health Surveys (1999), §2.5 (clustered proportions).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import special

from quantvane.errors import DataError
from quantvane.types import FloatArray, Interval

__all__ = [
    "FEW_CLUSTERS",
    "Resampling",
    "Scale",
    "few_note",
    "mapped",
    "percentile_interval",
    "ratio_intervals",
    "ratio_standard_error",
    "t_interval",
]

FEW_CLUSTERS = 8
"""Below this many clusters an interval carries a note, and bootstrap-t gives way to Student's t."""

_CELLS = 1 << 18  # counts held at once, (rows, G): never (resamples, tokens)
_DROPPED = 0.05  # share of unusable resamples above which bootstrap-t is not trusted

Scale = Literal["real", "log", "logit"]


@dataclass(frozen=True, slots=True)
class Resampling:
    """A fixed set of resamples, named by three numbers: equal names, equal draws, so candidates stay paired.

    Attributes:
        clusters: number of clusters G.
        seed: of the PCG64 generator.
        resamples: number of resamples B. A larger B continues the smaller one's draws.
    """

    clusters: int
    seed: int = 0
    resamples: int = 2000

    def __post_init__(self) -> None:
        if self.clusters < 1 or self.resamples < 100 or self.seed < 0:
            raise DataError(
                "these resamples cannot be drawn",
                expected="clusters ≥ 1, resamples ≥ 100, seed ≥ 0",
                got=f"clusters={self.clusters}, resamples={self.resamples}, seed={self.seed}",
                remedy="raise the number that is too small",
            )

    def counts(self) -> Iterator[npt.NDArray[np.int64]]:
        """Blocks (b, G) of multinomial counts: how often each cluster was drawn; every row sums to G."""
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, self.clusters])))
        step = max(1, _CELLS // self.clusters)
        for start in range(0, self.resamples, step):
            rows = min(step, self.resamples - start)
            # G draws with replacement, counted: a multinomial, much faster than one binomial per cluster
            drawn = rng.integers(0, self.clusters, size=(rows, self.clusters))
            drawn += np.arange(rows)[:, None] * self.clusters
            flat = np.bincount(drawn.ravel(), minlength=rows * self.clusters)
            yield flat.reshape(rows, self.clusters)


def few_note(clusters: int) -> str:
    """The warning an interval carries that rests on few clusters; "" from `FEW_CLUSTERS` on."""
    return f"rests on few clusters ({clusters})" if clusters < FEW_CLUSTERS else ""


def mapped(interval: Interval, function: Callable[[float], float]) -> Interval:
    """The interval of an increasing function of the quantity."""
    return replace(
        interval,
        value=function(interval.value),
        low=function(interval.low),
        high=function(interval.high),
    )


def percentile_interval(value: float, replicates: FloatArray, clusters: int, level: float = 0.95) -> Interval:
    """Expanded percentile interval: quantiles of the replicates at Φ(−√(G/(G−1))·t_{α/2, G−1}) from either
    end.

    The expansion makes up for the bootstrap's own narrowness with few clusters; without it the percentile
    interval of a mean is shorter than the normal one by √((G−1)/G)·z/t. Fewer than 2 clusters: NaN with a
    reason.
    """
    if clusters < 2:
        return _no_interval(value, clusters, level)
    t = special.stdtrit(clusters - 1, (1 + level) / 2)
    tail = float(special.ndtr(-math.sqrt(clusters / (clusters - 1)) * t))
    # "inverted_cdf" takes an actual replicate: no ∞ − ∞ where replicates are infinite
    low, high = np.quantile(replicates, [tail, 1 - tail], method="inverted_cdf")
    return Interval(value, float(low), float(high), few_note(clusters), level)


def t_interval(value: float, error: float, clusters: int, level: float = 0.95) -> Interval:
    """value ± t_{(1+level)/2, G−1}·error; NaN with a reason below 2 clusters."""
    if clusters < 2:
        return _no_interval(value, clusters, level)
    reach = float(special.stdtrit(clusters - 1, (1 + level) / 2)) * error
    return Interval(value, value - reach, value + reach, few_note(clusters), level)


def ratio_standard_error(totals: FloatArray, sizes: FloatArray) -> tuple[float, float, int]:
    """(θ, se, G) of one ratio θ = ΣT/ΣN, from (G,) totals and sizes; clusters of size 0 do not count.

    se is NaN for G < 2 and exactly 0 where the residuals are no larger than the rounding of the sums.
    """
    used = sizes > 0
    groups = int(np.count_nonzero(used))
    if groups == 0:
        return math.nan, math.nan, 0
    weight = float(sizes.sum())
    theta = float(totals.sum()) / weight
    if groups < 2 or not math.isfinite(theta):
        return theta, math.nan, groups
    residual = totals - theta * sizes
    error = math.sqrt(float(residual @ residual) * groups / (groups - 1)) / weight
    rounding = 1e-13 * float(np.abs(totals).sum()) / weight
    return theta, (0.0 if error <= rounding else error), groups


def ratio_intervals(
    totals: FloatArray,
    sizes: FloatArray,
    scales: Sequence[Scale],
    resampling: Resampling,
    level: float = 0.95,
) -> list[Interval]:
    """One interval per row for θ_k = Σ_g T_kg / Σ_g N_kg.

    Args:
        totals: (K, G) sums of each quantity over each cluster.
        sizes: (K, G) number of tokens behind each sum; rows may differ (subsets of tokens).
        scales: (K,) which method, see the module's table.
        resampling: draws for the ``log`` and ``real`` rows; its ``clusters`` is G.
        level: nominal coverage.

    Returns:
        K intervals. Infinite sums, empty rows and fewer than 2 clusters give NaN ends and a reason; no
        variation between clusters gives an interval of no width and a reason.

    Cost: O(B·G·K), memory O(2¹⁸ + G·K + B·K).
    """
    if totals.shape != sizes.shape or totals.shape != (len(scales), resampling.clusters):
        raise DataError(
            "cluster sums do not fit together",
            expected=f"totals and sizes ({len(scales)}, {resampling.clusters})",
            got=f"{totals.shape} and {sizes.shape}",
            remedy="pass one row per quantity and one column per cluster",
        )
    basic = [ratio_standard_error(t, n) for t, n in zip(totals, sizes, strict=True)]
    todo = [
        k
        for k, (theta, error, groups) in enumerate(basic)
        if error > 0
        and groups >= FEW_CLUSTERS
        and (scales[k] == "real" or (scales[k] == "log" and theta > 0))
    ]
    tails: dict[int, tuple[float, float]] = {}
    if todo:
        logs = np.array([scales[k] == "log" for k in todo])
        found = _t_tails(totals[todo], sizes[todo], logs, resampling, level)
        tails = dict(zip(todo, found, strict=True))
    out = []
    for k, (theta, error, groups) in enumerate(basic):
        plain = _plain_case(theta, error, groups, scales[k], level)
        if plain is not None:
            out.append(plain)
        elif scales[k] == "log" and theta > 0:
            out.append(_log_interval(theta, error / theta, groups, tails.get(k), level))
        elif scales[k] == "logit" and 0 < theta < 1:
            logit = t_interval(float(special.logit(theta)), error / (theta * (1 - theta)), groups, level)
            out.append(replace(mapped(logit, lambda x: float(special.expit(x))), value=theta))
        else:
            out.append(_hull(t_interval(theta, error, groups, level), error, tails.get(k)))
    return out


def _no_interval(value: float, clusters: int, level: float) -> Interval:
    return Interval(
        value, reason=f"no interval from {clusters} cluster(s): at least 2 are needed", level=level
    )


def _plain_case(theta: float, error: float, groups: int, scale: Scale, level: float) -> Interval | None:
    """The interval where there is nothing to estimate from; None where there is."""
    if groups == 0:
        return Interval(math.nan, reason="no tokens", level=level)
    if not math.isfinite(theta):
        return Interval(theta, reason="the mean is not finite", level=level)
    if groups < 2:
        return _no_interval(theta, groups, level)
    if error > 0:
        return None
    if scale == "logit" and theta in (0.0, 1.0):
        # none (or all) seen: the clusters are the trials, as in Clopper–Pearson's one-sided bound
        bound = 1 - (1 - level) ** (1 / groups)
        note = f"no exception seen; one-sided bound from {groups} clusters"
        return Interval(theta, 0.0 if theta == 0 else 1 - bound, bound if theta == 0 else 1.0, note, level)
    return Interval(theta, theta, theta, "no variation between clusters: an interval of no width", level)


def _hull(student: Interval, error: float, tails: tuple[float, float] | None) -> Interval:
    if tails is None or not all(map(math.isfinite, tails)):
        return student
    low, high = student.value - tails[1] * error, student.value - tails[0] * error
    return replace(student, low=min(low, student.low), high=max(high, student.high))


def _log_interval(
    theta: float, relative: float, groups: int, tails: tuple[float, float] | None, level: float
) -> Interval:
    note = few_note(groups)
    if tails is None or not all(map(math.isfinite, tails)):
        # too few clusters, or too many resamples without a single non-zero value
        note = note or "concentrated in few clusters"
        reach = float(special.stdtrit(groups - 1, (1 + level) / 2))
        tails = (-reach, reach)
    # capped: an end beyond e^700 is no end at all
    low, high = (theta * math.exp(min(-t * relative, 700.0)) for t in (tails[1], tails[0]))
    return Interval(theta, low, high, note, level)


def _t_tails(
    totals: FloatArray,
    sizes: FloatArray,
    logs: npt.NDArray[np.bool_],
    resampling: Resampling,
    level: float,
) -> list[tuple[float, float]]:
    """Bootstrap quantiles of t*, on the log scale where ``logs``; NaN where it is undefined too often."""
    theta = totals.sum(axis=1) / sizes.sum(axis=1)
    groups = np.count_nonzero(sizes > 0, axis=1)
    # sums of residuals, not of totals: no cancellation when clusters differ little
    residual = totals - theta[:, None] * sizes
    terms = [np.ascontiguousarray(x.T) for x in (residual, sizes, residual**2, residual * sizes, sizes**2)]
    t = np.empty((resampling.resamples, len(theta)))
    start = 0
    for block in resampling.counts():
        counts = block.astype(np.float64)
        r, n, rr, rn, nn = (counts @ x for x in terms)
        with np.errstate(all="ignore"):
            shift = r / n
            squares = rr - 2 * shift * rn + shift**2 * nn
            error = np.sqrt(np.maximum(squares, 0) * groups / (groups - 1)) / n
            again = theta + shift
            stat = np.where(logs, np.log(again / theta) * again, shift) / error
        # a resample whose clusters all agree has an error of pure rounding
        stat[~((squares > 1e-12 * rr) & (~logs | (again > 1e-12 * theta)))] = np.nan
        t[start : start + len(block)] = stat
        start += len(block)
    tails = []
    for column in t.T:
        usable = column[np.isfinite(column)]
        if len(usable) < (1 - _DROPPED) * len(column):
            tails.append((math.nan, math.nan))
            continue
        low, high = np.quantile(usable, [(1 - level) / 2, (1 + level) / 2])
        tails.append((float(low), float(high)))
    return tails
