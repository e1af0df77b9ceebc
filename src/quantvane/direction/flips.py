"""Flips: the counts everything else in this room follows from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quantvane.errors import DataError

__all__ = ["Flips", "as_outcomes", "count_flips"]


@dataclass(frozen=True, slots=True)
class Flips:
    """Counts over n paired items.

    Attributes:
        n: items. both_right, drops, leapfrogs, both_wrong: the four cells (right→wrong is a drop, wrong→right a
            leapfrog); they sum to n.
        sidesteps: both wrong with different answers; None where answers are unknown.
        changed: items whose answer differs, right or wrong; None likewise.
    """

    n: int
    both_right: int
    drops: int
    leapfrogs: int
    both_wrong: int
    sidesteps: int | None = None
    changed: int | None = None

    @property
    def score_ref(self) -> float:
        return self._share(self.both_right + self.drops)

    @property
    def score_cand(self) -> float:
        return self._share(self.both_right + self.leapfrogs)

    @property
    def delta(self) -> float:
        """score_cand − score_ref = (leapfrogs − drops)/n."""
        return self._share(self.leapfrogs - self.drops)

    @property
    def volume(self) -> float:
        """V = (drops + leapfrogs)/n."""
        return self._share(self.drops + self.leapfrogs)

    @property
    def direction(self) -> float:
        """D = (leapfrogs − drops)/(leapfrogs + drops) ∈ [−1, 1]; NaN where nothing flipped. Δ = V·D."""
        flips = self.drops + self.leapfrogs
        return (self.leapfrogs - self.drops) / flips if flips else math.nan

    @property
    def answer_churn(self) -> float:
        """Share of items whose answer differs; NaN where answers are unknown."""
        return math.nan if self.changed is None else self._share(self.changed)

    def _share(self, count: int) -> float:
        return count / self.n if self.n else math.nan


def as_outcomes(values: Any, name: str) -> npt.NDArray[np.bool_]:
    """(n,) bool from booleans, or from numbers that are all 0 or 1.

    Raises:
        DataError: another shape, or a value that is neither.
    """
    array = np.asarray(values)
    binary = array.size == 0 or array.dtype == np.bool_
    if not binary and np.issubdtype(array.dtype, np.number):
        binary = bool(np.isin(array, (0, 1)).all())
    if array.ndim != 1 or not binary:
        raise DataError(
            f"{name} is no list of outcomes",
            expected="(n,) booleans, or numbers that are 0 or 1",
            got=f"shape {array.shape}, type {array.dtype}",
            remedy="turn graded scores into right and wrong first, at a threshold you declare",
        )
    return array.astype(np.bool_)


def count_flips(
    ref_correct: Any,
    cand_correct: Any,
    ref_answers: Sequence[Any] | None = None,
    cand_answers: Sequence[Any] | None = None,
) -> Flips:
    """Count drops, leapfrogs and sidesteps.

    Args:
        ref_correct, cand_correct: (n,) bool.
        ref_answers, cand_answers: n answers each, compared with ``==``; both or neither.

    Raises:
        DataError: lengths differ, or only one side has answers.

    >>> flips = count_flips([True, True, False], [True, False, True])
    >>> flips.drops, flips.leapfrogs, flips.volume, flips.direction
    (1, 1, 0.6666666666666666, 0.0)
    """
    ref, cand = as_outcomes(ref_correct, "ref_correct"), as_outcomes(cand_correct, "cand_correct")
    lengths = {len(ref), len(cand)} | {len(a) for a in (ref_answers, cand_answers) if a is not None}
    if len(lengths) != 1 or (ref_answers is None) != (cand_answers is None):
        raise DataError(
            "reference and candidate do not pair up",
            expected="equally many outcomes on both sides, and answers for both or neither",
            got=f"{len(ref)} and {len(cand)} outcomes, "
            + " and ".join(
                "no answers" if a is None else f"{len(a)} answers" for a in (ref_answers, cand_answers)
            ),
            remedy="align the items first",
        )
    sidesteps = changed = None
    if ref_answers is not None and cand_answers is not None:
        differs = np.array([a != b for a, b in zip(ref_answers, cand_answers, strict=True)], dtype=np.bool_)
        changed, sidesteps = int(differs.sum()), int((differs & ~ref & ~cand).sum())
    found = Flips(
        n=len(ref),
        both_right=int((ref & cand).sum()),
        drops=int((ref & ~cand).sum()),
        leapfrogs=int((cand & ~ref).sum()),
        both_wrong=int((~ref & ~cand).sum()),
        sidesteps=sidesteps,
        changed=changed,
    )
    # Δscore = V·D, in integers: n·Δ = right(candidate) − right(reference) = leapfrogs − drops
    assert int(cand.sum()) - int(ref.sum()) == found.leapfrogs - found.drops
    assert found.both_right + found.drops + found.leapfrogs + found.both_wrong == found.n
    return found
