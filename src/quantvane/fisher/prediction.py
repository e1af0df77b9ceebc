"""Predicting σ = λ_max(θ+δ)/λ_max(θ) before the quantized model is run. Pure.

Known beforehand: the model, and the size of a type's rounding noise per tensor (`quantvane.fisher.rounding`). With
δ = s∘z, z random with mean 0, variance 1 and independent entries, symmetric about 0,

    σ ≈ 1 + (λ'[δ] + ½λ''[δ,δ])/λ,     E σ ≈ 1 + ½ tr(S ∇²λ S)/λ,     S = diag(s)
    Var σ ≈ ‖S∇λ‖²/λ² + Var(½λ''[δ,δ])/λ²

The trace is Hutchinson's: the mean of λ''[s∘z, s∘z] over K probes z, each a Jacobian-vector product of a
Jacobian-vector product; the same probes give the variance of the first-order term. Nothing here assumes that σ rises:
the sign of the trace decides.

Source: Hutchinson, A stochastic estimator of the trace of the influence matrix, 1990.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from quantvane.errors import DataError
from quantvane.types import FloatArray, Interval

__all__ = [
    "Agreement",
    "Prediction",
    "agreement",
    "holds",
    "holds_down_to",
    "predict_by_draws",
    "predict_by_terms",
    "spearman",
]


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predicted σ of each window.

    Attributes:
        center: (W,) expected σ. low, high: (W,) ends of the prediction interval at ``level``.
        probes: number of draws K behind them.
    """

    center: FloatArray
    low: FloatArray
    high: FloatArray
    probes: int
    level: float = 0.95


def _reach(variance: FloatArray, probes: int, level: float) -> FloatArray:
    """Half-width t_{K−1}·√(variance·(1 + 1/K)) of a prediction interval."""
    out: FloatArray = special.stdtrit(probes - 1, (1 + level) / 2) * np.sqrt(variance * (1 + 1 / probes))
    return out


