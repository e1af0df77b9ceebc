"""``calibrate``: trajectories of a deployment, thresholds that keep a false-alarm promise, and a file of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantvane.engines.registry import check_model
from quantvane.errors import OutputError
from quantvane.monitor.averages import DEFAULT_STATISTICS
from quantvane.monitor.calibration import Calibration, Fingerprint
from quantvane.monitor.fit import Settings, alarmed, fit, needed, rate_of, too_few
from quantvane.monitor.trajectories import averages, extremes, stack, statistic
from quantvane.run.calibrate_work import RecordTrajectories, record_trajectories
from quantvane.run.local import OnEvent, run_worker
from quantvane.run.trajectories import Sampling
from quantvane.spec import ModelSpec, slug
from quantvane.store.trajectories import read_trajectories
from quantvane.types import FloatArray

__all__ = ["CalibrateResult", "calibrate", "first_passages"]


@dataclass(frozen=True, slots=True)
class CalibrateResult:
    """A finished calibration.

    Attributes:
        calibration: as written. path: its file. document: the JSON document of ``calibrate --json``.
    """

    calibration: Calibration
    path: Path
    document: dict[str, Any]


def calibrate(
    model: str,
    *,
    alarm_rate: float,
    out: str | Path,
    prompts: str = "",
    text: Sequence[str] | str = (),
    also: Sequence[str] = (),
    delta: float | None = None,
    trajectories: int = 1000,
    sampling: Sampling | None = None,
    prompt_tokens: int = 24,
    method: str = "joint",
    statistics: Sequence[str] = DEFAULT_STATISTICS,
    smoothing: float = 0.1,
    slots: int = 16,
    settings: dict[str, str] | None = None,
    on_event: OnEvent = lambda event: None,
) -> CalibrateResult:
    """Calibrate a monitor.

    Args:
        model: model spec, a server's URL, or recorded trajectories (``.parquet``, ``.jsonl``).
        alarm_rate: α, the promised rate of streams with an alarm while all is well.
        out: the calibration's file. Trajectories are recorded into a directory beside it, ``NAME-trajectories``, where
            an interrupted recording continues.
        prompts, text: a file of prompts, or texts that prompts are cut from at random.
        also: other models (or recordings); what the same thresholds do on them is reported.
        delta: see `quantvane.monitor.conformal_threshold`. trajectories: how many to record.
        sampling: how tokens are drawn and looked at. method, statistics, smoothing: see `quantvane.monitor.fit`.
        settings: engine settings the spec does not set itself.

    Raises:
        DataError: too few trajectories; says how many are needed. QuantvaneError: see `quantvane.errors`.
    """
    how = sampling or Sampling()
    rules = Settings(alarm_rate, delta, method, tuple(statistics), smoothing, how.seed)
    place = Path(out)
    if place.is_dir():
        raise OutputError(
            f"'{place}' is a directory", expected="a file such as cal.json", got="a directory", remedy="name a file"
        )
    texts = (text,) if isinstance(text, str) else tuple(text)

    def recorded(name: str) -> Path:
        if _is_recording(name):
            return Path(name)
        if trajectories < needed(rules):
            raise too_few(rules, trajectories, trajectories)
        spec = ModelSpec.parse(name).with_defaults(settings or {})
        wanted = RecordTrajectories(
            spec, slug(spec.name), how, prompts, texts, trajectories=trajectories, prompt_tokens=prompt_tokens,
            slots=slots,
        )  # fmt: skip
        return _record(wanted, place.with_name(place.stem + "-trajectories"), on_event)

    data, about = _load(recorded(model))
    fingerprint = Fingerprint(**about["fingerprint"])
    report: dict[str, Any] = {"spec": about.get("spec")}
    calibration = fit(data, fingerprint, rules, report)
    others = [_on_another(calibration, name, *_load(recorded(name), fingerprint.horizon)) for name in also]
    calibration = fit(data, fingerprint, rules, {**report, "also": others}) if others else calibration
    calibration.save(place)
    document = {"path": str(place), **calibration.to_dict()}
    document.pop("fleet")
    return CalibrateResult(calibration, place, document)


def _is_recording(name: str) -> bool:
    return name.lower().endswith((".parquet", ".jsonl"))


def _record(spec: RecordTrajectories, place: Path, on_event: OnEvent) -> Path:
    if spec.is_server:
        return record_trajectories(spec, place, on_event)
    check_model(spec.model)
    run_worker({"task": "trajectories", "spec": spec.to_dict(), "out": str(place)}, on_event)
    return place / f"{spec.name}.parquet"


def _load(path: Path, horizon: int | None = None) -> tuple[FloatArray, dict[str, Any]]:
    rows, about = read_trajectories(path)
    return stack(rows, horizon or int(about["fingerprint"]["horizon"])), about


def _on_another(
    calibration: Calibration, name: str, data: FloatArray, about: dict[str, Any]
) -> dict[str, Any]:
    """What the thresholds do on the trajectories of another model."""
    found = extremes(data, calibration.base, calibration.smoothing, calibration.statistics)
    passages = first_passages(data, calibration)
    hit = np.isfinite(passages)
    return {
        "model": name,
        "fingerprint": about["fingerprint"],
        "alarm_rate": rate_of(alarmed(found, calibration.thresholds)),
        "by_statistic": {
            key: float(np.mean(found[key] > limit)) for key, limit in calibration.thresholds.items()
        },
        "median_first_alarm": float(np.median(passages[hit])) if hit.any() else None,
    }


def first_passages(data: FloatArray, calibration: Calibration) -> FloatArray:
    """Token (from 0) at which each trajectory first alarms, (n,); infinite where it does not."""
    smooth = averages(data, calibration.base, calibration.smoothing)
    over = np.zeros(data.shape[:2], bool)
    for name, limit in calibration.thresholds.items():
        with np.errstate(invalid="ignore"):
            over |= statistic(name, smooth, calibration.base) > limit
    return np.where(over.any(axis=1), over.argmax(axis=1), np.inf)
