"""What decode calls cost by the tokens in them: measured, so that looking ahead is priced in a decoder's own time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from quantvane.engines.decoding import Decoder, Feed, Tokens
from quantvane.tasks.greedy import Request, top_two
from quantvane.types import FloatArray

__all__ = ["LONGEST", "TOGETHER", "UNMEASURED", "CallCost", "measure_cost"]

LONGEST = 512
"""Tokens up to which a call is priced; none is fed further ahead than that."""

TOGETHER = 256
"""Tokens verified together, drafts counted whole, while answers grow one at a time.

The sequences of a call see each other's cache as masked cells, which costs small models more than a longer call saves,
and long answers that have to go on would each do so beside the cells of all others.
"""

_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_ROUNDS = (4, 16)
_SECONDS = 0.25  # what a calibration may take, where the fewest rounds take less


@dataclass(frozen=True)
class CallCost:
    """Seconds of a decode call with n tokens and a logit row at each.

    An engine may do a call of the last one's shape in less time, because it need not plan anew. So a *step* (a token
    for each sequence, call after call) has a price of its own, and a call of another shape among steps costs besides
    what it adds to the step behind it.

    Attributes:
        sequences: s, those whose tokens made up a call.
        sizes: tokens, rising, at least two. seconds: of a call of n tokens behind a step, linear in between and
            beyond them.
        step: seconds of a step of all s behind a step. after: of a step behind a call of another shape.
        full: of a step behind a step while the cache holds the whole drafts, instead of half of them. Sequences that
            share a cache and go out of step keep it as full as that.
        rounds: how often each was measured. took: seconds that measuring took.
    """

    sequences: int
    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    step: float
    after: float
    full: float
    rounds: int = 0
    took: float = field(default=0.0, compare=False)

    @cached_property
    def _table(self) -> FloatArray:
        n = np.arange(2 * LONGEST + 1, dtype=np.float64)
        # Never falling, since a call could be filled up to one that was faster.
        x, y = np.array(self.sizes, np.float64), np.minimum.accumulate(np.array(self.seconds, np.float64)[::-1])[::-1]
        found: FloatArray = np.interp(n, x, y)
        # Beyond them by the slope of the outer half, which a single measurement moves little.
        at = min(len(x) // 2, len(x) - 2)
        beyond = n > x[-1]
        found[beyond] = y[-1] + (n[beyond] - x[-1]) * (y[-1] - y[at]) / (x[-1] - x[at])
        return found

    def call(self, tokens: int) -> float:
        """Seconds of a call of another shape than the last one's."""
        return float(self._table[min(tokens, 2 * LONGEST)])

    def token(self, sharing: int) -> float:
        """Seconds that a token costs in a step that ``sharing`` sequences share."""
        if sharing == self.sequences:
            return self.step / sharing
        return self.call(sharing) / self.call(self.sequences) * self.step / sharing

    def extra(self, base: int, *, steady: bool) -> FloatArray:
        """(`LONGEST`,) seconds that 1, 2, … tokens add to a call of ``base`` tokens.

        Args:
            steady: without them the call is a step behind a step, and steps follow.
        """
        base = min(base, LONGEST)
        longer = self._table[base + 1 : base + LONGEST + 1]
        if not steady:
            found: FloatArray = longer - self._table[base]
        else:
            found = np.maximum(0.0, longer - base * self.token(base)) + max(0.0, self.after - self.step)
        return found

    @property
    def disorder(self) -> float:
        """By what share a step costs more where sequences went out of step, ≥ 0."""
        return max(0.0, self.full / self.step - 1)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, held: Mapping[str, Any]) -> CallCost:
        return cls(**{**held, "sizes": tuple(held["sizes"]), "seconds": tuple(held["seconds"])})


UNMEASURED = CallCost(1, (1, 2), (2.0, 3.0), 2.0, 2.0, 2.0)
"""Where nothing was measured: a call costs as much as a token in it, whatever its shape."""


