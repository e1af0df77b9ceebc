"""The numbers of one step: interval of λ_max, entropy, and divergence from the step before.

Plain floats and `math` throughout. At k = 20 the whole step takes a few tens of microseconds; one NumPy call costs
more than that in overhead alone.

From a list of the k most probable tokens, with r = 1 − Σp the mass it leaves and every unlisted entry at most p_k:

* λ_max of diag(p) − ppᵀ lies in [λ_low, λ_high], over every tail that fits: the tail spread infinitely thin, and
  ⌊r/p_k⌋ copies of p_k with one remainder. The same bounds as `quantvane.fisher.lambda_bounds_topk` without a
  vocabulary size.
* entropy is at least that of the listed part plus ⌊r/p_k⌋ copies of p_k and one remainder: −x ln x is concave, so the
  most lumped tail has the least entropy.
* KL(now ‖ before) is at least its value on a coarser partition (data processing): tokens that both lists name, one
  by one, by their keys; A, the tokens only the present list names, as one lump; everything else as another. The
  present masses of all three are known. The earlier mass of A is not; it is at most min(r, |A| p_k) of the earlier
  list, and the value is smallest at the x nearest to Q·P(A)/(P(A)+R) that this allows, Q being the earlier mass
  outside the common tokens and R the present mass outside the list. So: a certified lower bound, never a floor
  constant put in for the unseen tokens.

All three are exact where the lists cover the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from quantvane.monitor.records import Observation

__all__ = ["KL_CAP", "MASS_LIMIT", "Measured", "Seen", "lambda_bounds", "look", "measure"]

MASS_LIMIT = 1.01
"""Largest mass of a list that passes for rounding; above it an observation is not a distribution."""

KL_CAP = 50.0
"""Nats. Divergences are cut there: a token ruled out by a grammar makes one infinite, and its average for ever."""

_TINY = -700.0  # e^−700: what would underflow, sentinels such as −9999 too, is not a zero
_MASS_SLACK = 4e-6  # a single-precision log-softmax's own error
_STEPS = 12


@dataclass(frozen=True, slots=True)
class Measured:
    """One step, before any smoothing.

    Attributes:
        lambda_low, lambda_high: interval of λ_max, equal where it is exact. entropy, kl: nats; kl is NaN where there
            is no step before. nll: −ln p of the chosen token, nats, NaN where it is not known.
    """

    lambda_low: float
    lambda_high: float
    entropy: float
    kl: float
    nll: float


@dataclass(frozen=True, slots=True)
class Seen:
    """An observation read once, for this step and the comparison of the next.

    Attributes:
        entries: token → (p, ln p). p: the same probabilities, largest first. rest: mass the list leaves, ≥ 0.
        cap: no unlisted token is more probable. excess: mass beyond 1, by which the list is rounded at least.
    """

    entries: dict[Hashable, tuple[float, float]]
    p: list[float]
    rest: float
    cap: float
    excess: float


def look(observation: Observation) -> Seen | None:
    """Read an observation; None where it is no distribution (empty, NaN, +inf, mass above `MASS_LIMIT`)."""
    logs: Sequence[float] = observation.logprobs
    keys: Sequence[Hashable] = observation.keys
    if not logs or len(logs) != len(keys):
        return None
    head = logs[0]
    p = [0.0 if x == -math.inf else math.exp(x) if x > _TINY else math.exp(_TINY) for x in logs if x <= 1.0]
    if len(p) != len(logs):  # NaN and absurd values alike fail the comparison
        return None
    if any(a < b for a, b in pairwise(p)):
        order = sorted(range(len(p)), key=p.__getitem__, reverse=True)
        logs, keys, p = [logs[i] for i in order], [keys[i] for i in order], [p[i] for i in order]
        head = logs[0]
    if p[0] <= 0.0:
        return None
    beside = math.fsum(p[1:]) if observation.complete else sum(p[1:])
    rest = -math.expm1(head) - beside
    if not rest >= 1.0 - MASS_LIMIT:
        return None
    if observation.complete:
        if rest > MASS_LIMIT - 1.0:
            return None  # called whole, and is not
        shift = math.log1p(-rest)
        p = [x / (1.0 - rest) for x in p]
        logs = [x - shift for x in logs]
        entries = {key: (x, ln) for key, x, ln in zip(keys, p, logs, strict=True)}
        return Seen(entries, p, 0.0, 0.0, 0.0)
    entries = {key: (x, ln) for key, x, ln in zip(keys, p, logs, strict=True)}
    excess = -rest if rest < 0.0 else 0.0
    cap = p[-1]
    return Seen(entries, p, rest if rest > 0.0 and cap > 0.0 else 0.0, cap, excess)


def measure(now: Seen, before: Seen | None, chosen: float = math.nan) -> Measured:
    """The numbers of one step.

    Args:
        now, before: this step's distribution and the one before it, if there was one.
        chosen: ln p of the generated token.
    """
    low, high = lambda_bounds(now)
    kl = math.nan if before is None else _divergence(now, before)
    return Measured(low, high, _entropy(now), kl, -chosen)


def lambda_bounds(seen: Seen) -> tuple[float, float]:
    """Certified interval of λ_max of diag(p) − ppᵀ; a point where nothing is unlisted or the top is tied.

    Mass in excess of 1 shows that the list is rounded by at least that much in ln p; both ends allow for it.
    """
    p, rest, eta = seen.p, seen.rest, seen.excess
    if eta:
        down, up = math.exp(-eta), math.exp(eta)
        low = _root(p[0] * down, [x * down for x in p[1:]], [], 0.0)
        left = max(-eta - math.expm1(-eta) * (1.0 + eta), 0.0)  # 1 − e^{−η} Σp
        high = _upper(p[0] * up, [x * up for x in p[1:]], left, seen.cap * up, low)
        return min(low, 0.5), min(max(low, high), 0.5)
    low = _root(p[0], p[1:], [(0.0, rest)] if rest > 0.0 else [], 0.0)
    if rest == 0.0:
        low = min(low, 0.5)
        return low, low
    high = _upper(p[0], p[1:], rest, seen.cap, low)
    return min(low, 0.5), min(max(low, high), 0.5)


def _upper(first: float, others: list[float], rest: float, cap: float, start: float) -> float:
    if rest <= 0.0 or cap <= 0.0:
        return _root(first, others, [], start)
    copies = math.floor(rest / cap) * cap
    remainder = min(max(rest - copies, 0.0), cap)
    return _root(first, others, [(cap, copies), (remainder, remainder)], start)


def _root(first: float, others: list[float], tail: list[tuple[float, float]], start: float) -> float:
    """Root of 1/ψ(λ) = 1 − λ/p₁ in [p₂, p₁], ψ(λ) = Σ mass/(λ − size), by Newton's method from below.

    ``others`` are atoms with size = mass, ``tail`` are (size, mass); ``start`` is any lower bound of the root. The
    function is concave and increasing there, so every iterate is a lower bound (see `quantvane.fisher.secular`).
    """
    tail = [(size, mass) for size, mass in tail if mass > 0.0]
    second = max([others[0] if others else 0.0, *(size for size, _ in tail)])
    rest = sum(others) + sum(mass for _, mass in tail)
    if rest <= 0.0:
        return 0.0
    if second >= first:
        return first
    thin = max(rest - second, 0.0)
    twice = 2.0 * second * first
    total = first + second + thin
    floor = 0.5 * (twice + thin * (first + second) + math.hypot(twice, thin * (first - second))) / total
    if thin < 0.0 or floor < second:
        floor = second
    unit = min(max(floor, start, second), first)
    # In units of a lower bound nothing overflows, however close to one-hot the distribution is.
    sizes = [x / unit for x in others if x > 0.0]
    masses = [(size / unit, mass / unit) for size, mass in tail]
    ratio = unit / first
    z = 1.0
    for _ in range(_STEPS):
        psi = slope = 0.0
        for u in sizes:
            gap = z - u
            if gap <= 0.0:
                return unit * z
            t = u / gap
            psi += t
            slope += t / gap
        for size, mass in masses:
            gap = z - size
            if gap <= 0.0:
                return unit * z
            t = mass / gap
            psi += t
            slope += t / gap
        inverse = 1.0 / psi
        step = (1.0 - ratio * z - inverse) / (slope * inverse * inverse + ratio)
        if step <= 1e-15 * z:
            break
        z += step
    return min(unit * z, first)


def _entropy(seen: Seen) -> float:
    value = 0.0
    for p, ln in seen.entries.values():
        if p > 0.0:
            value -= p * ln
    rest, cap = seen.rest, seen.cap
    if rest > 0.0:
        copies = math.floor(rest / cap)
        value -= copies * cap * math.log(cap)
        remainder = rest - copies * cap
        if remainder > 0.0:
            value -= remainder * math.log(remainder)
    return max(value, 0.0)


def _divergence(now: Seen, before: Seen) -> float:
    value = common = alone = 0.0
    number = 0
    earlier = before.entries
    for key, (p, ln) in now.entries.items():
        other = earlier.get(key)
        if other is None:
            alone += p
            number += 1
            continue
        common += other[0]
        if p > 0.0:
            value += p * (ln - other[1])
    outside, rest = max(1.0 - common, 0.0), now.rest
    x = 0.0
    if alone > _MASS_SLACK:
        allowed = min(before.rest, number * before.cap)
        x = min(outside * alone / (alone + rest), allowed)
        if x <= 0.0:
            return KL_CAP
        value += alone * math.log(alone / x)
    if rest > _MASS_SLACK:
        left = outside - x
        if left <= _MASS_SLACK * 1e-3:
            return KL_CAP
        value += rest * math.log(rest / left)
    return min(max(value, 0.0), KL_CAP)
