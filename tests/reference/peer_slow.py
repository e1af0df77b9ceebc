"""Slow, obvious float64 twin of the peer's per-token pass: log-softmax and definitions, token by token."""

from __future__ import annotations

import math
from typing import NamedTuple


class PeerToken(NamedTuple):
    kld: float
    nll: float
    nll_base: float
    delta_p: float
    same_top: bool


def peer_token(
    scale: float, min_log_prob: float, codes: list[int], logits: list[float], target: int
) -> PeerToken:
    high = max(logits)
    normaliser = high + math.log(math.fsum(math.exp(x - high) for x in logits))
    base = [scale * code + min_log_prob for code in codes]
    log_q = [x - normaliser for x in logits]
    kld = math.fsum(math.exp(b) * (b - q) for b, q in zip(base, log_q, strict=True) if b > -16)
    return PeerToken(
        kld,
        -log_q[target],
        -base[target],
        math.exp(log_q[target]) - math.exp(base[target]),
        logits.index(high) == base.index(max(base)),
    )
