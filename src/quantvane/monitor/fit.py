"""From recorded trajectories to a calibration.

The trajectories, in random order, are divided in three. From the first part comes what is normal (λ_base, the scales
of the statistics), from the second the thresholds, and on the third the false-alarm rate is measured. Keeping the
first apart is what makes the promise exact: the thresholds' trajectories and a fresh one are exchangeable given
everything else.

Several statistics share one rate α in one of two ways.

``bonferroni``
    each of m statistics gets its threshold at α/m. The promise holds, and more than holds: statistics that alarm on
    the same streams waste part of the rate.
``joint``
    one threshold for u = maxⱼ (eⱼ − medianⱼ)/(q₁₋α − median)ⱼ, eⱼ the extreme of statistic j in a trajectory, median
    and quantile from the first part. One number a trajectory: the rate is α, not merely at most α, and fewer
    trajectories are needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantvane.errors import DataError
from quantvane.monitor.averages import DEFAULT_STATISTICS, STATISTICS
from quantvane.monitor.calibration import Calibration, Fingerprint
from quantvane.monitor.conformal import conformal_threshold, trajectories_needed
from quantvane.monitor.trajectories import base_of, extremes, scores
from quantvane.types import FloatArray

__all__ = [
    "METHODS", "Settings", "alarmed", "binomial_band", "fit", "needed", "rate_of", "split", "thresholds_of", "too_few",
]  # fmt: skip

METHODS = ("joint", "bonferroni")
_FIRST, _LAST = 0.25, 0.25  # shares of the first and of the held-out part
_FEWEST = 20  # trajectories of the first part


@dataclass(frozen=True, slots=True)
class Settings:
    """What is promised, and on what.

    Attributes:
        alpha: false-alarm rate of a stream. delta: see `conformal_threshold`. method: one of `METHODS`.
        statistics: names of `quantvane.monitor.averages.STATISTICS`. smoothing: weight of the newest token.
        seed: of the division into parts.

    Raises:
        DataError: a value out of range.
    """

    alpha: float
    delta: float | None = None
    method: str = "joint"
    statistics: tuple[str, ...] = DEFAULT_STATISTICS
    smoothing: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        trajectories_needed(self.alpha, self.delta)
        unknown = [name for name in self.statistics if name not in STATISTICS]
        if self.method not in METHODS or unknown or not self.statistics or not 0.0 < self.smoothing <= 1.0:
            raise DataError(
                "calibration settings out of range",
                expected=f"method of {METHODS}, statistics of {tuple(STATISTICS)}, 0 < smoothing ≤ 1",
                got=f"method {self.method!r}, statistics {self.statistics}, smoothing {self.smoothing!r}",
                remedy="correct the settings",
            )

    @property
    def per_threshold(self) -> float:
        """The rate each threshold is taken at."""
        return self.alpha / len(self.statistics) if self.method == "bonferroni" else self.alpha


def split(n: int) -> tuple[int, int, int]:
    """Sizes of the three parts."""
    first, last = max(_FEWEST, round(_FIRST * n)), round(_LAST * n)
    return first, max(n - first - last, 0), last


def needed(settings: Settings) -> int:
    """Smallest number of trajectories that a calibration can be made from."""
    least = trajectories_needed(settings.per_threshold, settings.delta)
    n = least
    while split(n)[1] < least:
        n += 1
    return n


def too_few(settings: Settings, usable: int, recorded: int) -> DataError:
    """The refusal of a promise that the trajectories cannot keep."""
    least = needed(settings)
    promise = f"α = {settings.alpha:g}" + (f", δ = {settings.delta:g}" if settings.delta else "")
    return DataError(
        "too few trajectories for the false-alarm rate asked for",
        expected=f"at least {least} for {promise} over {len(settings.statistics)} statistics ({settings.method})",
        got=f"{usable} trajectories in which something was observed, of {recorded}",
        remedy=f"record {least - usable} more (--trajectories {least + recorded - usable}), or ask for a larger rate",
    )


def fit(data: FloatArray, fingerprint: Fingerprint, settings: Settings, report: Mapping[str, Any] = {}) -> Calibration:
    """Calibrate on trajectories.

    Args:
        data: (n, horizon, 5), see `quantvane.monitor.trajectories`. report: goes into the calibration's own, which
            adds how many trajectories each part has and the held-out false-alarm rate with its binomial interval.

    Raises:
        DataError: too few trajectories; says how many are needed.
    """
    usable = data[np.isfinite(data[..., 0]).any(axis=1)]
    least = needed(settings)
    if len(usable) < least:
        raise too_few(settings, len(usable), len(data))
    order = np.random.default_rng(settings.seed).permutation(len(usable))
    first, second, _ = split(len(usable))
    parts = usable[order[:first]], usable[order[first : first + second]], usable[order[first + second :]]
    base = base_of(parts[0], settings.smoothing)
    tuning, own, held = (extremes(part, base, settings.smoothing, settings.statistics) for part in parts)
    thresholds = thresholds_of(tuning, own, settings)
    loose = Settings(min(5 * settings.alpha, 0.5), None, settings.method, settings.statistics)
    lower = thresholds_of(tuning, own, loose)
    lower = {name: min(value, thresholds[name]) for name, value in lower.items()}
    fleet = {name: tuple(np.sort(x[np.isfinite(x)]).tolist()) for name, x in scores(parts[1], base).items()}
    alarms = alarmed(held, thresholds)
    return Calibration(
        fingerprint=fingerprint,
        base=base,
        smoothing=settings.smoothing,
        alpha=settings.alpha,
        delta=settings.delta,
        method=settings.method,
        horizon=data.shape[1],
        n=second,
        statistics=settings.statistics,
        thresholds=thresholds,
        lower=lower,
        fleet=fleet,
        report={
            **report,
            "trajectories": {
                "recorded": len(data), "unobserved": len(data) - len(usable), "normal": first, "thresholds": second,
                "held_out": len(alarms),
            },
            "held_out": rate_of(alarms),
        },
    )  # fmt: skip


def thresholds_of(
    tuning: Mapping[str, FloatArray], own: Mapping[str, FloatArray], settings: Settings
) -> dict[str, float]:
    """Statistic → threshold, from the extremes (n,) of the first and of the second part."""
    if settings.method == "bonferroni":
        rate = settings.per_threshold
        return {name: conformal_threshold(own[name].tolist(), rate, settings.delta) for name in settings.statistics}
    scale = {name: _scale(tuning[name], settings.alpha) for name in settings.statistics}
    u = np.max([(own[name] - at) / width for name, (at, width) in scale.items()], axis=0)
    tau = conformal_threshold(u.tolist(), settings.alpha, settings.delta)
    return {name: at + width * tau for name, (at, width) in scale.items()}


def _scale(values: FloatArray, alpha: float) -> tuple[float, float]:
    middle, high = np.quantile(values[np.isfinite(values)], [0.5, 1.0 - min(alpha, 0.4)])
    return float(middle), float(max(high - middle, 1e-9))


def alarmed(found: Mapping[str, FloatArray], thresholds: Mapping[str, float]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Whether each trajectory (n,) alarms within its horizon."""
    over: np.ndarray[Any, np.dtype[np.bool_]] = np.any([found[k] > limit for k, limit in thresholds.items()], axis=0)
    return over


def rate_of(alarms: Sequence[bool] | np.ndarray[Any, Any]) -> dict[str, Any]:
    """Rate of alarms with its exact (Clopper–Pearson) 95% interval; null with a reason where there is none."""
    n, count = len(alarms), int(np.sum(alarms))
    if n == 0:
        return {"value": None, "ci": None, "alarms": 0, "n": 0, "reason": "no trajectory was held out"}
    from scipy.stats import beta

    low = float(beta.ppf(0.025, count, n - count + 1)) if count else 0.0
    high = float(beta.ppf(0.975, count + 1, n - count)) if count < n else 1.0
    return {"value": count / n, "ci": [low, high], "alarms": count, "n": n}


def binomial_band(n: int, rate: float) -> tuple[float, float]:
    """Central 95% of the rates that n streams with this false-alarm rate would show."""
    from scipy.stats import binom

    low, high = binom.ppf([0.025, 0.975], n, rate) / n
    return float(low), float(high)


