"""Causal averages of a stream's numbers, and the statistics read off them."""

from __future__ import annotations

import math
from collections.abc import Callable

from quantvane.monitor.calibration import Base
from quantvane.monitor.statistic import Measured

__all__ = ["DEFAULT_STATISTICS", "LAMBDA_FLOOR", "STATISTICS", "Averages", "ln_lambda"]

LAMBDA_FLOOR = 1e-6
"""ln λ is taken of at least this: rounded log-probabilities do not resolve less, and one certain token must not
drown the average."""


def ln_lambda(measured: Measured) -> float:
    """ln λ: the middle of the interval's logarithms, each end at least `LAMBDA_FLOOR`."""
    low = measured.lambda_low if measured.lambda_low > LAMBDA_FLOOR else LAMBDA_FLOOR
    high = measured.lambda_high if measured.lambda_high > LAMBDA_FLOOR else LAMBDA_FLOOR
    return math.log(low) if low == high else 0.5 * (math.log(low) + math.log(high))


class Averages:
    """Exponentially weighted averages, m ← m + a (x − m), that start at what was normal.

    Only the past enters, and the first token already counts (with weight a). A number that is missing (the divergence
    at the first token, the chosen token's probability where it is not known) leaves its average as it was.

    Attributes:
        sigma: of ln(λ/λ_base). entropy, kl, nll: nats.
    """

    __slots__ = ("_a", "_base", "_ln_base", "entropy", "kl", "nll", "sigma")

    def __init__(self, base: Base, smoothing: float) -> None:
        self._base, self._a = base, smoothing
        self._ln_base = math.log(base.lambda_max)
        self.sigma, self.entropy, self.kl, self.nll = 0.0, base.entropy, base.kl, base.nll

    def update(self, measured: Measured) -> None:
        """Take in one token."""
        a = self._a
        self.sigma += a * (ln_lambda(measured) - self._ln_base - self.sigma)
        self.entropy += a * (measured.entropy - self.entropy)
        if measured.kl == measured.kl:
            self.kl += a * (measured.kl - self.kl)
        if measured.nll == measured.nll:
            self.nll += a * (measured.nll - self.nll)

    @property
    def flat(self) -> float:
        """How far σ lies below and entropy above normal at once, in standard deviations."""
        base = self._base
        return min(-self.sigma / base.sigma_spread, (self.entropy - base.entropy) / base.entropy_spread)


STATISTICS: dict[str, Callable[[Averages], float]] = {
    "sigma_high": lambda m: m.sigma,
    "sigma_low": lambda m: -m.sigma,
    "entropy_high": lambda m: m.entropy,
    "entropy_low": lambda m: -m.entropy,
    "kl_high": lambda m: m.kl,
    "kl_low": lambda m: -m.kl,
    "flat": lambda m: m.flat,
    "nll_high": lambda m: m.nll,
}
"""Statistic → its value; each alarms where it is large."""

DEFAULT_STATISTICS = ("sigma_high", "sigma_low", "entropy_high", "kl_high", "flat")
