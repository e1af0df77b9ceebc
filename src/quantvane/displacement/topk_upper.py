"""The supremum of KL(p‖q) over all tails that fit two top-k lists.

KL is convex, so it is largest at a vertex of each polytope: unlisted entries at their cap or at 0, at most
one between. If q's caps leave room, some vertex has q = 0 on an id where p can have mass, and the supremum is
+inf. Else either q is settled wherever p can be, or all N ids unlisted for q are at its cap Q but one, at ρ =
r_q − (N−1)Q > 0, which the adversary puts where p is largest. p then goes, cap by cap, to the ids with the
smallest q (the entropy part Σ p ln p is the same for all its vertices).
"""

from __future__ import annotations

import numpy as np

from quantvane.displacement.topk_pair import MASS_EPS, TopKPair
from quantvane.types import FloatArray

__all__ = ["supremum"]


def supremum(pair: TopKPair) -> FloatArray:
    """(T,) upper bound of KL in nats, +inf where nothing finite holds."""
    ref_only = ~pair.both
    open_q = ref_only.sum(axis=-1) + pair.neither  # N
    rest = np.where((pair.p_cap > 0.0) & (pair.p_rest > MASS_EPS), pair.p_rest, 0.0)
    reach_r = (ref_only & (pair.p > 0.0)).any(axis=-1)
    reach_neither = (pair.neither > 0) & (rest > 0.0)
    # ρ, less the rounding error of the difference: a smaller ρ only raises the bound.
    last = pair.q_rest - (open_q - 1.0) * pair.q_cap - MASS_EPS * np.maximum(1.0, open_q * pair.q_cap)
    forced = last > 0.0
    infinite = (reach_r | reach_neither) & ~forced
    infinite |= (pair.only_q & (pair.q <= 0.0)).any(axis=-1) & (rest > 0.0)
    infinite |= (np.isposinf(pair.log_ratio) & (pair.p > 0.0)).any(axis=-1)
    if pair.declared and not pair.complete:
        return np.full(len(rest), np.inf)

    log_ratio = np.where(np.isfinite(pair.log_ratio), pair.log_ratio, 0.0)
    if pair.declared:
        # Each entry at its worst: q̃e^{−η}, and p̃e^{±η}, whichever end is larger (p ln(p/q) is convex in p).
        eta = pair.rounding[:, None]
        ends = [pair.p * np.exp(sign * eta) * (log_ratio + (sign + 1.0) * eta) for sign in (-1.0, 1.0)]
        return np.where(infinite, np.inf, np.maximum(np.maximum(*ends).sum(axis=-1), 0.0))

    known = (pair.p * log_ratio).sum(axis=-1)
    none = np.zeros_like(rest)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_cap = np.where(pair.q_cap > 0.0, pair.log_q.min(axis=-1), 0.0)
        log_last = np.minimum(np.where(forced, np.log(last), 0.0), log_cap)
        p_r = np.where(ref_only, pair.p, 0.0)
        listed = np.where(p_r > 0.0, p_r * (np.log(p_r) - log_cap[:, None]), 0.0).sum(axis=-1)
    # The id left with ρ is either the largest p of R, or one of the ids in neither list.
    on_r = p_r.max(axis=-1, initial=0.0) * (log_cap - log_last) + _spread(pair, rest, log_cap, none, log_last)
    on_neither = _spread(pair, rest, log_cap, np.minimum(pair.neither, 1.0), log_last)
    settled = ~(reach_r | reach_neither)
    tail = np.where(settled, _spread(pair, rest, none, none, none), listed + np.maximum(on_r, on_neither))
    return np.where(infinite, np.inf, np.maximum(known + tail, 0.0))


def _spread(
    pair: TopKPair, rest: FloatArray, log_cap: FloatArray, special: FloatArray, log_last: FloatArray
) -> FloatArray:
    """Σ p ln(p/q) (T,) with ``rest`` poured, cap by cap, onto the ids unlisted for p in ascending order of q.

    First ``special`` ids (0 or 1) with ln q = ``log_last``, then the others of neither list with ``log_cap``,
    then those of the candidate's list, whose q is at least the cap.
    """
    safe = np.where(pair.p_cap > 0.0, pair.p_cap, 1.0)
    full = np.floor(rest / safe)
    left = np.clip(rest - full * safe, 0.0, safe)
    log_q = np.sort(np.where(pair.only_q & (pair.q > 0.0), pair.log_q, np.inf), axis=-1)  # absent last
    place = pair.neither[:, None] + np.arange(log_q.shape[1])
    usable = np.isfinite(log_q)
    last = np.where(usable & (place == full[:, None]), left[:, None], 0.0)
    amount = np.where(usable & (place < full[:, None]), safe[:, None], last)
    with np.errstate(divide="ignore", invalid="ignore"):
        listed = np.where(amount > 0.0, amount * (np.log(amount) - log_q), 0.0).sum(axis=-1)
        whole = np.minimum(full, pair.neither)
        partial = np.where(full < pair.neither, left, 0.0)
        entropy = whole * safe * np.log(safe) + np.where(partial > 0.0, partial * np.log(partial), 0.0)
    first = np.where(special > 0.0, np.where(full > 0.0, safe, left), 0.0)  # what the special id receives
    unlisted = entropy - (whole * safe + partial - first) * log_cap - first * log_last
    out: FloatArray = listed + unlisted
    return out
