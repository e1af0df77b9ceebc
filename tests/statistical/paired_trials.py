"""How often intervals hold the truth and tests err, for paired outcomes: exactly where the cells can be counted
through, otherwise by simulation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import stats

from quantvane.stats.equivalence import tost
from quantvane.stats.paired import direction_interval, mcnemar, paired_interval
from quantvane.stats.pairs import PairCounts, pair_counts
from quantvane.stats.sequential import betting, log_capital


@dataclass(frozen=True)
class Hits:
    """Shares in percent: inside, truth below the interval, truth above it."""

    inside: float
    below: float
    above: float


def cells(n: int, up: float, down: float) -> Iterator[tuple[int, int, float]]:
    """(leapfrogs, drops, probability) of the multinomial law, but for cells that add up to less than 1e-6."""
    for b in range(n + 1):
        p_b = stats.binom.pmf(b, n, up)
        if p_b < 1e-10:
            continue
        c = np.arange(n - b + 1)
        law = p_b * stats.binom.pmf(c, n - b, down / (1 - up))
        for drops in c[law > 1e-10]:
            yield b, int(drops), float(law[drops])


def exact_coverage(n: int, up: float, down: float) -> Hits:
    truth, below, above, total = up - down, 0.0, 0.0, 0.0
    for b, c, p in cells(n, up, down):
        found = paired_interval(PairCounts(n, c, b))
        total += p
        below += p * (truth < found.low)
        above += p * (truth > found.high)
    return Hits(100 * (1 - (below + above) / total), 100 * below / total, 100 * above / total)


def exact_direction_coverage(n: int, up: float, down: float) -> float:
    """Percent inside, given that something flipped."""
    truth, inside, total = (up - down) / (up + down), 0.0, 0.0
    for b, c, p in cells(n, up, down):
        if b + c:
            found = direction_interval(PairCounts(n, c, b))
            total += p
            inside += p * (found.low <= truth <= found.high)
    return 100 * inside / total


def exact_equivalence_rate(n: int, up: float, down: float, margin: float) -> float:
    """Percent in which the two one-sided tests find equivalence: size where |up − down| = margin, power at 0."""
    return 100 * sum(p for b, c, p in cells(n, up, down) if tost(PairCounts(n, c, b), margin).p <= 0.05)


def exact_mcnemar_size(n: int, flips: float) -> float:
    return 100 * sum(p for b, c, p in cells(n, flips / 2, flips / 2) if mcnemar(PairCounts(n, c, b)).p <= 0.05)


def clustered(
    rng: np.random.Generator, groups: int, up: float, down: float, strength: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Outcomes of clusters of 1 to 9 items; each cluster has rates of its own, Dirichlet(strength·rates)."""
    sizes = rng.integers(1, 10, groups)
    rates = rng.dirichlet(strength * np.array([up, down, (1 - up - down) / 2, (1 - up - down) / 2]), groups)
    kinds = np.concatenate([rng.choice(4, size, p=p) for size, p in zip(sizes, rates, strict=True)])
    ref, cand = np.isin(kinds, (1, 2)), np.isin(kinds, (0, 2))
    return ref, cand, np.repeat(np.arange(groups), sizes)


@dataclass(frozen=True)
class ClusteredRates:
    """Percent: Δ and D intervals that hold the truth, McNemar p ≤ 0.05, equivalence found; mean design effect."""

    delta: float
    direction: float
    mcnemar: float
    equivalent: float
    design_effect: float


def clustered_rates(seed: int, trials: int, groups: int, up: float, down: float, margin: float) -> ClusteredRates:
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(trials):
        pairs = pair_counts(*clustered(rng, groups, up, down, 4.0))
        delta, way = paired_interval(pairs), direction_interval(pairs)
        rows.append((
            delta.low <= up - down <= delta.high,
            way.low <= (up - down) / (up + down) <= way.high if not math.isnan(way.low) else math.nan,
            mcnemar(pairs).p <= 0.05, tost(pairs, margin).p <= 0.05, pairs.design_effect / 100,
        ))  # fmt: skip
    return ClusteredRates(*(100 * np.nanmean(np.array(rows, dtype=float), axis=0)))


