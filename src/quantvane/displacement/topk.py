"""KL divergence from two top-k lists: certified bounds over every pair of distributions that fits them.

`quantvane.displacement.topk_lower` and `quantvane.displacement.topk_upper` hold the two optimisations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantvane.displacement.topk_lower import infimum
from quantvane.displacement.topk_pair import TopKPair
from quantvane.displacement.topk_upper import supremum
from quantvane.errors import DataError
from quantvane.fisher.tails import TopK, read_topk
from quantvane.types import FloatArray

__all__ = ["kld_bounds_topk"]

_CHUNK = 1 << 16  # list entries in flight


def kld_bounds_topk(
    ref_logprobs: npt.ArrayLike,
    ref_ids: npt.ArrayLike,
    cand_logprobs: npt.ArrayLike,
    cand_ids: npt.ArrayLike,
    vocab_size: int,
    *,
    rounding: float = 0.0,
) -> tuple[FloatArray, FloatArray]:
    """Bounds of KL(p‖q) = Σ p (ln p − ln q) in nats, from the k largest log-probabilities of p and of q.

    Known: p on the reference's ids, q on the candidate's; every other p is at most the smallest listed p and
    they sum to what the list leaves, every other q likewise. The bounds hold for **every** pair (p, q) that
    fits.

    Lower: the infimum. Both tails are free, the problem is convex, and by symmetry the ids in neither list
    share their masses a and b equally, so they cost a ln(a/b) (log-sum inequality). It is solved over the
    masses of all unlisted entries under their caps, and what is returned is the value of the Lagrange dual,
    which lies below the infimum whatever the solver did; it meets the infimum within about 1e-12.

    Upper: the supremum, at a vertex of both polytopes. **It is +inf wherever some id can have q = 0 and p >
    0**, as nothing in a top-k list bounds the other q from below: an id that only the reference lists, or
    mass of p that is left for ids in neither list. It is finite where the candidate's list covers everything
    that p can reach, or where the candidate's caps leave no id without mass. No floor is ever put in for a
    missing q.

    Cost: O(T k log k) times about 60 steps of bisection.

    Args:
        ref_logprobs, ref_ids: (T, k) natural logarithms and token ids of the reference's k largest, any
            order.
        cand_logprobs, cand_ids: (T, k') of the candidate. k' may differ. −inf is probability 0. A list must
            be the k largest: drop an observed token that an API appends from further down.
        vocab_size: V, common to both.
        rounding: η, half-width of the rounding of all log-probabilities in nats. With 0 they are taken as
            exact in double precision; a mass above 1 (within a single-precision log-softmax's error) shows
            how far they are rounded, and the lower bound allows for it. With η > 0 the upper bound is finite
            only where nothing is unknown.

    Returns:
        lower, upper: (T,) float64 with 0 ≤ lower ≤ upper. Both equal KL for k = k' = V with ``rounding`` 0. A
        mass of p within 4e-15 of 0 counts as none. NaN where a row holds NaN.

    Raises:
        DataError: shapes that do not fit, ids outside [0, V) or listed twice in a row, mass above 1 beyond
            rounding, or a mass that the unlisted entries cannot hold.
    """
    ref_lp, ref_id = _lists(ref_logprobs, ref_ids, vocab_size, "reference")
    cand_lp, cand_id = _lists(cand_logprobs, cand_ids, vocab_size, "candidate")
    if len(ref_lp) != len(cand_lp):
        raise DataError(
            "reference and candidate lists cover different numbers of positions",
            expected=f"(T, k) arrays with T = {len(ref_lp)}",
            got=f"T = {len(cand_lp)} for the candidate",
            remedy="align the two by position",
        )
    rows = len(ref_lp)
    lower, upper = np.empty(rows), np.empty(rows)
    step = max(1, _CHUNK // (ref_lp.shape[1] + cand_lp.shape[1]))
    for begin in range(0, rows, step):
        part = slice(begin, begin + step)
        ref = read_topk(ref_lp[part], vocab_size, rounding, "reference")
        cand = read_topk(cand_lp[part], vocab_size, rounding, "candidate")
        pair = _join(ref, ref_id[part], cand, cand_id[part], vocab_size, rounding > 0.0)
        valid = ref.valid & cand.valid
        low, high = infimum(pair), supremum(pair)
        if pair.complete and rounding == 0.0:
            low = high  # nothing is unknown: the plain sum, without the lower bound's allowance for rounding
        lower[part] = np.where(valid, low, np.nan)
        upper[part] = np.where(valid, np.maximum(low, high), np.nan)
    return lower, upper


def _lists(
    logprobs: npt.ArrayLike, ids: npt.ArrayLike, vocab_size: int, name: str
) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    lp, index = np.asarray(logprobs), np.asarray(ids)
    if lp.ndim != 2 or lp.shape != index.shape or lp.dtype.kind not in "fiu" or index.dtype.kind not in "iu":
        raise DataError(
            f"{name}: log-probabilities and ids must be two arrays of one shape",
            expected="(T, k) real log-probabilities and (T, k) integer ids",
            got=f"{lp.dtype} {lp.shape} and {index.dtype} {index.shape}",
            remedy="one row a position, k entries each",
        )
    index = index.astype(np.int64)
    ordered = np.sort(index, axis=-1)
    outside = bool(((index < 0) | (index >= vocab_size)).any())
    if outside or bool((ordered[:, 1:] == ordered[:, :-1]).any()):
        raise DataError(
            f"{name}: ids must be distinct tokens of the vocabulary",
            expected=f"each row's ids distinct, in [0, {vocab_size})",
            got=f"ids from {index.min()} to {index.max()}" if outside else "a row that lists an id twice",
            remedy="check the tokenizer, and drop padding entries",
        )
    return lp.astype(np.float64), index


@dataclass(frozen=True, slots=True)
class _Matches:
    """found (T, k): whether the entry is in the other list; value (T, k): its probability there, else 0."""

    found: npt.NDArray[np.bool_]
    value: FloatArray


def _look_up(
    ids: npt.NDArray[np.int64], other_ids: npt.NDArray[np.int64], other: FloatArray, vocab_size: int
) -> _Matches:
    """Find each row's ids among the same row of ``other_ids``, through one sorted array of (row, id) keys."""
    row = np.arange(len(ids), dtype=np.int64)[:, None] * vocab_size
    keys = (row + other_ids).ravel()
    order = np.argsort(keys)
    wanted = row + ids
    if not len(keys):
        return _Matches(np.zeros(ids.shape, dtype=np.bool_), np.zeros(ids.shape))
    at = order[np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)]
    found = keys[at] == wanted
    return _Matches(found, np.where(found, other.ravel()[at], 0.0))


def _join(
    ref: TopK,
    ref_ids: npt.NDArray[np.int64],
    cand: TopK,
    cand_ids: npt.NDArray[np.int64],
    vocab_size: int,
    declared: bool,
) -> TopKPair:
    in_cand = _look_up(ref_ids, cand_ids, cand.p, vocab_size)
    in_ref = _look_up(cand_ids, ref_ids, ref.p, vocab_size)
    log_q = _look_up(ref_ids, cand_ids, cand.logp, vocab_size).value
    both = in_cand.found
    with np.errstate(invalid="ignore"):
        log_ratio = np.where(both & (ref.p > 0.0), ref.logp - log_q, 0.0)
    union = ref_ids.shape[1] + cand_ids.shape[1] - both.sum(axis=-1)
    return TopKPair(
        p=ref.p,
        q_at_p=in_cand.value,
        log_ratio=log_ratio,
        both=both,
        q=cand.p,
        log_q=cand.logp,
        only_q=~in_ref.found,
        p_rest=ref.rest,
        q_rest=cand.rest,
        p_cap=ref.cap,
        q_cap=cand.cap,
        neither=(vocab_size - union).astype(np.float64),
        rounding=np.maximum(ref.rounding, cand.rounding),
        declared=declared,
        complete=ref.unlisted == 0.0 and cand.unlisted == 0.0,
    )
