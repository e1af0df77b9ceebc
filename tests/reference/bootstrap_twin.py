"""Slow, obvious twins: resamples are really built, token by token."""

from __future__ import annotations

import math

import numpy as np


def resample(values, owner, counts):
    """The values of one resample, every cluster repeated as often as it was drawn."""
    out = []
    for cluster, times in enumerate(counts):
        members = [v for v, g in zip(values, owner, strict=True) if g == cluster]
        out.extend(members * int(times))
    return np.array(out)


def ratio(values, owner, members=None):
    """(mean, linearised cluster standard error) by loops; ``members``: cluster ids, repeats allowed."""
    ids = sorted(set(owner)) if members is None else members
    sums = [math.fsum(v for v, g in zip(values, owner, strict=True) if g == c) for c in ids]
    sizes = [sum(1 for g in owner if g == c) for c in ids]
    mean = math.fsum(sums) / sum(sizes)
    squares = math.fsum((s - mean * n) ** 2 for s, n in zip(sums, sizes, strict=True))
    return mean, math.sqrt(len(ids) / (len(ids) - 1) * squares) / sum(sizes)


def bootstrap_t(values, owner, draws, *, log):
    """t* of every resample (log scale or not)."""
    mean, _ = ratio(values, owner)
    out = []
    for block in draws.counts():
        for counts in block:
            drawn = [c for c, times in enumerate(counts) for _ in range(times)]
            again, error = ratio(values, owner, drawn)
            out.append(
                (math.log(again) - math.log(mean)) / (error / again) if log else (again - mean) / error
            )
    return np.array(out)
