"""Candidates ranked by mean KL divergence, with ties called ties."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from quantvane.displacement._columns import Clusters, Columns, Term, column, interval_of
from quantvane.errors import DataError
from quantvane.stats.multiplicity import holm
from quantvane.stats.resampling import Resampling, ratio_intervals, ratio_standard_error
from quantvane.types import FloatArray, Interval

__all__ = ["Rank", "compare_candidates"]


@dataclass(frozen=True, slots=True)
class Rank:
    """One candidate's place.

    Attributes:
        name: the candidate. rank: 1 is the smallest mean kld (equal means: by name).
        mean: mean kld in nats.
        behind: paired mean difference to the next better candidate (this − better, nats), with its own
            unadjusted interval; None for the first.
        p_holm: Holm-adjusted p-value of that difference; NaN for the first or where there is none.
        tied_with: names of every candidate it cannot be told apart from. Being tied is not transitive: a
            may be tied with b and b with c while a and c differ.
    """

    name: str
    rank: int
    mean: Interval
    behind: Interval | None
    p_holm: float
    tied_with: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "rank": self.rank,
            "kld_mean": self.mean.to_dict(),
            "behind": None if self.behind is None else self.behind.to_dict(),
            "p_holm": None if math.isnan(self.p_holm) else self.p_holm,
            "tied_with": list(self.tied_with),
        }


def compare_candidates(
    klds: Mapping[str, npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]]],
    clusters: Clusters,
    floor: float | None = None,
    *,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> list[Rank]:
    """Rank candidates measured on the same positions.

    Every pair is compared position by position: d = mean(kld_a − kld_b), se linearised over clusters,
    p = 2·P(t_{G−1} > |d|/se), and the p-values of all k(k−1)/2 pairs are adjusted by Holm's step-down rule.
    Two candidates are tied when their adjusted p exceeds 1 − level, when the interval of d contains 0, when
    |d| ≤ ``floor``, or when there are fewer than 2 clusters to judge by. A candidate with an infinite mean is
    behind every finite one and tied with other infinite ones.

    Args:
        klds: name → (T,) per-token kld (nats), or the columns of a table that has it; same positions for all.
        clusters: labels of documents or windows as in `aggregate`.
        floor: noise floor in nats of mean kld; None or NaN where unknown, then only the interval decides.
        seed, resamples, level: as in `aggregate`.

    Returns:
        One Rank per candidate, best first.

    Raises:
        DataError: lengths differ, no tokens, NaN.

    Sources: Holm (1979), Scand. J. Statist. 6, 65–70.
    """
    means: dict[str, Interval] = {}
    sums: dict[str, FloatArray | None] = {}  # None where a value is infinite
    sizes = np.empty(0)
    draws = Resampling(1, seed, resamples)
    for name, kld in klds.items():
        field, columns = (name, {name: kld}) if isinstance(kld, np.ndarray) else ("kld", kld)
        table = Columns(columns, clusters)
        draws = Resampling(table.groups, seed, resamples)
        made = table.sums([Term(name, "log", (field,), column(field))])
        if sums and not np.array_equal(sizes, made.sizes[0]):
            raise DataError(
                f"'{name}' was not measured on the positions of the others",
                expected=f"{sizes.sum():.0f} tokens in {len(sizes)} clusters",
                got=f"{made.sizes.sum():.0f} tokens in {table.groups} clusters",
                remedy="compare candidates of one run",
            )
        sizes, bad = made.sizes[0], int(made.bad[0])
        sums[name] = None if bad else made.totals[0]
        means[name] = (
            interval_of(float(made.plain[0] / made.tokens[0]), bad, int(made.tokens[0]))
            if bad
            else ratio_intervals(made.totals, made.sizes, ["log"], draws, level)[0]
        )
    order = sorted(means, key=lambda name: (means[name].value, name))
    pairs = list(combinations(order, 2))  # (better, worse)
    differences = _differences(sizes, sums, pairs, draws, level)
    adjusted = dict(zip(pairs, holm([differences[pair][1] for pair in pairs]), strict=True))
    least = floor if floor is not None and not math.isnan(floor) else -math.inf

    def tied(pair: tuple[str, str]) -> bool:
        d = differences[pair][0]
        # "not (p ≤ α)": an unknown p (NaN) separates nothing
        return abs(d.value) <= least or d.low <= 0 <= d.high or not adjusted[pair] <= 1 - level

    out = []
    for i, name in enumerate(order):
        pair = (order[i - 1], name)
        others = [other for other in order if other != name]
        out.append(
            Rank(
                name=name,
                rank=i + 1,
                mean=means[name],
                behind=differences[pair][0] if i else None,
                p_holm=adjusted[pair] if i else math.nan,
                tied_with=tuple(
                    o for o in others if tied((o, name) if (o, name) in differences else (name, o))
                ),
            )
        )
    return out


def _differences(
    sizes: FloatArray,
    sums: Mapping[str, FloatArray | None],
    pairs: list[tuple[str, str]],
    draws: Resampling,
    level: float,
) -> dict[tuple[str, str], tuple[Interval, float]]:
    """Pair (better, worse) → (worse − better with its interval, p-value), from sums over clusters."""
    out: dict[tuple[str, str], tuple[Interval, float]] = {}
    rows = []
    for pair in pairs:
        better, worse = (sums[name] for name in pair)
        if better is not None and worse is not None:
            rows.append((pair, worse - better))
        elif better is not None:
            out[pair] = Interval(math.inf, reason="the mean is infinite", level=level), 0.0
        else:
            out[pair] = Interval(math.nan, reason="both means are infinite", level=level), math.nan
    if rows:
        totals = np.array([difference for _, difference in rows])
        made = ratio_intervals(totals, np.tile(sizes, (len(rows), 1)), ["real"] * len(rows), draws, level)
        for (pair, difference), interval in zip(rows, made, strict=True):
            out[pair] = interval, _p_value(*ratio_standard_error(difference, sizes))
    return out


def _p_value(value: float, error: float, groups: int) -> float:
    """Two-sided, of a mean difference of 0; NaN below 2 clusters."""
    if groups < 2:
        return math.nan
    if error == 0:
        return 1.0 if value == 0 else 0.0
    return float(2 * special.stdtr(groups - 1, -abs(value) / error))
