"""What happens to an answer on its way: fed to the monitors, its lists hidden again, annotated, cut off."""

from __future__ import annotations

import json
from typing import Any

from quantvane.monitor.proxy.asked import Asked
from quantvane.monitor.proxy.choice import Choice, Verdict
from quantvane.monitor.proxy.desk import Watch
from quantvane.monitor.proxy.wire import Answer, add_field, payload_span, read_answer
from quantvane.monitor.shapes import token_texts

__all__ = ["FIELD", "FINISH_REASON", "EventFilter", "WholeFilter"]

FIELD = "quantvane"
"""Name of the member that annotations are added under."""

FINISH_REASON = "content_filter"
"""``finish_reason`` of a choice that was cut off: the one value of OpenAI's that means "left out on purpose"."""

_DONE = b"[DONE]"


def _text_of(choice: dict[str, Any]) -> bool:
    """Whether a choice, or a piece of one, holds generated text (or a call, or reasoning)."""
    if choice.get("text"):
        return True
    for holder in (choice.get("delta"), choice.get("message")):
        if isinstance(holder, dict) and any(
            holder.get(name) for name in ("content", "tool_calls", "function_call", "reasoning_content", "reasoning")
        ):
            return True
    return False


def _index(choice: dict[str, Any], place: int) -> int:
    index = choice.get("index", place)
    return index if isinstance(index, int) and 0 <= index < 4096 else place


class EventFilter:
    """The events of one stream, one at a time.

    Args:
        watch: where it is recorded. asked: what the client wants. k: entries the upstream was asked for.
        action: ``observe``, ``annotate`` or ``truncate``.

    Attributes:
        started: a piece of an answer has come. over: nothing is left to send. ended: ``[DONE]`` has come.
        error: the upstream sent an error in the stream.
    """

    def __init__(self, watch: Watch, asked: Asked, k: int, action: str) -> None:
        self._watch, self._choices = watch, asked.choices
        self._rewrite = asked.rewrite(k)
        self._annotate, self._truncate = action != "observe", action == "truncate"
        self._cut: set[int] = set()
        self._last: dict[str, Any] = {}
        self.started = self.over = self.ended = self.error = False

    def event(self, raw: bytes) -> bytes:
        """What the client gets for an event; its own bytes wherever nothing must be changed."""
        span = payload_span(raw)
        if span is None:
            return raw
        payload = raw[span[0] : span[1]]
        if payload == _DONE:
            self.ended = True
            return raw
        try:
            answer = read_answer(payload.decode(), self._rewrite)
        except (ValueError, RecursionError):
            self._unreadable()
            return raw
        text = self._answer(answer)
        if text is None:
            return b""
        if text is answer.text and self._rewrite is None:
            return raw
        return raw[: span[0]] + text.encode() + raw[span[1] :]

    def _unreadable(self) -> None:
        """A piece that nobody could read may have held a token: it counts as one that was not seen."""
        watch = self._watch
        watch.desk.fault("chunk_not_json", watch)
        for choice in list(watch.choices.values()) or [watch.choice(0)]:
            if not choice.finished:
                watch.feed(choice, None, text=True)

    def _answer(self, answer: Answer) -> str | None:
        document = answer.document
        choices = document.get("choices")
        if not isinstance(choices, list):
            self.error = self.error or "error" in document
            return answer.text
        if not choices:
            return answer.text
        self.started, self._last = True, document
        watch = self._watch
        if not watch.model:
            watch.model = str(document.get("model") or "")[:200]
        verdicts: dict[str, Any] = {}
        cut_now = False
        for place, choice in enumerate(choices):
            if not isinstance(choice, dict):
                continue
            index = _index(choice, place)
            held = watch.choice(index)
            if index in self._cut:
                continue
            value = answer.logprobs[place] if place < len(answer.logprobs) else None
            passage = watch.feed(held, value, text=_text_of(choice))
            if passage is not None and self._truncate:
                self._cut.add(index)
                cut_now = True
                verdicts[str(index)] = watch.finish(held, "truncated").public(watch.desk.calibration)
            elif choice.get("finish_reason") is not None:
                verdicts[str(index)] = watch.finish(held, "complete").public(watch.desk.calibration)
        if cut_now:
            return self._without_cut(answer, verdicts)
        if self._cut and all(_index(c, i) in self._cut for i, c in enumerate(choices) if isinstance(c, dict)):
            return None
        if verdicts and self._annotate:
            return add_field(answer.text, FIELD, {"choices": verdicts})
        return answer.text

    def _without_cut(self, answer: Answer, verdicts: dict[str, Any]) -> str:
        """The event at a first passage: the piece that alarms is left out and its choice ends."""
        document = json.loads(answer.text)
        for place, choice in enumerate(document["choices"]):
            if isinstance(choice, dict) and _index(choice, place) in self._cut:
                choice["finish_reason"] = FINISH_REASON
                if "text" in choice:
                    choice["text"] = ""
                if "delta" in choice:
                    choice["delta"] = {}
                if choice.get("logprobs") is not None:
                    choice["logprobs"] = None
        document[FIELD] = {"choices": verdicts}
        self.over = sum(c.finished for c in self._watch.choices.values()) >= self._choices
        return json.dumps(document, ensure_ascii=False)

    def closing(self) -> bytes:
        """What ends a stream that was cut off."""
        return b"data: [DONE]\n\n"


