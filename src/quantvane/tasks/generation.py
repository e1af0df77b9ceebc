"""Greedy answers over a decoder: plain generation, and the replay of stored answers, in one scheduler.

Replay. A request may carry a draft: what another model answered. The draft is fed behind the prompt with logits at
every position. As far as the argmax agrees with it, the draft *is* this model's greedy answer; at the first divergence
the cache is cut and generation goes on token by token. Once an emitted token equals the draft's token at an aligned
place (the same place, or one to either side), the following draft tokens are verified together again. Every token of
the answer is the argmax of this model's own logits after its own preceding tokens: only the number of positions that
were computed together differs from plain generation. That changes rounding, so where the two largest logits lie
closer together than rounding reaches, the token may be another (`shape_noise` measures how close that is).

Source of the idea: speculative decoding with prefix verification, Leviathan, Kalman & Matias (2023), ICML.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from quantvane.engines.decoding import Decoder, Feed
from quantvane.tasks.agreement import FIRST, FRESH, REJOINED, Agreement, Company
from quantvane.tasks.cost import TOGETHER
from quantvane.tasks.greedy import NO_DRAFT, Answer, Effort, Request, top_two

__all__ = ["generate"]

# Tokens fed ahead at first; then twice as many as were right in a row. Drafts that have fitted for long are those that
# go on fitting, which one chance for all does not tell.
_PIECE = 16


class _Sequence:
    """One request at work in a slot."""

    def __init__(
        self, index: int, request: Request, slot: int, decoder: Decoder, spell: Callable[[int], bytes], fit: Agreement
    ) -> None:
        self.index, self.slot, self._fit = index, slot, fit
        self._request, self._decoder, self._spell = request, decoder, spell
        self._pending = request.prompt
        self._held = 0  # tokens in the cache
        self._draft = request.draft if decoder.can_cut else NO_DRAFT
        self._wanted = self._draft.tolist()  # whose elements compare faster than an array's
        self._run = 0  # tokens of the draft that were right in a row
        self._expect = 0 if len(self._draft) else -1  # place of the draft's next token; −1 while out of step
        self._lost = 0  # place in the draft while out of step
        self._place = FIRST
        self._ahead = 0
        self._company = Company(1, 1, True)
        self.vain = 0  # tokens fed ahead for nothing in the last call
        self._cut = False  # of a prompt longer than one call, a piece was fed
        self._emitted: list[int] = []
        self._margins: list[float] = []
        self._bytes = bytearray()
        self._tail = max((len(stop) for stop in request.stops), default=0)
        self._ends = decoder.ends
        self._begun = time.monotonic() if request.seconds != float("inf") else 0.0
        self._decodes = self._agreed = 0
        self._divergence: int | None = None
        self.finish = ""

    @property
    def prompting(self) -> bool:
        """Whether the prompt is not yet in the cache."""
        return not self._emitted

    @property
    def ahead(self) -> int:
        """Tokens of the draft in the call at work."""
        return self._ahead

    @property
    def drafted(self) -> int:
        """Tokens of the draft."""
        return len(self._draft)

    @property
    def pending(self) -> int:
        """Tokens to feed next, those of the draft aside."""
        return len(self._pending)

    def feed(self, room: int, rows: int, company: Company) -> Feed | None:
        """What to decode next in at most so many tokens and rows; None where there is no room."""
        if room < 1 or rows < 1:
            return None
        self._cut = len(self._pending) > room
        if self._cut:
            piece = Feed(self.slot, self._held, self._pending[:room], 0)
            self._pending = self._pending[room:]
            self._ahead = 0
            return piece
        self._ahead, self._company = 0, company
        tokens = self._pending
        if self._expect >= 0:
            # The draft's last token is never fed: when it is confirmed, the answer is over.
            left = min(len(self._draft) - 1, self._expect + self._request.max_tokens - len(self._emitted) - 1)
            reach = min(self._fit.reach(self._place, company), max(_PIECE, 2 * self._run))
            self._ahead = max(0, min(reach, left - self._expect, room - len(tokens), rows - 1))
            if self._ahead:
                tokens = np.concatenate([tokens, self._draft[self._expect : self._expect + self._ahead]])
        return Feed(self.slot, self._held, tokens, 1 + self._ahead)

    def absorb(self, best: Sequence[int], margins: Sequence[float], fed: int) -> None:
        """Take what one call gave: argmax and margin at each of the rows asked for."""
        self._decodes += 1
        self.vain = 0
        self._held += fed - self._ahead
        if self._cut:
            return
        ahead, before = self._ahead, self._agreed
        self._take(best, margins, ahead)
        right = min(ahead, self._agreed - before)
        self.vain = ahead - right
        self._fit.settle(self._company, ahead, right)

    def _take(self, best: Sequence[int], margins: Sequence[float], ahead: int) -> None:
        for at, (token, margin) in enumerate(zip(best, margins, strict=True)):
            agrees = self._expect >= 0 and token == self._wanted[self._expect]
            if self._expect >= 0:
                self._fit.count(self._place, agrees)
                self._place = REJOINED if self._place == REJOINED or not agrees else FRESH
            self._emit(token, margin)
            self._run = self._run + 1 if agrees else 0
            if agrees:
                self._agreed += 1
                self._expect += 1
            elif self._divergence is None and len(self._draft):
                self._divergence = len(self._emitted) - 1
            if self.finish:
                return
            if at < ahead and agrees:
                self._held += 1
                continue
            if at < ahead:
                self._decoder.drop(self.slot, self._held)
            if not agrees:
                self._align(token, self._expect >= 0)
            if self._expect >= len(self._draft):
                self._expect = -1
            self._pending = np.array([token], np.int32)
            return

    def _emit(self, token: int, margin: float) -> None:
        self._emitted.append(token)
        self._margins.append(margin)
        if token in self._ends:
            self.finish = "end"
            return
        piece = self._spell(token)
        start = max(0, len(self._bytes) - self._tail)
        self._bytes += piece
        found = [at for stop in self._request.stops if (at := self._bytes.find(stop, start)) >= 0]
        if found:
            del self._bytes[min(found) :]
            self.finish = "stop"
        elif len(self._emitted) >= self._request.max_tokens:
            self.finish = "length"
        elif self._begun and time.monotonic() - self._begun > self._request.seconds:
            self.finish = "timeout"

    def _align(self, token: int, diverged: bool) -> None:
        """Look for a place where the draft goes on after ``token``."""
        if not self._wanted:
            return
        if diverged:
            # ``token`` stands where the draft has another: replaced, or the draft's own token was left out.
            place, steps = self._expect, [1]
        else:
            place, steps = self._lost, [0, 1, -1]
        self._expect = -1
        self._lost = place + 1
        for step in steps:
            if 0 <= place + step < len(self._draft) and token == self._wanted[place + step]:
                self._expect = place + step + 1
                return

    def answer(self) -> Answer:
        return Answer(
            np.array(self._emitted, np.int32),
            np.array(self._margins, np.float64),
            self._bytes.decode(errors="replace"),
            self.finish,
            self._decodes,
            self._agreed,
            self._divergence,
        )


def _refused(request: Request, decoder: Decoder) -> Answer | None:
    longest = len(request.prompt) + min(request.max_tokens, 1)
    if len(request.prompt) and request.max_tokens > 0 and longest <= decoder.context:
        return None
    note = f"a prompt of {len(request.prompt)} tokens does not fit a context of {decoder.context}"
    if not len(request.prompt):
        note = "the prompt is empty"
    if request.max_tokens < 1:
        note = "no token may be generated"
    return Answer(NO_DRAFT, np.empty(0), "", "error", note=note)


def generate(
    decoder: Decoder,
    requests: Sequence[Request],
    spell: Callable[[int], bytes],
    *,
    serial: bool = False,
    fit: Agreement | None = None,
) -> tuple[list[Answer], Effort]:
    """Answer all requests; free slots take the next request at once.

    Args:
        spell: token → its bytes.
        serial: answers grow one sequence at a time; prompts (with their drafts) are still fed many together.
        fit: decides how far drafts are fed ahead and learns from it; by default one that knows nothing. It should know
            the cost of this decoder's calls (`measure_cost`).

    Returns:
        answers in the order of the requests, and what they cost.

    Raises:
        EngineError: decoding failed or gave NaN.
    """
    answers: list[Answer | None] = [_refused(request, decoder) for request in requests]
    waiting = [index for index, answer in enumerate(answers) if answer is None]
    # Neighbours have most in common, which a decoder may compute once.
    queue = deque(sorted(waiting, key=lambda index: requests[index].prompt.tolist()))
    free = list(range(decoder.slots))[::-1]
    active: list[_Sequence] = []
    effort, fit = Effort(), fit or Agreement()
    fit.expect([len(request.draft) for request in requests if len(request.draft)])
    while queue or active:
        while queue and free:
            index = queue.popleft()
            request = requests[index]
            cap = min(request.max_tokens, decoder.context - len(request.prompt))
            fitted = Request(request.prompt, cap, request.stops, request.draft, request.seconds)
            active.append(_Sequence(index, fitted, free.pop(), decoder, spell, fit))
        fed: list[tuple[_Sequence, Feed]] = []
        room, rows = min(decoder.capacity, TOGETHER) if serial else decoder.capacity, decoder.rows
        used, sharing = 0, 1 if serial else len(active)
        # Running answers first: they hold slots, and need one row each.
        turn = sorted(active, key=lambda s: s.prompting)
        if serial and not turn[0].prompting:
            turn = turn[:1]
        base = min(room, sum(sequence.pending for sequence in turn))
        steps = not turn[-1].prompting
        company = Company(base, sharing, steps and base == sharing)
        for sequence in turn:
            feed = sequence.feed(room, rows, company)
            if feed is None:
                continue
            fed.append((sequence, feed))
            room, rows = room - len(feed.tokens), rows - feed.rows
            used += len(feed.tokens)
            if sequence.ahead:
                company = Company(company.base + sequence.ahead, sharing, False)
            if serial:
                room -= max(0, sequence.drafted - feed.rows)
        best, margins = top_two(decoder.decode([feed for _, feed in fed]))
        effort.calls += 1
        effort.steps += not any(sequence.prompting for sequence, _ in fed)
        effort.tokens += used
        effort.ahead += sum(sequence.ahead for sequence, _ in fed)
        ids, gaps = best.tolist(), margins.tolist()
        at = 0
        for sequence, feed in fed:
            sequence.absorb(ids[at : at + feed.rows], gaps[at : at + feed.rows], len(feed.tokens))
            at += feed.rows
            effort.vain += sequence.vain
            if sequence.finish:
                decoder.drop(sequence.slot, 0)
                free.append(sequence.slot)
                answers[sequence.index] = sequence.answer()
        active = [sequence for sequence in active if not sequence.finish]
    done = [answer for answer in answers if answer is not None]
    return done, effort
