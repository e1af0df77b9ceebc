"""Slow, obvious twins of the study's per-item estimators."""

from __future__ import annotations

import itertools
import math

import numpy as np


def auroc(values, positive, negative):
    """Pairs within each candidate, one by one."""
    wins = pairs = 0.0
    for row, pos, neg in zip(values, positive, negative, strict=True):
        for i, j in itertools.product(np.flatnonzero(pos), np.flatnonzero(neg)):
            pairs += 1
            wins += 1.0 if row[i] > row[j] else 0.5 if row[i] == row[j] else 0.0
    return wins / pairs


def log_mean_ratio(values, failed, passed):
    total = weight = 0.0
    for row, f, p in zip(values, failed, passed, strict=True):
        if f.any() and p.any():
            share = f.sum() * p.sum() / (f.sum() + p.sum())
            total += share * (np.mean([math.log(v) for v in row[f]]) - np.mean([math.log(v) for v in row[p]]))
            weight += share
    return math.exp(total / weight)


def margin_flow(ref, shift, threshold):
    out = []
    for row in shift:
        moved = [[m + d > threshold for d in row] for m in ref]
        out.append(np.mean(moved) - np.mean([m > threshold for m in ref]))
    return np.array(out)


def router(correct, prefer):
    """(share right, cases) of a rule given as (C, N) of what it prefers the larger of."""
    wins = cases = 0.0
    for one, other in itertools.combinations(range(len(correct)), 2):
        for i in range(correct.shape[1]):
            a, b = prefer[one, i], prefer[other, i]
            if correct[one, i] != correct[other, i] and not math.isnan(a) and not math.isnan(b):
                cases += 1
                wins += 0.5 if a == b else float((a > b) == correct[one, i])
    return wins / cases, cases
