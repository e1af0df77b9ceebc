"""Correlations over candidates: Spearman (default), Kendall, Pearson, with intervals and permutation p-values.

- Spearman: Pearson's coefficient of the average ranks. Kendall: τ_b. Fewer than `MINIMUM` complete pairs, or a
  constant side, give NaN with a reason.
- Interval over candidates: atanh ρ ± z_{α/2}·se on Fisher's scale, se by the jackknife over candidates, so that nothing
  is assumed of their law; where one candidate decides everything (ρ = ±1, or a side becomes constant without it)
  se² = (1 + ρ²/2)/(n − 3) for Spearman (Bonett & Wright 2000), 0.437/(n − 4) for Kendall (Fieller 1957), 1/(n − 3)
  for Pearson. The percentile interval of the bootstrap over candidates stands beside it. Measured coverage of
  both: docs/study.md.
- Permutation p, two-sided: (1 + #{|t_π| ≥ |t|})/(1 + permutations), over random orders of one side. For Spearman and
  Pearson t = Σ ab/√(Σ a²b²), a and b the centred ranks or values: studentized, so that it tests for no correlation
  also where the spread of one side grows with the other (a metric that knows volume and not direction does
  this), and is exact where the sides are independent. For Kendall t = τ_b, a test of independence.

Sources: Tukey (1958), Ann. Math. Stat. 29, 614 (jackknife); Bonett & Wright (2000), Psychometrika 65, 23–28;
Fieller, Hartley & Pearson (1957), Biometrika 44, 470–481;
DiCiccio & Romano (2017), J. Am. Stat. Assoc. 112, 1211–1220 (studentized permutations); Phipson & Smyth (2010), Stat.
Appl. Genet. Mol. Biol. 9, 39 (the added 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from quantvane.errors import SpecError
from quantvane.types import FloatArray

__all__ = [
    "METHODS",
    "MINIMUM",
    "Correlation",
    "Draws",
    "Method",
    "correlate",
    "correlate_rows",
    "correlation_interval",
    "permutation_p",
    "ranks",
    "resampled",
]

Method = Literal["spearman", "kendall", "pearson"]
METHODS: tuple[Method, ...] = ("spearman", "kendall", "pearson")
MINIMUM = 5
"""Fewest pairs a coefficient is given for: with four, no order is unusual at the 5% level."""

_CELLS = 1 << 22


@dataclass(frozen=True, slots=True)
class Correlation:
    """One coefficient.

    Attributes:
        value: the coefficient; NaN with a ``reason``.
        low, high: 95% interval over candidates (jackknife). boot_low, boot_high: percentile interval of the
            bootstrap over candidates; NaN where it was not asked for.
        p: two-sided permutation p-value; NaN where it was not asked for. n: complete pairs.
    """

    value: float
    n: int
    low: float = math.nan
    high: float = math.nan
    boot_low: float = math.nan
    boot_high: float = math.nan
    p: float = math.nan
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """``{"value", "n", "ci", "ci_bootstrap", "p", "reason"?}``."""

        def ends(low: float, high: float) -> list[float] | None:
            return [low, high] if math.isfinite(low) and math.isfinite(high) else None

        out: dict[str, Any] = {
            "value": self.value if math.isfinite(self.value) else None,
            "n": self.n,
            "ci": ends(self.low, self.high),
            "ci_bootstrap": ends(self.boot_low, self.boot_high),
            "p": self.p if math.isfinite(self.p) else None,
        }
        return out | ({"reason": self.reason} if self.reason else {})


def check_method(method: str) -> Method:
    """The method's name.

    Raises:
        SpecError: unknown.
    """
    for known in METHODS:
        if method == known:
            return known
    raise SpecError("no such correlation", expected="one of " + ", ".join(METHODS), got=method, remedy="correct it")


def ranks(values: FloatArray) -> FloatArray:
    """Average ranks along the last axis, from 1."""
    n = values.shape[-1]
    if values.size * n > _CELLS:
        out: FloatArray = stats.rankdata(values, axis=-1)
        return out
    # For short rows counting who lies below is several times faster than sorting.
    below = (values[..., :, None] > values[..., None, :]).sum(axis=-1)
    ties = (values[..., :, None] == values[..., None, :]).sum(axis=-1)
    counted: FloatArray = below + (ties + 1) / 2
    return counted


def _embed(values: FloatArray, method: Method) -> FloatArray:
    """Vectors whose cosine is the coefficient: centred ranks, pairs' signs, or centred values."""
    if method == "kendall":
        one, other = np.triu_indices(values.shape[-1], 1)
        signs: FloatArray = np.sign(values[..., one] - values[..., other])
        return signs
    held = ranks(values) if method == "spearman" else values
    centred = held - held.mean(axis=-1, keepdims=True)
    # A constant's deviations from its own rounded mean are no variation.
    out: FloatArray = np.where(np.ptp(held, axis=-1, keepdims=True) > 0, centred, 0.0)
    return out


