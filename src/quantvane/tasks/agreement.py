"""How far to look ahead along a draft: as far as the next token of it is more likely to save work than to waste it."""

from __future__ import annotations

import math

__all__ = ["FIRST", "FRESH", "REJOINED", "Agreement"]

FIRST, FRESH, REJOINED = 0, 1, 2
"""Where a token of a draft stands: first of the answer, behind others that were right, behind a divergence."""

_STEP = 1.0
_LOOK_FIRST = 32
# Pseudo-counts (right, wrong) at the start: a draft is trusted for some tokens, one that has failed before for few.
_PRIOR = ((4.0, 0.5), (8.0, 1.0), (1.0, 1.0))
_PRIORS = sum(right + wrong for right, wrong in _PRIOR)


class Agreement:
    """Counts of draft tokens that were the model's own argmax and that were not, by where they stood.

    A call costs ``a`` and every token in it ``b``; ``s`` sequences share a call. A draft token that is right saves its
    sequence a step, b + a/s; one that is fed in vain costs b. So the k-th token ahead pays where the chance P_k that
    all of the first k are right exceeds b/(b + a/s) = 1/(1 + r/s), r = a/b. The chance is estimated as
    p₁·p₂ᵏ⁻¹ from the counts. Tokens are counted whether or not they were fed ahead: a model that leaves its drafts
    early soon generates plainly, and takes them up again when they fit. Sequences in company begin plainly, until 32
    tokens were compared: they lose little by it, and answers of equal length that once fell out of step cost more to
    the end.

    r is fixed at 1, not measured, so that the batches of a run, and with them the rounding, are the same every time.
    It is about what a small model on a CPU has; where decoding is bound by memory r is larger, and looking ahead
    would pay for longer.
    """

    def __init__(self) -> None:
        self._right = [right for right, _ in _PRIOR]
        self._all = [right + wrong for right, wrong in _PRIOR]

    def count(self, place: int, right: bool) -> None:
        """One more token of a draft was compared with the model's own."""
        self._right[place] += right
        self._all[place] += 1

    def reach(self, place: int, sharing: int) -> int:
        """Draft tokens to feed ahead, ≥ 0, for a sequence that shares its calls with ``sharing`` − 1 others."""
        if sharing > 1 and sum(self._all) - _PRIORS < _LOOK_FIRST:
            return 0
        bar = 1 / (1 + _STEP / max(1, sharing))
        then = FRESH if place == FIRST else place
        first, next_ = self._right[place] / self._all[place], self._right[then] / self._all[then]
        return 0 if first <= bar else 1 + int(math.log(bar / first) / math.log(next_))
