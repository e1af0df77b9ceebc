"""How far to look ahead along a draft: as far as that is expected to save more than it costs, with a margin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quantvane.tasks.cost import LONGEST, UNMEASURED, CallCost
from quantvane.types import FloatArray

__all__ = ["FIRST", "FRESH", "REJOINED", "Agreement", "Company"]

FIRST, FRESH, REJOINED = 0, 1, 2
"""Where a token of a draft stands: first of the answer, behind others that were right, behind a divergence."""

_LOOK_FIRST = 32
# Pseudo-counts (right, wrong) at the start: a draft is trusted for some tokens, one that has failed before for few.
_PRIOR = ((4.0, 0.5), (8.0, 1.0), (1.0, 1.0))
# What looking ahead must be expected to save, over what it costs; and what it may have lost at any time: so many
# steps, and this share of all steps.
_MARGIN = 1.05
_LOSS_STEPS, _LOSS_SHARE = 16.0, 0.01
_STALE = 1.04  # estimates are made anew when so many times more tokens were compared


@dataclass(frozen=True, slots=True)
class Company:
    """The call that a sequence is about to take part in.

    Attributes:
        base: its tokens so far, those included that others will feed at least. sharing: sequences that share calls.
        steady: it is a step behind a step, unless this sequence looks ahead.
    """

    base: int
    sharing: int
    steady: bool


class Agreement:
    """Counts of draft tokens that were the model's own argmax and that were not, and what looking ahead has earned.

    With s sequences in a call, a step costs each of them t = T(s)/s. Feeding k tokens ahead adds E(k) to a call
    (`CallCost.extra`) and saves t for each that is right. The chance that the first j are all right is estimated as
    P_j = p₁·p₂ʲ⁻¹ from the counts, by where the tokens stand. So

        k = argmax  t·Σ_{j ≤ k} P_j  −  1.05·E(k),

    0 where nothing is above 0. Tokens are counted whether or not they were fed ahead: a model that leaves its drafts
    early soon generates plainly, and takes them up again when they fit.

    Sequences in company begin plainly, until 32 tokens were compared. They go out of step by looking ahead, which
    makes every step dearer by the share `CallCost.disorder`: what is saved of an answer of N draft tokens, the share
    Σ_{j ≤ N} P_j / N of its steps less what that costs, must exceed 1.05 times that share, or none looks ahead.

    An account is kept besides, at the same prices: where what was fed ahead has cost more than it saved, by 16 steps
    and 1% of all steps, nothing is fed ahead until the steps since have made up for it. By these prices, replay
    loses no more than that and one call, whatever the drafts are.

    Args:
        cost: of the decoder's calls.
    """

    def __init__(self, cost: CallCost = UNMEASURED) -> None:
        self._cost = cost
        self._drafts = self._tokens = 0
        self._right = [right for right, _ in _PRIOR]
        self._all = [right + wrong for right, wrong in _PRIOR]
        self._account = 0.0  # what looking ahead saved, less what it cost, in steps
        self._steps = self._compared = 0
        self._known: dict[tuple[int, Company], int] = {}
        self._stale = 0.0

    def expect(self, lengths: Sequence[int]) -> None:
        """Drafts of so many tokens will come; their mean is N."""
        self._drafts += len(lengths)
        self._tokens += sum(lengths)

    def count(self, place: int, right: bool) -> None:
        """One more token of a draft was compared with the model's own."""
        self._right[place] += right
        self._all[place] += 1
        self._compared += 1

    def settle(self, company: Company, ahead: int, right: int) -> None:
        """A call was made: of ``ahead`` tokens fed ahead, ``right`` were right."""
        self._steps += 1 + right
        if ahead:
            extra = float(self._cost.extra(company.base, steady=company.steady)[min(ahead, LONGEST) - 1])
            self._account += right - extra / self._cost.token(company.sharing)

    def reach(self, place: int, company: Company) -> int:
        """Draft tokens to feed ahead, ≥ 0, from a place on (`FIRST`, …)."""
        if company.sharing > 1 and self._compared < _LOOK_FIRST:
            return 0
        if self._account < -_LOSS_STEPS - _LOSS_SHARE * self._steps:
            return 0
        if self._compared > self._stale:
            self._known.clear()
            self._stale = _STALE * self._compared
        key = (place, company)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._best(place, company)
        return found

    def _best(self, place: int, company: Company) -> int:
        price = self._cost.token(company.sharing)
        extra = self._cost.extra(company.base, steady=company.steady)
        saved = np.cumsum(self._chances(place)) * price
        gain = saved - _MARGIN * extra
        best = int(gain.argmax())
        if gain[best] <= 0:
            return 0
        if company.sharing > 1:
            length = max(1, self._tokens // max(1, self._drafts))
            kept = float(self._chances(FIRST)[:length].sum()) / length
            if kept * (1 - extra[best] / saved[best]) <= _MARGIN * self._cost.disorder:
                return 0
        return 1 + best

    def _chances(self, place: int) -> FloatArray:
        """P_1, P_2, …"""
        then = FRESH if place == FIRST else place
        first, next_ = self._right[place] / self._all[place], self._right[then] / self._all[then]
        found: FloatArray = first * next_ ** np.arange(LONGEST, dtype=np.float64)
        return found