def _cosine(a: FloatArray, b: FloatArray) -> FloatArray:
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = (a * b).sum(axis=-1) / np.sqrt((a * a).sum(axis=-1) * (b * b).sum(axis=-1))
    out: FloatArray = np.clip(cosine, -1.0, 1.0)
    return out


def correlate_rows(x: FloatArray, y: FloatArray, method: Method = "spearman") -> FloatArray:
    """Coefficient of each row pair; (…, n) and (…, n), broadcast → (…); NaN where a row is constant."""
    return _cosine(_embed(x, method), _embed(y, method))


class Draws:
    """Resamples and orders of n candidates, the same ones for every metric; made when first asked for.

    Args:
        seed: of the PCG64 generator, beside n. resamples, permutations: how many.
    """

    def __init__(self, seed: int, resamples: int = 1000, permutations: int = 4999) -> None:
        self.seed, self.resamples, self.permutations = seed, resamples, permutations
        self._drawn: dict[int, npt.NDArray[np.int64]] = {}
        self._orders: dict[int, npt.NDArray[np.int64]] = {}

    def drawn(self, n: int) -> npt.NDArray[np.int64]:
        """(B, n) indices drawn with replacement."""
        if n not in self._drawn:
            self._drawn[n] = np.random.default_rng([self.seed, n, 0]).integers(0, n, (self.resamples, n))
        return self._drawn[n]

    def orders(self, n: int) -> npt.NDArray[np.int64]:
        """(P, n) random orders."""
        if n not in self._orders:
            rng = np.random.default_rng([self.seed, n, 1])
            self._orders[n] = rng.permuted(np.broadcast_to(np.arange(n), (self.permutations, n)), axis=1)
        return self._orders[n]


def resampled(x: FloatArray, y: FloatArray, drawn: npt.NDArray[np.int64], method: Method = "spearman") -> FloatArray:
    """Coefficients of resampled candidates; (n,), (n,), (B, m) → (B,), NaN where a resample is constant.

    For Spearman nothing is sorted: the ranks of a resample follow from how often each candidate was drawn.
    """
    if method != "spearman":
        return correlate_rows(x[drawn], y[drawn], method)
    n = len(x)
    flat = (drawn + n * np.arange(len(drawn))[:, None]).ravel()
    counts = np.bincount(flat, minlength=n * len(drawn)).reshape(len(drawn), n).astype(np.float64)
    centred = []
    for values in (x, y):
        below = (values[:, None] < values[None, :]) + 0.5 * (values[:, None] == values[None, :])
        held = counts @ below + 0.5
        centred.append(held - (drawn.shape[1] + 1) / 2)
    a, b = centred
    products = [(counts * u * v).sum(axis=1) for u, v in ((a, b), (a, a), (b, b))]
    spread = np.sqrt(np.where(np.minimum(products[1], products[2]) > 1e-9, products[1] * products[2], math.nan))
    out: FloatArray = np.clip(products[0] / spread, -1.0, 1.0)
    return out