def steps(rng: np.random.Generator, n: int, up: float, down: float) -> tuple[np.ndarray, np.ndarray]:
    kinds = rng.choice(3, n, p=[up, down, 1 - up - down])
    return kinds == 1, kinds == 0


def peeking_error(seed: int, trials: int, n: int, flips: float, *, fickle: bool = False) -> float:
    """Percent of equal pairs whose e-value ever reached 20 among n looks; ``fickle``: the share of flips depends on
    how the last ten items went."""
    rng = np.random.default_rng(seed)
    wrong = 0
    for _ in range(trials):
        if fickle:
            d = np.zeros(n)
            signs, draws = rng.choice([-1.0, 1.0], n), rng.random(n)
            for t in range(n):
                d[t] = signs[t] * (draws[t] < (4 * flips if d[max(0, t - 10) : t].sum() < 0 else flips))
        else:
            ref, cand = steps(rng, n, flips / 2, flips / 2)
            d = cand.astype(float) - ref
        up, down = (log_capital(d, np.ones(n), 0.0, sign) for sign in (1, -1))
        wrong += bool((np.logaddexp(up, down) - math.log(2)).max() >= math.log(20))
    return 100 * wrong / trials


@dataclass(frozen=True)
class SequentialRates:
    """Percent: confidence sequence holds the truth at all times; decisions by word. Median items to a decision."""

    covered: float
    better: float
    worse: float
    equivalent: float
    median: float


def sequential_rates(
    seed: int, trials: int, n: int, up: float, down: float, margin: float, groups: bool = False
) -> SequentialRates:
    rng = np.random.default_rng(seed)
    covered, words, stops = 0, [], []
    for _ in range(trials):
        if groups:
            ref, cand, labels = clustered(rng, n // 5, up, down, 4.0)
        else:
            (ref, cand), labels = steps(rng, n, up, down), None
        found = betting(ref, cand, margin, labels)
        covered += found.low <= up - down <= found.high
        words.append(found.decision)
        stops.append(math.inf if found.decided_at is None else found.decided_at)
    share = [100 * words.count(word) / trials for word in ("better", "worse", "equivalent")]
    return SequentialRates(100 * covered / trials, *share, float(np.median(stops)))


def plug_in_capital(d: np.ndarray, delta: float, sign: int, alpha: float = 0.05) -> np.ndarray:
    """ln capital with the bets of Waudby-Smith & Ramdas (2024), section 3.3, on (d + 1)/2: tuned to the past."""
    x, m, t = (sign * d + 1) / 2, (sign * delta + 1) / 2, np.arange(1, len(d) + 1)
    means = (0.5 + np.cumsum(x)) / (t + 1)
    spread = np.concatenate([[0.25], ((0.25 + np.cumsum((x - means) ** 2)) / (t + 1))[:-1]])
    bets = np.minimum(np.sqrt(2 * math.log(2 / alpha) / (spread * t * np.log(t + 1))), 0.75 / m)
    return np.cumsum(np.log1p(bets * (x - m)))


def mixture_and_plug_in(seed: int, trials: int, n: int, up: float, down: float, margin: float) -> list[float]:
    """Median items to a decision with either kind of bet."""
    rng = np.random.default_rng(seed)
    stops: list[list[float]] = [[], []]
    for _ in range(trials):
        ref, cand = steps(rng, n, up, down)
        d = cand.astype(float) - ref
        for stop, capital in zip(
            stops, (lambda delta, sign, d=d: log_capital(d, np.ones(n), delta, sign),
                    lambda delta, sign, d=d: plug_in_capital(d, delta, sign)), strict=True,
        ):  # fmt: skip
            different = np.logaddexp(capital(0.0, 1), capital(0.0, -1)) >= math.log(40)
            inside = [np.maximum.accumulate(capital(-s * margin, s)) >= math.log(40) for s in (1, -1)]
            done = different | (inside[0] & inside[1])
            stop.append(float(np.argmax(done)) + 1 if done.any() else math.inf)
    return [float(np.median(stop)) for stop in stops]
