"""Drift of a fleet: a betting martingale over the streams that finish, against those of the calibration.

Each stream gives a score (a mean over its tokens). Its conformal p-value among all scores so far, calibration
included, with ties broken at random, is uniform and independent of the earlier ones as long as the streams are
exchangeable with the calibration's. Betting against that multiplies a capital M by a factor of mean 1 at every
stream, so P(M ever ≥ 1/α) ≤ α (Ville). Both ends of the p-values are bet on; the capitals of several scores are
averaged, and an average of martingales is one.

The bet is the "simple jumper" of Vovk et al., *Retrain or not retrain: conformal test martingales for change-point
detection* (COPA 2021): f_ε(p) = 1 + ε(p − ½), the capital moving between ε by jumps of rate J; here with a
reserve, see `SimpleJumper`.
"""

from __future__ import annotations

import math
import random
from array import array
from bisect import bisect_left, bisect_right, insort
from collections.abc import Mapping, Sequence

from quantvane.errors import DataError
from quantvane.monitor.calibration import Calibration
from quantvane.monitor.records import StreamSummary

__all__ = ["FleetMartingale", "SimpleJumper"]

_BETS = (-2.0, -1.0, 0.0, 1.0, 2.0)
_JUMP = 0.01
_LARGE = 1e100  # rescaled there: no drift, however plain, overflows


class SimpleJumper:
    """Capital of one score; starts at 1.

    Bets that find nothing cost a little at every stream, and after thousands of healthy ones nothing would be left to
    show a drift with. So at stream i only 1/((i+1)(i+2)) of the initial capital is laid on the table, the rest waits:
    a mixture over the stream at which the betting starts, and still a martingale. A drift after n streams then has
    2 ln n nats to make good, not a number that grows with n.

    Args:
        reference: scores of the calibration, any order. seed: of the tie-breaking.
    """

    def __init__(self, reference: Sequence[float], seed: int = 0) -> None:
        self._bag = array("d", sorted(reference))
        self._random = random.Random(seed)
        self._staked = [0.0] * len(_BETS)
        self._waiting, self._number, self._log_scale = 1.0, 0, 0.0

    def p_value(self, score: float) -> float:
        """Conformal p-value among the scores so far, which it joins; small where the score is large."""
        bag = self._bag
        first, past = bisect_left(bag, score), bisect_right(bag, score)
        above, ties = len(bag) - past, past - first + 1
        p = (above + self._random.random() * ties) / (len(bag) + 1)
        insort(bag, score)
        return p

    def update(self, score: float) -> float:
        """Bet on one stream; ln of the capital after it."""
        p = self.p_value(score)
        fresh = self._waiting / (self._number + 2)  # what waits after i streams is 1/(i+1)
        self._waiting -= fresh
        self._number += 1
        moved = (_JUMP * sum(self._staked) + fresh) / len(_BETS)
        self._staked = [
            ((1.0 - _JUMP) * stake + moved) * (1.0 + bet * (p - 0.5))
            for stake, bet in zip(self._staked, _BETS, strict=True)
        ]
        total = sum(self._staked)
        if total > _LARGE:
            self._staked = [stake / total for stake in self._staked]
            self._waiting /= total
            self._log_scale += math.log(total)
        return self.log_capital

    @property
    def log_capital(self) -> float:
        """ln of the capital, staked and waiting."""
        return self._log_scale + math.log(sum(self._staked) + self._waiting)


class FleetMartingale:
    """Evidence that the streams are no longer those that were calibrated on.

    Args:
        calibration: its ``fleet`` scores. alpha: probability of ever crying drift while there is none.
        scores: which of them; all by default. seed: of the tie-breaking.

    Attributes:
        streams: taken in. skipped: without a usable observation. crossed: number of the stream (from 1) at which
            M first reached 1/α, or None.

    Memory is eight bytes a stream and score: the p-values are exact only against every score so far. Streams should
    enter in the order in which they started; in the order in which they end, short ones come first at the beginning.

    Raises:
        DataError: no scores in the calibration, or α out of range.
    """

    def __init__(
        self, calibration: Calibration | Mapping[str, Sequence[float]], alpha: float = 0.01,
        scores: Sequence[str] = (), seed: int = 0,
    ) -> None:  # fmt: skip
        fleet = calibration.fleet if isinstance(calibration, Calibration) else calibration
        names = list(scores) or [name for name, values in fleet.items() if len(values)]
        missing = [name for name in names if not len(fleet.get(name, ()))]
        if not names or missing or not 0.0 < alpha < 1.0:
            raise DataError(
                "fleet drift needs scores of calibration streams, and a rate",
                expected="scores of each name, 0 < alpha < 1",
                got=f"scores {sorted(fleet)}, missing {missing}, alpha {alpha!r}",
                remedy="make the calibration again with this version",
            )
        self._jumpers = {name: SimpleJumper(fleet[name], seed * 1009 + i) for i, name in enumerate(names)}
        self._limit = -math.log(alpha)
        self.alpha = alpha
        self.streams = self.skipped = 0
        self.crossed: int | None = None

    def update(self, summary: StreamSummary) -> float:
        """Take one finished stream; ln M after it.

        No bet is laid on a score that the stream does not have; a stream with none of them is skipped and counted.
        """
        values = {name: summary.means.get(name, math.nan) for name in self._jumpers}
        usable = {name: value for name, value in values.items() if not math.isnan(value)}
        if not usable:
            self.skipped += 1
            return self.log_value
        self.streams += 1
        for name, value in usable.items():
            self._jumpers[name].update(value)
        if self.crossed is None and self.drifted:
            self.crossed = self.streams
        return self.log_value

    @property
    def log_value(self) -> float:
        """ln M, M the mean of the scores' capitals."""
        logs = [jumper.log_capital for jumper in self._jumpers.values()]
        top = max(logs)
        return top + math.log(sum(math.exp(x - top) for x in logs) / len(logs))

    @property
    def drifted(self) -> bool:
        """Whether M is at least 1/α now; ``crossed`` remembers the first time."""
        return self.log_value >= self._limit