def correlation_interval(value: float, n: int, method: Method = "spearman", level: float = 0.95) -> tuple[float, float]:
    """Fisher's z interval by formula; (NaN, NaN) where there is none (ρ = ±1 has an end of ±1)."""
    free = n - 4 if method == "kendall" else n - 3
    if not math.isfinite(value) or free <= 0:
        return math.nan, math.nan
    variance = 0.437 if method == "kendall" else 1 + value * value / 2 if method == "spearman" else 1.0
    reach = float(special.ndtri((1 + level) / 2)) * math.sqrt(variance / free)
    if abs(value) >= 1:
        # atanh is infinite: the largest coefficient below 1 that n allows stands in for the far end
        inner = math.tanh(math.atanh(1 - 1 / (n * n)) - reach)
        return (inner, 1.0) if value > 0 else (-1.0, -inner)
    z = math.atanh(value)
    return math.tanh(z - reach), math.tanh(z + reach)


def _jackknife_interval(x: FloatArray, y: FloatArray, value: float, method: Method) -> tuple[float, float]:
    n = len(x)
    without = np.array([np.delete(np.arange(n), i) for i in range(n)])
    others = resampled(x, y, without, method)
    if not np.isfinite(others).all() or max(abs(value), float(np.abs(others).max())) >= 1:
        return correlation_interval(value, n, method)
    z = np.arctanh(others)
    error = math.sqrt((n - 1) / n * float(((z - z.mean()) ** 2).sum()))
    reach = float(special.ndtri(0.975)) * error
    return math.tanh(math.atanh(value) - reach), math.tanh(math.atanh(value) + reach)


def permutation_p(x: FloatArray, y: FloatArray, method: Method, draws: Draws) -> float:
    """Two-sided p-value of no association; NaN where the coefficient is."""
    a, b = _embed(x, method), _embed(y, method)
    seen = abs(float(_cosine(a, b)))
    if math.isnan(seen):
        return math.nan
    orders = draws.orders(len(x))
    if method == "kendall":
        beyond = sum(
            int((np.abs(_cosine(a, _embed(y[part], method))) >= seen - 1e-12).sum())
            for part in np.array_split(orders, max(1, orders.size * len(x) // _CELLS))
        )
    else:
        moved = b[orders]
        spread = np.sqrt(moved**2 @ a**2)
        own = abs(float(a @ b)) / math.sqrt(float(a**2 @ b**2)) if (a * b).any() else 0.0
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.where(spread > 0, np.abs(moved @ a) / spread, 0.0)
        beyond = int((t >= own - 1e-12).sum())
    return (1 + beyond) / (1 + len(orders))


def correlate(
    x: FloatArray, y: FloatArray, method: Method = "spearman", draws: Draws | None = None
) -> Correlation:
    """Coefficient of the complete pairs of (n,) and (n,).

    Args:
        draws: for the bootstrap and the permutations; without them neither is made.

    >>> correlate(np.arange(6.0), -np.arange(6.0)).value
    -1.0
    >>> correlate(np.arange(3.0), np.arange(3.0)).reason
    'only 3 candidates with both values; at least 5 are needed'
    """
    known = np.isfinite(x) & np.isfinite(y)
    x, y, n = x[known], y[known], int(known.sum())
    if n < MINIMUM:
        return Correlation(math.nan, n, reason=f"only {n} candidates with both values; at least {MINIMUM} are needed")
    for side, values in (("the metric", x), ("the score", y)):
        if np.ptp(values) <= 0:
            return Correlation(math.nan, n, reason=f"{side} is the same for all {n} candidates")
    value = float(correlate_rows(x, y, method))
    low, high = _jackknife_interval(x, y, value, method)
    if draws is None:
        return Correlation(value, n, low, high)
    replicates = resampled(x, y, draws.drawn(n), method)
    known_b = replicates[np.isfinite(replicates)]
    ends = np.quantile(known_b, [0.025, 0.975]) if len(known_b) > len(replicates) // 2 else (math.nan, math.nan)
    return Correlation(value, n, low, high, float(ends[0]), float(ends[1]), permutation_p(x, y, method, draws))
