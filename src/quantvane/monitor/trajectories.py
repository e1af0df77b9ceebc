"""Many trajectories at once: the averages and extremes of `StreamMonitor`, over arrays. For calibrating only.

A set of trajectories is one array (n, T, 5) float64: n streams, T tokens, columns `COLUMNS`. A token that was not
observed, or past a stream's end, is NaN throughout; the divergence at a first token and an unknown chosen token are
NaN alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from quantvane.errors import DataError
from quantvane.monitor.averages import LAMBDA_FLOOR
from quantvane.monitor.calibration import Base
from quantvane.monitor.records import Observation
from quantvane.monitor.statistic import Measured, look, measure
from quantvane.types import FloatArray

__all__ = ["COLUMNS", "averages", "base_of", "extremes", "ln_sigma", "measured_rows", "scores", "stack", "statistic"]

COLUMNS = ("lambda_low", "lambda_high", "entropy", "kl", "nll")
_CALM, _STILL = 0.10, 0.01


def measured_rows(observations: Iterable[Observation | None]) -> FloatArray:
    """One stream's observations → (T, 5)."""
    rows: list[tuple[float, ...]] = []
    before = None
    for observation in observations:
        now = None if observation is None else look(observation)
        if now is None or observation is None:
            rows.append((np.nan,) * len(COLUMNS))
        else:
            m = measure(now, before, observation.chosen)
            rows.append((m.lambda_low, m.lambda_high, m.entropy, m.kl, m.nll))
        before = now
    return np.array(rows, np.float64).reshape(-1, len(COLUMNS))


def as_measured(row: Sequence[float]) -> Measured | None:
    """A row of `COLUMNS` → what `StreamMonitor.advance` takes."""
    values = [float(x) for x in row]
    return None if np.isnan(values[0]) else Measured(*values)


def stack(trajectories: Sequence[FloatArray], horizon: int) -> FloatArray:
    """Trajectories (T_i, 5) of any lengths → (n, horizon, 5), cut or filled with NaN.

    Raises:
        DataError: a trajectory of another shape.
    """
    out = np.full((len(trajectories), horizon, len(COLUMNS)), np.nan)
    for i, rows in enumerate(trajectories):
        if rows.ndim != 2 or rows.shape[1] != len(COLUMNS):
            raise DataError(
                f"trajectory {i} has the wrong shape",
                expected=f"(tokens, {len(COLUMNS)}): {', '.join(COLUMNS)}",
                got=str(rows.shape),
                remedy="record trajectories with quantvane calibrate",
            )
        out[i, : len(rows)] = rows[:horizon]
    return out


def ln_sigma(data: FloatArray, lambda_base: float) -> FloatArray:
    """ln(λ/λ_base) (n, T), λ the middle of the interval's logarithms, its ends at least `LAMBDA_FLOOR`."""
    ends = np.log(np.maximum(data[..., :2], LAMBDA_FLOOR))
    return np.asarray(ends.mean(axis=-1) - np.log(lambda_base))


def base_of(data: FloatArray, smoothing: float) -> Base:
    """What was normal in these trajectories.

    Raises:
        DataError: nothing was observed in them.
    """
    if not np.isfinite(data[..., 0]).any():
        raise DataError(
            "nothing was observed in the trajectories",
            expected="log-probabilities at some token",
            got=f"{len(data)} trajectories without any",
            remedy="check that the engine or server returns log-probabilities",
        )
    with np.errstate(all="ignore"):
        lam = float(np.exp(np.nanmean(ln_sigma(data, 1.0))))
        means = [_mean(data[..., column]) for column in (2, 3, 4)]
    base = Base(lam, *means)
    smooth = averages(data, base, smoothing)
    seen = {name: values[np.isfinite(values)] for name, values in smooth.items()}
    return replace(
        base,
        sigma_spread=max(float(seen["sigma"].std()), 1e-9),
        entropy_spread=max(float(seen["entropy"].std()), 1e-9),
        sigma_calm=float(np.quantile(seen["sigma"], _CALM)),
        entropy_calm=float(np.quantile(seen["entropy"], _CALM)),
        entropy_still=float(np.quantile(seen["entropy"], _STILL)),
        kl_still=float(np.quantile(seen["kl"], _STILL)),
    )


def _mean(values: FloatArray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else 0.0


def averages(data: FloatArray, base: Base, smoothing: float) -> dict[str, FloatArray]:
    """The averages of `quantvane.monitor.averages.Averages`: each (n, T), NaN at tokens that were not observed."""
    columns = {
        "sigma": (ln_sigma(data, base.lambda_max), 0.0),
        "entropy": (data[..., 2], base.entropy),
        "kl": (data[..., 3], base.kl),
        "nll": (data[..., 4], base.nll),
    }
    observed = np.isfinite(data[..., 0])
    out: dict[str, FloatArray] = {}
    for name, (values, start) in columns.items():
        state = np.full(len(data), start)
        smooth = np.full(values.shape, np.nan)
        for t in range(values.shape[1]):
            now = values[:, t]
            state = np.where(np.isfinite(now), state + smoothing * (now - state), state)
            smooth[:, t] = np.where(observed[:, t], state, np.nan)
        out[name] = smooth
    return out


def statistic(name: str, smooth: dict[str, FloatArray], base: Base) -> FloatArray:
    """A statistic of `quantvane.monitor.averages.STATISTICS` at every token: (n, T).

    Raises:
        DataError: an unknown name.
    """
    if name == "flat":
        spread = (smooth["entropy"] - base.entropy) / base.entropy_spread
        return np.minimum(-smooth["sigma"] / base.sigma_spread, spread)
    axis, _, side = name.partition("_")
    if axis not in smooth or side not in ("high", "low"):
        raise DataError(
            f"no statistic is called '{name}'",
            expected="sigma, entropy, kl or nll with _high or _low, or flat",
            got=name,
            remedy="correct the name",
        )
    return smooth[axis] if side == "high" else -smooth[axis]


def extremes(data: FloatArray, base: Base, smoothing: float, names: Sequence[str]) -> dict[str, FloatArray]:
    """Statistic → the largest value of each trajectory (n,); NaN where nothing was observed."""
    smooth = averages(data, base, smoothing)
    out: dict[str, FloatArray] = {}
    for name in names:
        values = np.where(np.isnan(smooth["sigma"]), -np.inf, statistic(name, smooth, base))
        top = values.max(axis=1)
        out[name] = np.where(np.isneginf(top), np.nan, top)
    return out


def scores(data: FloatArray, base: Base) -> dict[str, FloatArray]:
    """The scores of drift across streams: means over each trajectory of ln σ, entropy, KL and NLL, (n,)."""
    columns = {"sigma": ln_sigma(data, base.lambda_max)}
    columns |= {name: data[..., column] for name, column in (("entropy", 2), ("kl", 3), ("nll", 4))}
    out = {}
    for name, values in columns.items():
        seen = np.isfinite(values)
        count = seen.sum(axis=1)
        total = np.where(seen, values, 0.0).sum(axis=1)
        out[name] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return out
