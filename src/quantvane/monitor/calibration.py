"""A calibration: what was normal, where the alarms lie, what is promised, and for which deployment."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from quantvane.errors import DataError, ProtocolMismatchError
from quantvane.store.atomic import read_json, write_json

__all__ = ["SCHEMA", "Base", "Calibration", "Fingerprint", "load_calibration"]

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The deployment a calibration belongs to; every field must be equal for it to be used.

    Attributes:
        model: SHA-256 of the weights, or what the server calls the model. quantization: tensor type or file label.
        engine, engine_version: who computes. hardware: where.
        stage: "raw" where log-probabilities are those of the model at temperature 1, before any sampler; "sampled"
            where they are of the distribution that tokens are drawn from.
        temperature: that tokens are drawn at. top_k: entries seen a token; 0 for the whole vocabulary.
        horizon: tokens of a stream the promise covers.
    """

    model: str
    quantization: str
    engine: str
    engine_version: str
    hardware: str
    stage: str
    temperature: float
    top_k: int
    horizon: int

    def differences(self, other: Fingerprint) -> dict[str, tuple[Any, Any]]:
        """Field → (own, other's) of every field that differs."""
        return {
            f.name: (getattr(self, f.name), getattr(other, f.name))
            for f in fields(self)
            if getattr(self, f.name) != getattr(other, f.name)
        }


@dataclass(frozen=True, slots=True)
class Base:
    """What was normal, from trajectories that no threshold is taken from.

    Attributes:
        lambda_max: λ_base, exp of the mean of ln λ. entropy, kl, nll: means, nats. Averages of a stream start there.
        sigma_spread, entropy_spread: standard deviations of the averages of ln σ and of entropy, which put both on
            one scale where they are looked at together.
        sigma_calm, entropy_calm: 10% quantiles of the averages: CONFIDENT lies below both.
        entropy_still, kl_still: 1% quantiles of the averages: DEGENERATE lies below both.
    """

    lambda_max: float
    entropy: float
    kl: float
    nll: float
    sigma_spread: float = 1.0
    entropy_spread: float = 1.0
    sigma_calm: float = -math.inf
    entropy_calm: float = -math.inf
    entropy_still: float = -math.inf
    kl_still: float = -math.inf


@dataclass(frozen=True, slots=True)
class Calibration:
    """Everything a monitor needs, for one deployment.

    Attributes:
        fingerprint: the deployment. base: what was normal. smoothing: weight of the newest token in the averages.
        alpha: promised false-alarm rate of a stream, all statistics together. delta: None for the promise on average
            over calibrations; else the promise holds for this calibration with probability 1 − delta.
        method: "joint" or "bonferroni", see `quantvane.monitor.thresholds`.
        horizon: tokens of a stream that the promise covers. n: trajectories the thresholds are taken from.
        statistics: those in use. thresholds: statistic → alarm above it. lower: statistic → an alarm ends after three
            steps at or below it, and WATCH lies above it.
        fleet: stream score → its sorted values, one a trajectory: what drift across streams is compared with.
        report: how it was made and what was measured: counts, held-out rate, other models. Never used by a monitor.
    """

    fingerprint: Fingerprint
    base: Base
    smoothing: float
    alpha: float
    delta: float | None
    method: str
    horizon: int
    n: int
    statistics: tuple[str, ...]
    thresholds: Mapping[str, float]
    lower: Mapping[str, float]
    fleet: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers = [self.alpha, self.smoothing, self.base.lambda_max, self.base.entropy, self.base.kl]
        numbers += [*self.thresholds.values(), *self.lower.values()]
        if not all(math.isfinite(x) for x in numbers):
            raise DataError(
                "a calibration needs finite thresholds and baselines",
                expected="finite numbers",
                got=f"thresholds {dict(self.thresholds)}, base {self.base}",
                remedy="calibrate on more trajectories",
            )
        if set(self.thresholds) != set(self.statistics) or set(self.lower) != set(self.statistics):
            raise DataError(
                "every statistic needs a threshold and a lower one",
                expected=", ".join(self.statistics),
                got=f"thresholds of {sorted(self.thresholds)}, lower ones of {sorted(self.lower)}",
                remedy="make the calibration again",
            )
        if self.horizon < 1 or not 0.0 < self.smoothing <= 1.0 or self.base.lambda_max <= 0.0:
            raise DataError(
                "a calibration is out of range",
                expected="horizon ≥ 1, 0 < smoothing ≤ 1, λ_base > 0",
                got=f"horizon {self.horizon}, smoothing {self.smoothing}, λ_base {self.base.lambda_max}",
                remedy="make the calibration again",
            )

    def check(self, fingerprint: Fingerprint) -> None:
        """Refuse another deployment.

        Raises:
            ProtocolMismatchError: naming every field that differs.
        """
        other = self.fingerprint.differences(fingerprint)
        if other:
            raise ProtocolMismatchError(
                "the calibration belongs to another deployment: " + ", ".join(other) + " differ",
                expected="; ".join(f"{name} = {ours!r}" for name, (ours, _) in other.items()),
                got="; ".join(f"{name} = {theirs!r}" for name, (_, theirs) in other.items()),
                remedy="calibrate on the deployment that is watched: quantvane calibrate",
            )

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        data = asdict(self)
        data["base"] = {key: x if math.isfinite(x) else None for key, x in data["base"].items()}
        return {"schema": SCHEMA, "kind": "quantvane calibration", **data}

    @classmethod
    def from_dict(cls, data: Any) -> Calibration:
        """Read the JSON form.

        Raises:
            DataError: another schema, or fields missing or of the wrong kind.
        """
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise DataError(
                "this is no calibration that this version reads",
                expected=f'a JSON object with "schema": {SCHEMA}',
                got=f"schema {data.get('schema')!r}" if isinstance(data, dict) else type(data).__name__,
                remedy="make it with quantvane calibrate",
            )
        try:
            base = {key: -math.inf if x is None else float(x) for key, x in data["base"].items()}
            return cls(
                fingerprint=Fingerprint(**data["fingerprint"]),
                base=Base(**base),
                smoothing=float(data["smoothing"]),
                alpha=float(data["alpha"]),
                delta=None if data["delta"] is None else float(data["delta"]),
                method=str(data["method"]),
                horizon=int(data["horizon"]),
                n=int(data["n"]),
                statistics=tuple(data["statistics"]),
                thresholds={key: float(x) for key, x in data["thresholds"].items()},
                lower={key: float(x) for key, x in data["lower"].items()},
                fleet={key: tuple(map(float, values)) for key, values in data.get("fleet", {}).items()},
                report=dict(data.get("report", {})),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as problem:
            raise DataError(
                "a calibration is damaged",
                expected="every field, of its kind",
                got=f"{type(problem).__name__}: {problem}",
                remedy="make it again with quantvane calibrate",
            ) from None

    def save(self, path: str | Path) -> None:
        """Write it as JSON, atomically."""
        write_json(Path(path), self.to_dict())


def load_calibration(path: str | Path) -> Calibration:
    """Read a calibration.

    Raises:
        OutputError: missing or no JSON. DataError: damaged, or of another schema.
    """
    return Calibration.from_dict(read_json(Path(path)))
