"""Slow, obvious twins of the monitor's numbers, over whole distributions in float64."""

from __future__ import annotations

import numpy as np


def lambda_dense(p):
    return float(np.linalg.eigvalsh(np.diag(p) - np.outer(p, p))[-1])


def entropy(p):
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


def kl(p, q):
    alive = p > 0
    return float((p[alive] * np.log(p[alive] / q[alive])).sum())


def lumped_kl_minimum(p_cells, q_common, cap, grid=200_001):
    """Smallest KL over x, the unknown earlier mass of the second-to-last cell, by trying a grid of them.

    ``p_cells``: present masses of the common tokens, of the lump A, of the rest. ``q_common``: earlier masses of the
    common tokens. ``cap``: largest x.
    """
    outside = 1.0 - sum(q_common)
    x = np.linspace(1e-12, min(cap, outside - 1e-12), grid)
    value = sum(p * np.log(p / q) for p, q in zip(p_cells, q_common, strict=False))
    a, r = p_cells[-2:]
    return float((value + a * np.log(a / x) + r * np.log(r / (outside - x))).min())


def stream(rows, base, thresholds, lower, smoothing, horizon, statistics):
    """First passages of a stream of (λ_low, λ_high, entropy, kl, nll), written out token by token.

    Returns (first alarm or None, names in order, extremes, per-token tuples of names in alarm).
    """
    s, h, k, loss = 0.0, base.entropy, base.kl, base.nll
    extremes = dict.fromkeys(statistics, float("nan"))
    active, quiet, order, first, shown = set(), {}, [], None, []
    for t, row in enumerate(rows):
        if row is not None:
            low, high, entropy_now, kl_now, nll_now = row
            x = (np.log(max(low, 1e-6)) + np.log(max(high, 1e-6))) / 2 - np.log(base.lambda_max)
            s = (1 - smoothing) * s + smoothing * x
            h = (1 - smoothing) * h + smoothing * entropy_now
            k = k if np.isnan(kl_now) else (1 - smoothing) * k + smoothing * kl_now
            loss = loss if np.isnan(nll_now) else (1 - smoothing) * loss + smoothing * nll_now
            flat = min(-s / base.sigma_spread, (h - base.entropy) / base.entropy_spread)
            value = {
                "sigma_high": s, "sigma_low": -s, "entropy_high": h, "entropy_low": -h, "kl_high": k, "kl_low": -k,
                "flat": flat, "nll_high": loss,
            }  # fmt: skip
            for name in statistics:
                if t < horizon:
                    extremes[name] = value[name] if np.isnan(extremes[name]) else max(extremes[name], value[name])
                if name in active:
                    quiet[name] = quiet[name] + 1 if value[name] <= lower[name] else 0
                    if quiet[name] == 3:
                        active.remove(name)
                elif t < horizon and value[name] > thresholds[name]:
                    active.add(name)
                    quiet[name] = 0
                    first = t if first is None else first
                    if name not in order:
                        order.append(name)
        shown.append(frozenset(active))
    return first, order, extremes, shown
