"""Distributions, observations and calibrations for the monitor's tests."""

from __future__ import annotations

import numpy as np

from quantvane.monitor import Base, Calibration, Fingerprint, Observation

NAMES = ("sigma_high", "sigma_low", "entropy_high", "kl_high", "flat")
MARK = Fingerprint("m" * 64, "Q8_0", "llamacpp", "1", "cpu", "raw", 1.0, 20, 12)


def distribution(rng, v=300, sharp=None):
    x = rng.normal(size=v) * (rng.uniform(0.5, 6.0) if sharp is None else sharp)
    return x - np.logaddexp.reduce(x)


def observe(logp, k=20, chosen=0):
    """What an API with k entries shows; None for all of it."""
    complete = k is None
    order = np.argsort(-logp, kind="stable")[: len(logp) if complete else k]
    return Observation(tuple(logp[order].tolist()), tuple(order.tolist()), float(logp[chosen]), complete)


def calibration(**changes):
    fields = {
        "fingerprint": MARK,
        "base": Base(0.2, 1.5, 2.0, 2.0, 0.4, 0.5, -0.6, 0.9, 0.4, 0.3),
        "smoothing": 0.3, "alpha": 0.05, "delta": None, "method": "joint", "horizon": 12, "n": 200, "statistics": NAMES,
        "thresholds": {"sigma_high": 0.5, "sigma_low": 1.2, "entropy_high": 2.6, "kl_high": 3.5, "flat": 1.2},
        "lower": {"sigma_high": 0.3, "sigma_low": 0.9, "entropy_high": 2.2, "kl_high": 3.0, "flat": 0.8},
        "fleet": {"sigma": (0.0, 0.1, 0.2), "entropy": (1.0, 1.1)},
    }  # fmt: skip
    return Calibration(**{**fields, **changes})
