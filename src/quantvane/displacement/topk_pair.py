"""Two top-k lists joined by token id."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantvane.types import FloatArray

__all__ = ["MASS_EPS", "TopKPair"]

MASS_EPS = 2.0**-48
"""Absolute error of a mass that is left over, 1 − Σp, computed from double-precision log-probabilities."""


@dataclass(frozen=True, slots=True)
class TopKPair:
    """T positions; p is the reference, with k listed entries, q the candidate, with k'.

    Attributes:
        p: (T, k) listed p.
        q_at_p: (T, k) q there where ``both``, else 0.
        log_ratio: (T, k) ln p − ln q where ``both`` and p > 0, else 0.
        both: (T, k) the id is in the candidate's list too.
        q: (T, k') listed q.
        log_q: (T, k') its logarithm, exact where q would underflow.
        only_q: (T, k') the id is not in the reference's list.
        p_rest, q_rest: (T,) mass beside the list. p_cap, q_cap: (T,) the most an unlisted entry can have.
        neither: (T,) number of ids in neither list.
        rounding: (T,) half-width of the log-probabilities' rounding, declared or proven.
        declared: the caller declared a rounding.
        complete: both lists hold the whole vocabulary.
    """

    p: FloatArray
    q_at_p: FloatArray
    log_ratio: FloatArray
    both: npt.NDArray[np.bool_]
    q: FloatArray
    log_q: FloatArray
    only_q: npt.NDArray[np.bool_]
    p_rest: FloatArray
    q_rest: FloatArray
    p_cap: FloatArray
    q_cap: FloatArray
    neither: FloatArray
    rounding: FloatArray
    declared: bool
    complete: bool
