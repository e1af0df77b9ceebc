"""Log-probabilities as servers print them, read as observations.

Two shapes are in use. Chat completions carry ``{"content": [{"token", "logprob", "bytes", "top_logprobs": [...]}]}``
(llama-server also under ``/v1/completions``); legacy completions carry parallel lists ``tokens``,
``token_logprobs``, ``top_logprobs``, the last one of token → log-probability maps.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from typing import Any

from quantvane.monitor.records import Observation

__all__ = ["observations", "token_texts"]

_NAN = math.nan
_ABOVE_ONE = 1e-3  # a log-probability above this is none; below it, a rounded ln 1
_WHOLE = 1e-4  # a list that leaves no more mass than this misses nothing that matters


def observations(logprobs: object, k: int) -> list[Observation | None]:
    """One observation a token, in order; None for a token whose list is absent or cannot be trusted.

    A list is trusted when it holds the k largest entries. Servers differ in whether they append the generated
    token to the list when it is not among the k (llama-cpp-python, vLLM), or put it in the place of the k-th
    (vLLM's chat endpoint). So a generated token that is the list's smallest entry is always dropped: what
    remains is certainly the head of the distribution, at the cost of one entry where it was the k-th anyway.
    A list shorter than k that leaves mass unlisted misses entries from the middle (token texts that collide as
    keys of a map), and is no observation.

    Args:
        logprobs: the value of a choice's ``logprobs``; anything else than the two shapes gives no tokens.
        k: entries to use of each list; what is asked of the server.

    Cost: O(tokens · k).
    """
    if not isinstance(logprobs, dict):
        return []
    content = logprobs.get("content")
    if isinstance(content, list):
        return [_of_entry(entry, k) for entry in content]
    top, chosen, tokens = (logprobs.get(name) for name in ("top_logprobs", "token_logprobs", "tokens"))
    if isinstance(top, list):
        return [_of_map(top[i], _at(chosen, i), _at(tokens, i), k) for i in range(len(top))]
    # A server that knows the generated token's probability alone: the tokens are there, the lists are not.
    return [None] * len(chosen) if isinstance(chosen, list) else []


def token_texts(logprobs: object) -> list[str]:
    """The texts of the generated tokens, in order; empty where the shape is unknown."""
    if not isinstance(logprobs, dict):
        return []
    content = logprobs.get("content")
    if isinstance(content, list):
        return [str(e.get("token", "")) if isinstance(e, dict) else "" for e in content]
    tokens = logprobs.get("tokens")
    return [str(t) for t in tokens] if isinstance(tokens, list) else []


def _at(values: object, i: int) -> Any:
    return values[i] if isinstance(values, list) and i < len(values) else None


def _key(entry: dict[str, Any]) -> Hashable:
    """The token's text, or its bytes where the text hides them."""
    text = entry["token"]
    if "\ufffd" in text or not text:
        raw = entry.get("bytes")
        if raw:
            return tuple(raw)
        if "id" in entry:
            return int(entry["id"])
    return str(text)


def _of_entry(entry: object, k: int) -> Observation | None:
    try:
        top = entry["top_logprobs"]  # type: ignore[index]
        values = [e["logprob"] for e in top]
        keys: list[Hashable] = [e["token"] for e in top]
        if "\ufffd" in "".join(keys) or "" in keys:  # type: ignore[arg-type]
            keys = [_key(e) for e in top]
        chosen = entry["logprob"]  # type: ignore[index]
        return _observation(keys, values, _key(entry), chosen, k)  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError, IndexError):
        return None


def _of_map(top: object, chosen: object, token: object, k: int) -> Observation | None:
    if not isinstance(top, dict):
        return None
    try:
        return _observation(list(top), list(top.values()), token, chosen, k)
    except (TypeError, ValueError):
        return None


def _observation(
    keys: list[Hashable], values: list[float], token: object, chosen: object, k: int
) -> Observation | None:
    """Sorted, cut to k and checked; raises TypeError where a value is no number."""
    n = len(values)
    if not n:
        return None
    ordered = sorted(values, reverse=True)
    if ordered != values:
        order = sorted(range(n), key=values.__getitem__, reverse=True)
        keys, values = [keys[i] for i in order], ordered
    total = sum(values)
    if total != total or not values[0] <= _ABOVE_ONE:
        return None
    if n < k and 1.0 - sum(map(math.exp, values)) > _WHOLE:
        return None
    if n > 1 and keys[-1] == token:
        keys, values = keys[:-1], values[:-1]
    if len(values) > k:
        keys, values = keys[:k], values[:k]
    if len(set(keys)) < len(keys):
        keys = list(_told_apart(keys))
    known = chosen if isinstance(chosen, float | int) and not isinstance(chosen, bool) else _NAN
    return Observation(tuple(values), tuple(keys), float(known))


def _told_apart(keys: Iterable[Hashable]) -> Iterable[Hashable]:
    """Tokens of one text, numbered by rank: their texts alone would merge them."""
    seen: dict[Hashable, int] = {}
    for key in keys:
        count = seen[key] = seen.get(key, -1) + 1
        yield (key, count) if count else key
