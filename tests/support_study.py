"""Cohorts with a known truth: C candidates, N items of T tasks, outcomes from a threshold model.

Item i has a margin m_i ~ Normal(1, 1); the reference is right where m_i > 0. Candidate c moves it to
m_i + drift_c + volume_c·e_ci, e standard normal: ``volume`` decides how many items flip, ``drift`` which way.
A metric of a candidate is any function of the two.
"""

from __future__ import annotations

import numpy as np

from quantvane.study.cohort import Cohort, Displacement


def cohort(rng, volume, drift, metrics, items=600, tasks=6, groups=2, kld=None) -> Cohort:
    """A simulated cohort; ``metrics``: name → (C,) values on corpus "text" at context 512."""
    volume, drift = np.asarray(volume, float), np.asarray(drift, float)
    count = len(volume)
    margin = rng.normal(1.0, 1.0, items)
    shift = drift[:, None] + volume[:, None] * rng.normal(size=(count, items))
    moved = margin + shift
    size = np.abs(shift) ** 2 + 1e-9 if kld is None else kld(margin, shift)
    return Cohort(
        reference="reference",
        names=tuple(f"c{i}" for i in range(count)),
        bits=np.linspace(8, 2, count),
        displacement=tuple(Displacement(name, "text", 512, np.asarray(v, float)) for name, v in metrics.items()),
        tasks=tuple(f"task{t}" for t in range(tasks)),
        groups=tuple(f"group{g}" for g in range(groups)),
        task=np.arange(items, dtype=np.int32) % tasks,
        group=np.arange(tasks, dtype=np.int32) % groups,
        choice=np.ones(items, bool),
        ref_correct=margin > 0,
        correct=moved > 0,
        kld=size.astype(np.float32),
        ref_evidence=margin.astype(np.float32),
        evidence=moved.astype(np.float32),
    )
