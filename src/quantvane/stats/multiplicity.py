"""Several tests at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["holm"]


def holm(p: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values, in the order given.

    p̃₍ᵢ₎ = max over j ≤ i of min(1, (k − j + 1)·p₍ⱼ₎), k the number of comparisons. The family-wise error of
    rejecting where p̃ ≤ α is at most α under any dependence. NaN stays NaN and counts as a comparison.

    Source: Holm (1979), Scand. J. Statist. 6, 65–70.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    out = [math.nan] * len(p)
    running = 0.0
    known = sorted((i for i in range(len(p)) if not math.isnan(p[i])), key=lambda i: p[i])
    for step, i in enumerate(known):
        running = max(running, min(1.0, p[i] * (len(p) - step)))
        out[i] = running
    return out
