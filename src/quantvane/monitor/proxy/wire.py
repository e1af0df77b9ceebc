"""Server-sent events and JSON as bytes: taking log-probabilities out without touching anything else. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from json.decoder import JSONDecodeError
from typing import Any

import orjson

__all__ = ["Answer", "EventSplitter", "add_field", "payload_span", "read_answer"]

_END = re.compile(rb"\r\n\r\n|\n\r?\n|\r\r")
_KEY = re.compile(r'"logprobs"(\s*):\s*')
_DATA = re.compile(rb"(?m)^data: ?")
_scan = json.JSONDecoder().raw_decode

Rewrite = Callable[[Any, bool], str | None]
"""(value of ``logprobs``, True where keys and values are spaced) → its new JSON text, or None to drop the key."""


class EventSplitter:
    """Bytes in, whole events out, each with its blank line, nothing lost.

    Attributes:
        held: bytes of the event that has not ended yet.
    """

    def __init__(self) -> None:
        self._rest = bytearray()

    @property
    def held(self) -> int:
        return len(self._rest)

    def feed(self, data: bytes) -> list[bytes]:
        """The events that ``data`` completes."""
        if not self._rest and data.endswith(b"\n\n") and data.find(b"\n\n") == len(data) - 2 and b"\r" not in data:
            return [data]
        before = len(self._rest)
        self._rest += data
        out, start, at = [], 0, max(0, before - 3)
        # Not finditer: while such an iterator lives, the buffer cannot be cut.
        while (match := _END.search(self._rest, at)) is not None:
            at = match.end()
            out.append(bytes(self._rest[start:at]))
            start = at
        if start:
            del self._rest[:start]
        return out

    def flush(self) -> bytes:
        """What never ended."""
        rest = bytes(self._rest)
        self._rest.clear()
        return rest


def payload_span(event: bytes) -> tuple[int, int] | None:
    """(begin, end) of an event's only ``data:`` line without its newline; None for comments and other events."""
    if event.startswith(b"data: "):
        begin = 6
    else:
        match = _DATA.search(event)
        if match is None:
            return None
        begin = match.end()
    end = event.find(b"\n", begin)
    end = len(event) if end < 0 else end
    return begin, end - 1 if event[end - 1 : end] == b"\r" else end


@dataclass(frozen=True, slots=True)
class Answer:
    """One JSON document of a server.

    Attributes:
        document: parsed, every ``logprobs`` null.
        logprobs: per choice, what stood there; None where nothing did.
        text: for the client.
    """

    document: dict[str, Any]
    logprobs: list[Any]
    text: str


def read_answer(text: str, rewrite: Rewrite | None) -> Answer:
    """Parse an answer and rewrite the ``logprobs`` of its choices in place, byte for byte elsewhere.

    The large part, the lists, is parsed once; what is left is small.

    Args:
        rewrite: None where the text is to stay as it is.

    Raises:
        ValueError: no JSON object.
    """
    bare: list[str] = []
    shown: list[str] = []
    values: list[Any] = []
    at = 0
    match = _KEY.search(text)
    while match is not None:
        value, end = _value(text, match.end())
        values.append(value)
        bare.append(text[at : match.end()])
        bare.append("null")
        if rewrite is not None:
            new = None if value is None else rewrite(value, _spaced(text, match))
            if value is None:
                shown.append(text[at:end])
            elif new is None:
                piece, end_of_pair = _without_pair(text, at, match.start(), end)
                shown.append(piece)
                bare.append(text[end:end_of_pair])
                end = end_of_pair
            else:
                shown.append(text[at : match.end()])
                shown.append(new)
        at = end
        match = _KEY.search(text, at)
    if not values:
        return Answer(_object(text), [], text)
    tail = text[at:]
    document = _object("".join(bare) + tail)
    choices = _choices(document)
    holders = [i for i, choice in enumerate(choices) if "logprobs" in choice]
    if len(holders) != len(values):
        return _slowly(text, rewrite)
    aligned: list[Any] = [None] * len(choices)
    for i, value in zip(holders, values, strict=True):
        aligned[i] = value
    return Answer(document, aligned, text if rewrite is None else "".join(shown) + tail)


def _value(text: str, start: int) -> tuple[Any, int]:
    """The JSON value at ``start``, and where it ends.

    A scanner that says where a value ends is three times as slow as a parser that must be told. So the end is
    guessed from what follows in the servers' answers; a guess is right if and only if the piece is a whole value.
    """
    if text.startswith("null", start):
        return None, start + 4
    after = text.find('"finish_reason"', start)
    end = text.rfind(",", start, after) if after > 0 else text.rfind("}]", start)
    if end > start:
        try:
            return orjson.loads(text[start:end]), end
        except orjson.JSONDecodeError:
            pass  # several choices in one answer, another order of keys, NaN
    try:
        return _scan(text, start)
    except JSONDecodeError:
        raise ValueError("the server's answer is no JSON") from None


def _spaced(text: str, match: re.Match[str]) -> bool:
    return text[match.end() - 1] == " "


def _without_pair(text: str, at: int, key: int, end: int) -> tuple[str, int]:
    """Text from ``at`` up to the key, and where to go on, so that a key, its value and one comma vanish."""
    after = end
    while after < len(text) and text[after] in " \t\r\n":
        after += 1
    if after < len(text) and text[after] == ",":
        after += 1
        while after < len(text) and text[after] in " \t\r\n":
            after += 1
        return text[at:key], after
    before = text[at:key].rstrip()
    return (before[:-1] if before.endswith(",") else text[at:key]), end


def _slowly(text: str, rewrite: Rewrite | None) -> Answer:
    """For an answer in which something else is called ``logprobs`` too: parsed and printed anew."""
    document = _object(text)
    choices = _choices(document)
    values = [choice.get("logprobs") for choice in choices]
    shown = text
    if rewrite is not None:
        for choice, value in zip(choices, values, strict=True):
            if value is not None:
                new = rewrite(value, False)
                if new is None:
                    del choice["logprobs"]
                else:
                    choice["logprobs"] = json.loads(new)
        shown = json.dumps(document, separators=(",", ":"), ensure_ascii=text.isascii())
    for choice in choices:
        choice["logprobs"] = None
    return Answer(document, values, shown)


def _object(text: str) -> dict[str, Any]:
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError:
        document = json.loads(text)  # NaN and integers past 64 bits
    if not isinstance(document, dict):
        raise ValueError("the server's answer is no JSON object")
    return document


def _choices(document: dict[str, Any]) -> list[dict[str, Any]]:
    choices = document.get("choices")
    return [c for c in choices if isinstance(c, dict)] if isinstance(choices, list) else []


def add_field(text: str, name: str, value: Any) -> str:
    """``text``, a JSON object, with one more member at its end, everything else byte for byte."""
    end = text.rindex("}")
    comma = "" if text[:end].rstrip().endswith("{") else ","
    return f"{text[:end]}{comma}{json.dumps(name)}:{json.dumps(value, allow_nan=False)}{text[end:]}"