class WholeFilter:
    """A whole answer.

    Attributes:
        verdicts: per choice, in their order.
    """

    def __init__(self, watch: Watch, asked: Asked, k: int, action: str) -> None:
        self._watch, self._asked, self._k, self._action = watch, asked, k, action
        self.verdicts: list[tuple[Choice, Verdict]] = []

    def text(self, raw: str) -> str:
        """What the client gets.

        Raises:
            ValueError: no JSON object.
        """
        answer = read_answer(raw, self._asked.rewrite(self._k))
        watch, choices = self._watch, answer.document.get("choices")
        watch.model = str(answer.document.get("model") or "")[:200]
        cuts: dict[int, int] = {}
        for place, choice in enumerate(choices if isinstance(choices, list) else []):
            if not isinstance(choice, dict):
                continue
            held = watch.choice(_index(choice, place))
            value = answer.logprobs[place] if place < len(answer.logprobs) else None
            passage = watch.feed(held, value, text=_text_of(choice))
            if passage is not None and self._action == "truncate":
                cuts[place] = passage
            self.verdicts.append((held, watch.finish(held, "truncated" if place in cuts else "complete")))
        if not cuts:
            return answer.text
        document = json.loads(answer.text)
        for place, tokens in cuts.items():
            _cut(document["choices"][place], answer.logprobs[place], tokens)
        return json.dumps(document, ensure_ascii=False)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """``x-quantvane-label`` (the gravest of the choices) and ``x-quantvane`` (all of it, as JSON)."""
        if self._action == "observe" or not self.verdicts:
            return []
        labels = [verdict.label for _, verdict in self.verdicts]
        grave = next((name for name in ("ALARM", "INVALID", "WATCH", "DEGENERATE") if name in labels), labels[0])
        public = {str(c.index): v.public(self._watch.desk.calibration) for c, v in self.verdicts[:16]}
        told = json.dumps({"choices": public}, separators=(",", ":"), allow_nan=False)
        return [(b"x-quantvane-label", grave.encode()), (b"x-quantvane", told.encode())]


def _cut(choice: dict[str, Any], logprobs: object, tokens: int) -> None:
    """End a whole choice before its ``tokens``-th token; its text is cut where the tokens spell it, else withheld."""
    head = "".join(token_texts(logprobs)[:tokens])
    choice["finish_reason"] = FINISH_REASON
    message = choice.get("message")
    holder, name = (message, "content") if isinstance(message, dict) else (choice, "text")
    whole = holder.get(name)
    if isinstance(whole, str):
        holder[name] = head if whole.startswith(head) else ""
    if isinstance(message, dict):
        message.pop("tool_calls", None)  # a call cut in the middle is no call
    if choice.get("logprobs") is not None:
        choice["logprobs"] = None