def measure_cost(decoder: Decoder, requests: Sequence[Request], *, serial: bool = False) -> CallCost:
    """Time calls of several sizes on a decoder whose slots are held by requests and halves of their drafts.

    The tokens of a call belong to as many sequences as there are slots and requests (one where ``serial``: answers
    grow alone there, beside the cache of others). Each size is measured between two steps, in rounds through all
    sizes, so that a slow moment touches all of them. What was fed is dropped; at the end every slot is empty.

    Args:
        decoder: with free slots. requests: some that fit it.

    Returns:
        the least of the rounds, since other work on a machine only adds; `UNMEASURED` where nothing fits or nothing
        can be dropped.

    Raises:
        EngineError: decoding failed or gave NaN.
    """
    begun = time.perf_counter()
    # Room is left for the token of a step.
    whole = [np.concatenate([r.prompt, r.draft]).astype(np.int32)[: decoder.context - 1] for r in requests]
    halves = [len(r.prompt) + len(r.draft) // 2 for r in requests]
    fits = [i for i, tokens in enumerate(whole) if 0 < halves[i] <= len(tokens) and halves[i] + 2 <= decoder.context]
    fits = fits[: decoder.slots]
    if serial:
        fits = [i for n, i in enumerate(fits) if sum(len(whole[j]) for j in fits[:n]) < TOGETHER]
    fits.sort(key=lambda i: whole[i].tolist())  # neighbours have most in common
    sequences = 1 if serial else len(fits)
    # Longer calls are those of prompts, which begin beside fewer cells than are held here.
    most = min(decoder.capacity, decoder.rows, LONGEST, max(64, 4 * sequences))
    if not fits or not decoder.can_cut:
        return UNMEASURED
    held = [whole[i][: halves[i]] for i in fits]
    room = decoder.context - max(map(len, held))
    sizes = tuple(n for n in _SIZES if sequences <= 4 * n and n <= most and -(-n // min(n, sequences)) <= room)
    if len(sizes) < 2:
        return UNMEASURED
    slots = _Slots(decoder, held)
    spent: dict[int, list[float]] = {n: [] for n in sizes}
    steps: list[float] = []
    after: list[float] = []
    for rounds in range(1, _ROUNDS[1] + 1):
        for n in sizes:
            slots.time(sequences, sequences)
            steps.append(slots.time(sequences, sequences))
            spent[n].append(slots.time(n, sequences))
            after.append(slots.time(sequences, sequences))
        if rounds >= _ROUNDS[0] and time.perf_counter() - begun > _SECONDS:
            break
    slots.clear()
    slots = _Slots(decoder, [whole[i] for i in fits])
    full = [slots.time(sequences, sequences) for _ in range(4 * rounds)]
    slots.clear()
    least = tuple(min(spent[n]) for n in sizes)
    took = time.perf_counter() - begun
    return CallCost(sequences, sizes, least, min(steps), min(after), min(full), rounds, took)


class _Slots:
    """Slots 0, 1, … of a decoder, each holding some tokens."""

    def __init__(self, decoder: Decoder, held: Sequence[Tokens]) -> None:
        self._decoder, self._held = decoder, held
        feeds: list[Feed] = []
        room = decoder.capacity
        for slot, tokens in enumerate(held):
            for at in range(0, len(tokens), decoder.capacity):
                piece = tokens[at : at + decoder.capacity]
                if len(piece) > room or at or len(feeds) == decoder.rows:
                    decoder.decode(feeds)
                    feeds, room = [], decoder.capacity
                feeds.append(Feed(slot, at, piece, 1))
                room -= len(piece)
        decoder.decode(feeds)

    def time(self, tokens: int, most: int) -> float:
        """Seconds of a call of so many tokens, spread over ``most`` sequences at most; they are dropped again."""
        owners = min(tokens, most)
        feeds = []
        for slot in range(owners):
            n = tokens // owners + (slot < tokens % owners)
            feeds.append(Feed(slot, len(self._held[slot]), np.resize(self._held[slot], n), n))
        begun = time.perf_counter()
        top_two(self._decoder.decode(feeds))[0].tolist()
        spent = time.perf_counter() - begun
        for feed in feeds:
            self._decoder.drop(feed.slot, feed.start)
        return spent

    def clear(self) -> None:
        for slot in range(len(self._held)):
            self._decoder.drop(slot, 0)
