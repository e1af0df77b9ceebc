"""What a client asked for, what the upstream is asked instead, and what the client gets to see of it. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from quantvane.monitor.proxy.wire import Rewrite

__all__ = ["Asked", "read_request"]

_SAMPLING = ("temperature", "top_p", "top_k", "min_p")


@dataclass(frozen=True, slots=True)
class Asked:
    """A completion request.

    Attributes:
        chat: True for ``/v1/chat/completions``.
        body: the request; None where it was no JSON object.
        raw: its bytes as they came.
        stream: server-sent events are wanted.
        shown: entries of the list the client wants to see; None where he did not ask for log-probabilities.
        keep_chosen: the server appends the generated token to the list where it is not in it.
        absent: the server leaves ``logprobs`` out, instead of null, where they were not asked for.
    """

    chat: bool
    body: dict[str, Any] | None
    raw: bytes
    stream: bool = False
    shown: int | None = None
    keep_chosen: bool = False
    absent: bool = False

    def upstream_body(self, k: int) -> bytes:
        """The request with the top k (at least) log-probabilities asked for; the client's own bytes if no JSON."""
        if self.body is None:
            return self.raw
        wanted = max(k, self.shown or 0)
        more = {"logprobs": True, "top_logprobs": wanted} if self.chat else {"logprobs": wanted}
        return json.dumps({**self.body, **more}).encode()

    def asks_more(self, k: int) -> bool:
        """True where the upstream is asked for something the client did not ask for."""
        return self.body is not None and (self.shown is None or self.shown < k)

    @property
    def choices(self) -> int:
        """How many choices the answer will have."""
        n = (self.body or {}).get("n")
        n = n if isinstance(n, int) and n > 0 else 1
        prompt = (self.body or {}).get("prompt")
        several = isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], int)
        return n * (len(prompt) if several and isinstance(prompt, list) else 1)

    def rewrite(self, k: int) -> Rewrite | None:
        """What becomes of ``logprobs`` on the way to the client; None where nothing does."""
        if not self.asks_more(k):
            return None
        if self.shown is None:
            hidden = None if self.absent else "null"
            return lambda value, spaced: hidden
        return self._trimmed

    def sampling(self) -> dict[str, float]:
        """The sampling settings that the request names."""
        found = {}
        for name in _SAMPLING:
            value = (self.body or {}).get(name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                found[name] = float(value)
        return found

    def for_server(self, *, keep_chosen: bool, absent: bool) -> Asked:
        """The same request to a server with these habits."""
        return replace(self, keep_chosen=keep_chosen, absent=absent)

    def _trimmed(self, value: Any, spaced: bool) -> str:
        separators = (", ", ": ") if spaced else (",", ":")
        return json.dumps(self._trim(value), separators=separators, ensure_ascii=True)

    def _trim(self, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        show = self.shown or 0
        if isinstance(value.get("content"), list):
            return {**value, "content": [self._trim_entry(entry, show) for entry in value["content"]]}
        top = value.get("top_logprobs")
        if not isinstance(top, list):
            return value
        tokens = value.get("tokens")
        names = tokens if isinstance(tokens, list) and len(tokens) == len(top) else [None] * len(top)
        return {**value, "top_logprobs": [_head(m, show, name) for m, name in zip(top, names, strict=True)]}

    def _trim_entry(self, entry: Any, show: int) -> Any:
        if not isinstance(entry, dict) or not isinstance(entry.get("top_logprobs"), list):
            return entry
        top = entry["top_logprobs"]
        kept = top[:show]
        if self.keep_chosen and show and all(e.get("token") != entry.get("token") for e in kept):
            kept = kept + [e for e in top[show:] if e.get("token") == entry.get("token")][:1]
        return {**entry, "top_logprobs": kept}


def _head(top: Any, show: int, chosen: Any) -> Any:
    """The ``show`` largest entries of a map, and the generated token where it has one."""
    if not isinstance(top, dict):
        return top
    ranked = sorted(top, key=lambda name: -top[name] if isinstance(top[name], float | int) else 0.0)
    keep = {*ranked[:show], chosen}
    return {name: value for name, value in top.items() if name in keep}


def read_request(raw: bytes, *, chat: bool) -> Asked:
    """What a request body asks for; ``body`` is None where it is no JSON object."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        return Asked(chat, None, raw)
    shown: int | None = None
    if chat:
        if body.get("logprobs"):
            shown = _count(body.get("top_logprobs"))
    elif body.get("logprobs") is not None and body["logprobs"] is not False:
        shown = _count(body["logprobs"])
    return Asked(chat, body, raw, body.get("stream") is True, shown)


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
