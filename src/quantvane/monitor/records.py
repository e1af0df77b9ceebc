"""What passes through the monitor: one observed token, what it did to the state, and a stream's end."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

__all__ = ["Observation", "Step", "StreamSummary"]


@dataclass(frozen=True, slots=True)
class Observation:
    """The output distribution of one generated token, as far as it was seen.

    Plain tuples, not arrays: at k = 20 a scalar loop is faster than NumPy's call overhead, and the proxy needs
    nothing else.

    Attributes:
        logprobs: ln p of the k most probable tokens, in nats, in descending order; −inf allowed.
        keys: the tokens themselves (ids, or their bytes), aligned with ``logprobs``; consecutive distributions are
            compared token by token through them, never rank by rank.
        chosen: ln p of the token that was generated; NaN where it is not known.
        complete: True where ``logprobs`` covers the whole vocabulary.
    """

    logprobs: tuple[float, ...]
    keys: tuple[Hashable, ...]
    chosen: float
    complete: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """The monitor's state after one token.

    Attributes:
        index: the token's number in its stream, from 0.
        lambda_low, lambda_high: certified interval of λ_max of diag(p) − ppᵀ (equal where it is exact).
        sigma: exp of the causal EWMA of ln(λ/λ_base); NaN where the observation was missing.
        entropy: nats, a lower bound where only the top k were seen; consecutive_kl: nats, NaN at the first token.
        label: NOMINAL, CONFIDENT, WATCH, ALARM, DEGENERATE or INVALID.
        alarms: names of the statistics in alarm now, for example ("sigma_high",).
    """

    index: int
    lambda_low: float
    lambda_high: float
    sigma: float
    entropy: float
    consecutive_kl: float
    label: str
    alarms: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StreamSummary:
    """A finished stream.

    Attributes:
        tokens: number of tokens seen. first_alarm: index of the first passage, None where there was none.
        alarms: every statistic that alarmed, in order of first passage.
        label: the stream's closing label; INVALID where no usable observation came, never NOMINAL.
        extremes: statistic → its extreme over the horizon, as calibration counts it.
        means: "sigma" (of ln σ), "entropy", "kl", "nll" → mean over the horizon; NaN where nothing was seen. What drift
            across streams is measured on.
    """

    tokens: int
    first_alarm: int | None
    alarms: tuple[str, ...]
    label: str
    extremes: dict[str, float]
    means: dict[str, float] = field(default_factory=dict)
