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
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from quantvane.engines.decoding import Decoder, Feed, Tokens
from quantvane.errors import EngineError
from quantvane.tasks.agreement import FIRST, FRESH, REJOINED, Agreement
from quantvane.types import FloatArray

__all__ = ["NO_DRAFT", "Answer", "Effort", "Request", "ambiguous", "generate", "shape_noise", "top_two"]

NO_DRAFT: Tokens = np.empty(0, np.int32)
# Tokens verified together, drafts counted whole, while answers grow one at a time. The sequences of a call see each
# other's cache as masked cells, which costs small models more than a longer call saves, and long answers that have to
# go on would each do so beside the cells of all others.
_TOGETHER = 256


@dataclass(frozen=True, slots=True)
class Request:
    """One answer that is wanted.

    Attributes:
        prompt: (n,) int32, n ≥ 1. max_tokens: cap of the answer.
        stops: the answer ends before the first of these byte strings.
        draft: the answer's tokens as another model gave them; empty for plain generation.
        seconds: time allowed, from the first feed on; inf for none.
    """

    prompt: Tokens
    max_tokens: int
    stops: tuple[bytes, ...] = ()
    draft: Tokens = field(default_factory=lambda: NO_DRAFT)
    seconds: float = float("inf")


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model answered.

    Attributes:
        tokens: (n,) int32 as emitted, with the token that ended the answer. margins: (n,) difference of the two
            largest logits at each.
        text: the answer up to its stop string or end token.
        finish: "stop", "end", "length" (cap), "timeout", or "error" with a note.
        decodes: decode calls the answer took part in. agreed: emitted tokens that were taken from the draft.
        divergence: index of the first token that is not the draft's; None where there is none (or no draft).
    """

    tokens: Tokens
    margins: FloatArray
    text: str
    finish: str
    decodes: int = 0
    agreed: int = 0
    divergence: int | None = None
    note: str = ""


@dataclass(slots=True)
class Effort:
    """What a run of the scheduler cost: decode calls, those of them that fed no prompt, tokens fed."""

    calls: int = 0
    steps: int = 0
    tokens: int = 0


def top_two(logits: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """Argmax (the lowest id of several) and the difference of the two largest logits, each (T,), of (T, V).

    The array is changed and restored.

    Raises:
        EngineError: NaN among the logits.
    """
    rows = np.arange(len(logits))
    best = logits.argmax(axis=1)
    first = logits[rows, best]
    logits[rows, best] = -np.inf
    second = logits.max(axis=1)
    logits[rows, best] = first
    margin = first.astype(np.float64) - second
    if np.isnan(first).any() or np.isnan(second).any():
        raise EngineError(
            "logits are NaN",
            expected="finite logits",
            got=f"NaN in {int((np.isnan(first) | np.isnan(second)).sum())} of {len(logits)} rows",
            remedy="the model file may be damaged, or the settings overflow (flash_attn=off, cache_type_k=f32)",
        )
    return best, margin


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
        self._expect = 0 if len(self._draft) else -1  # place of the draft's next token; −1 while out of step
        self._lost = 0  # place in the draft while out of step
        self._place = FIRST
        self._ahead = 0
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
    def drafted(self) -> int:
        """Tokens of the draft."""
        return len(self._draft)

    def feed(self, room: int, rows: int, sharing: int) -> Feed | None:
        """What to decode next in at most so many tokens and rows; None where there is no room."""
        if room < 1 or rows < 1:
            return None
        self._cut = len(self._pending) > room
        if self._cut:
            piece = Feed(self.slot, self._held, self._pending[:room], 0)
            self._pending = self._pending[room:]
            self._ahead = 0
            return piece
        self._ahead = 0
        tokens = self._pending
        if self._expect >= 0:
            # The draft's last token is never fed: when it is confirmed, the answer is over.
            left = min(len(self._draft) - 1, self._expect + self._request.max_tokens - len(self._emitted) - 1)
            reach = self._fit.reach(self._place, sharing)
            self._ahead = max(0, min(reach, left - self._expect, room - len(tokens), rows - 1))
            if self._ahead:
                tokens = np.concatenate([tokens, self._draft[self._expect : self._expect + self._ahead]])
        return Feed(self.slot, self._held, tokens, 1 + self._ahead)

    def absorb(self, best: Sequence[int], margins: Sequence[float], fed: int) -> None:
        """Take what one call gave: argmax and margin at each of the rows asked for."""
        self._decodes += 1
        self._held += fed - self._ahead
        if self._cut:
            return
        ahead = self._ahead
        for at, (token, margin) in enumerate(zip(best, margins, strict=True)):
            agrees = self._expect >= 0 and token == int(self._draft[self._expect])
            if self._expect >= 0:
                self._fit.count(self._place, agrees)
                self._place = REJOINED if self._place == REJOINED or not agrees else FRESH
            self._emit(token, margin)
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
        if not len(self._draft):
            return
        if diverged:
            # ``token`` stands where the draft has another: replaced, or the draft's own token was left out.
            place, steps = self._expect, [1]
        else:
            place, steps = self._lost, [0, 1, -1]
        self._expect = -1
        self._lost = place + 1
        for step in steps:
            if 0 <= place + step < len(self._draft) and token == int(self._draft[place + step]):
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
) -> tuple[list[Answer], Effort]:
    """Answer all requests; free slots take the next request at once.

    Args:
        spell: token → its bytes.
        serial: answers grow one sequence at a time; prompts (with their drafts) are still fed many together.

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
    effort, fit = Effort(), Agreement()
    while queue or active:
        while queue and free:
            index = queue.popleft()
            request = requests[index]
            cap = min(request.max_tokens, decoder.context - len(request.prompt))
            fitted = Request(request.prompt, cap, request.stops, request.draft, request.seconds)
            active.append(_Sequence(index, fitted, free.pop(), decoder, spell, fit))
        fed: list[tuple[_Sequence, Feed]] = []
        room, rows = min(decoder.capacity, _TOGETHER) if serial else decoder.capacity, decoder.rows
        # Running answers first: they hold slots, and need one row each.
        turn = sorted(active, key=lambda s: s.prompting)
        if serial and not turn[0].prompting:
            turn = turn[:1]
        for sequence in turn:
            feed = sequence.feed(room, rows, 1 if serial else len(active))
            if feed is None:
                continue
            fed.append((sequence, feed))
            room, rows = room - len(feed.tokens), rows - feed.rows
            if serial:
                room -= max(0, sequence.drafted - feed.rows)
        best, margins = top_two(decoder.decode([feed for _, feed in fed]))
        effort.calls += 1
        effort.steps += not any(sequence.prompting for sequence, _ in fed)
        effort.tokens += sum(len(feed.tokens) for _, feed in fed)
        ids, gaps = best.tolist(), margins.tolist()
        at = 0
        for sequence, feed in fed:
            sequence.absorb(ids[at : at + feed.rows], gaps[at : at + feed.rows], len(feed.tokens))
            at += feed.rows
            if sequence.finish:
                decoder.drop(sequence.slot, 0)
                free.append(sequence.slot)
                answers[sequence.index] = sequence.answer()
        active = [sequence for sequence in active if not sequence.finish]
    done = [answer for answer in answers if answer is not None]
    return done, effort


def shape_noise(plain: Sequence[Answer], batched: Sequence[Answer]) -> float:
    """By how much the margin of the two largest logits changed with the shape of the batches.

    Compared up to the first token that differs, and there the margins add up, since the two tokens changed places.
    This is the largest change among these answers: a measurement, no bound.

    Args:
        plain, batched: the same requests answered by one model in two ways.
    """
    worst = 0.0
    for a, b in zip(plain, batched, strict=True):
        n = min(len(a.tokens), len(b.tokens))
        differs = np.flatnonzero(a.tokens[:n] != b.tokens[:n])
        same = int(differs[0]) if len(differs) else n
        if same:
            worst = max(worst, float(np.abs(a.margins[:same] - b.margins[:same]).max()))
        if len(differs):
            worst = max(worst, float(a.margins[same] + b.margins[same]))
    return worst


def ambiguous(answer: Answer, noise: float) -> list[int]:
    """Positions of an answer whose token another shape of batch could have decided otherwise: margin ≤ noise."""
    return [int(at) for at in np.flatnonzero(answer.margins <= noise)] if noise > 0 else []