def predict_by_terms(
    value: npt.ArrayLike, slope: npt.ArrayLike, curvature: npt.ArrayLike, level: float = 0.95
) -> Prediction:
    """Prediction from the terms along K draws of the noise.

    Args:
        value: (W,) λ of each window, > 0. slope, curvature: (K, W) λ'[δ_k], λ''[δ_k, δ_k], K ≥ 3.

    The first-order term's mean over ±δ is 0 and is set to that; its variance is the mean of its squares.

    Raises:
        DataError: shapes that do not fit, K < 3.
    """
    base, first, second = (np.asarray(a, np.float64) for a in (value, slope, curvature))
    if first.shape != second.shape or first.ndim != 2 or first.shape[1:] != base.shape or len(first) < 3:
        raise DataError(
            "terms do not fit together",
            expected="value (W,), slope and curvature (K, W) with K ≥ 3",
            got=f"{base.shape}, {first.shape}, {second.shape}",
            remedy="one row a draw of the noise, one column a window",
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        first, half = first / base, 0.5 * second / base
    center = np.maximum(1.0 + half.mean(axis=0), 0.0)
    reach = _reach((first**2).mean(axis=0) + half.var(axis=0, ddof=1), len(first), level)
    # σ never crosses 0
    return Prediction(center, np.maximum(center - reach, 0.0), center + reach, len(first), level)


def predict_by_draws(value: npt.ArrayLike, moved: npt.ArrayLike, level: float = 0.95) -> Prediction:
    """Prediction from λ at θ + δ_k itself, K draws of the noise: no expansion, one forward pass a draw.

    Made on ln σ, where a product of many changes is nearest to normal. Where `predict_by_terms` fails and this does
    not, the expansion is at fault; where both fail, the noise is (rounding errors that depend on the weights).

    Args:
        value: (W,). moved: (K, W), K ≥ 3.
    """
    base, after = np.asarray(value, np.float64), np.asarray(moved, np.float64)
    if after.ndim != 2 or after.shape[1:] != base.shape or len(after) < 3:
        raise DataError(
            "draws do not fit together",
            expected="value (W,), moved (K, W) with K ≥ 3",
            got=f"{base.shape}, {after.shape}",
            remedy="one row a draw of the noise, one column a window",
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(after / base)
    middle, reach = logs.mean(axis=0), _reach(logs.var(axis=0, ddof=1), len(after), level)
    return Prediction(np.exp(middle), np.exp(middle - reach), np.exp(middle + reach), len(after), level)


@dataclass(frozen=True, slots=True)
class Agreement:
    """A prediction against what was measured.

    Attributes:
        windows: number of windows with finite, positive numbers. left_out: the others; a prediction of σ ≤ 0 is one.
        predicted, measured: mean σ.
        bias: predicted − measured mean of σ. bias_log: the same of ln σ.
        rank: Spearman's correlation over the windows. coverage: share of windows inside the interval; the windows
            share one δ, so its interval is what independent windows would give: too narrow, if anything.
        skill: 1 − Σ|ln σ̂ − ln σ| / Σ|ln σ|: 0 is no better than predicting σ = 1, 1 is exact.
    """

    windows: int
    left_out: int
    predicted: float
    measured: float
    bias: float
    bias_log: float
    rank: Interval
    coverage: Interval
    skill: float


def agreement(prediction: Prediction, measured: npt.ArrayLike) -> Agreement:
    """Bias, rank correlation and coverage of a prediction; see `Agreement`.

    Args:
        measured: (W,) σ of the quantized model.
    """
    sigma = np.asarray(measured, np.float64)
    if sigma.shape != prediction.center.shape:
        raise DataError(
            "measured σ does not fit the prediction",
            expected=f"shape {prediction.center.shape}",
            got=str(sigma.shape),
            remedy="one value a window",
        )
    good = np.isfinite(prediction.center) & np.isfinite(sigma) & (sigma > 0) & (prediction.center > 0)
    center, found = prediction.center[good], sigma[good]
    n = len(found)
    if n == 0:
        none = Interval(math.nan, reason="no window with a prediction and a measurement")
        return Agreement(0, len(sigma), math.nan, math.nan, math.nan, math.nan, none, none, math.nan)
    inside = int(((found >= prediction.low[good]) & (found <= prediction.high[good])).sum())
    # Clopper–Pearson; the quantiles of Beta(k, n−k+1) and Beta(k+1, n−k)
    low = float(special.betaincinv(inside, n - inside + 1, 0.025)) if inside else 0.0
    high = float(special.betaincinv(inside + 1, n - inside, 0.975)) if inside < n else 1.0
    miss, plain = np.abs(np.log(center / found)).sum(), np.abs(np.log(found)).sum()
    return Agreement(
        windows=n,
        left_out=len(sigma) - n,
        predicted=float(center.mean()),
        measured=float(found.mean()),
        bias=float(center.mean() - found.mean()),
        bias_log=float(np.log(center).mean() - np.log(found).mean()),
        rank=spearman(center, found),
        coverage=Interval(inside / n, low, high),
        skill=float(1.0 - miss / plain) if plain > 0 else math.nan,
    )


def spearman(x: npt.ArrayLike, y: npt.ArrayLike, level: float = 0.95) -> Interval:
    """Spearman's ρ with the interval tanh(artanh ρ ± z·√((1 + ρ²/2)/(n − 3))).

    NaN with a reason for fewer than 5 pairs or a constant side; no interval where |ρ| = 1.

    Source: Bonett & Wright, Psychometrika 65 (2000).
    """
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    n = len(a)
    if n < 5 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return Interval(math.nan, reason="fewer than 5 pairs, or a constant side", level=level)
    from scipy import stats  # takes a second to load, and a curve without predictions does not need it

    rho = float(stats.spearmanr(a, b).statistic)
    if abs(rho) > 1.0 - 1e-12:
        return Interval(rho, reason="ranks agree (or oppose) exactly: no interval", level=level)
    reach = float(special.ndtri((1 + level) / 2)) * math.sqrt((1 + rho**2 / 2) / (n - 3))
    low, high = math.tanh(math.atanh(rho) - reach), math.tanh(math.atanh(rho) + reach)
    return Interval(rho, low, high, level=level)


COVERAGE_FLOOR = 0.8
BIAS_CEILING = 0.05


def holds(found: Agreement) -> bool:
    """Whether a prediction is good: no window left out, coverage ≥ 0.8 of its 95% interval, |bias| of ln σ ≤ 0.05."""
    if found.left_out:
        return False
    return found.coverage.value >= COVERAGE_FLOOR and abs(found.bias_log) <= BIAS_CEILING


def holds_down_to(by_bits: Mapping[int, Agreement] | Sequence[tuple[int, Agreement]]) -> int | None:
    """The smallest width b such that the prediction `holds` at b bits and at every larger width given; else None."""
    found: int | None = None
    for bits, one in sorted(dict(by_bits).items(), reverse=True):
        if not holds(one):
            break
        found = bits
    return found
