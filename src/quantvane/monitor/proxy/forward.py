"""Between client and upstream: requests read with a cap, headers that may pass, answers sent on. Raw ASGI."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from quantvane.monitor.proxy.flow import Flow

__all__ = [
    "BodyTooLargeError", "ClientGoneError", "Receive", "Scope", "Send", "begin", "error_body", "location_allowed",
    "read_body", "request_headers", "response_headers", "send_error", "target", "watch_client",
]  # fmt: skip

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_HOP = frozenset({
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te",
    b"trailer", b"transfer-encoding", b"upgrade",
})  # fmt: skip
_NOT_ASKED = _HOP | {b"host", b"content-length", b"expect"}


class BodyTooLargeError(Exception):
    """The request body passes its cap."""


class ClientGoneError(Exception):
    """The client left before its request was whole."""


async def read_body(receive: Receive, cap: int) -> bytes:
    """The whole request body.

    Raises:
        BodyTooLargeError, ClientGoneError
    """
    pieces, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        piece = message.get("body", b"")
        size += len(piece)
        if size > cap:
            raise BodyTooLargeError
        pieces.append(piece)
        if not message.get("more_body", False):
            return b"".join(pieces)


def declared_size(scope: Scope) -> int:
    """What Content-Length says; 0 where it says nothing usable."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0


def target(base: str, scope: Scope) -> URL | None:
    """The upstream's address of a request; None for a path that could lead anywhere else."""
    path = scope.get("raw_path") or scope["path"].encode()
    query = scope.get("query_string", b"")
    if not path.startswith(b"/") or b"\\" in path or any(c <= 0x20 or c >= 0x7F for c in path + query):
        return None
    url = URL(base + path.decode() + (f"?{query.decode()}" if query else ""), encoded=True)
    home = URL(base)
    return url if (url.scheme, url.host, url.port) == (home.scheme, home.host, home.port) else None


def request_headers(scope: Scope, *, plain: bool) -> list[tuple[str, str]]:
    """Headers for the upstream: the client's, without those of the connection.

    Args:
        plain: ask for an answer that is not compressed, so that it can be read.
    """
    named = {
        part.strip().lower() for name, value in scope["headers"] if name == b"connection" for part in value.split(b",")
    }
    dropped = _NOT_ASKED | named | ({b"accept-encoding"} if plain else set())
    kept = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in scope["headers"] if n.lower() not in dropped]
    return [*kept, ("accept-encoding", "identity")] if plain else kept


def response_headers(answer: aiohttp.ClientResponse, *, same_length: bool) -> Headers:
    """Headers for the client: the upstream's, without those of its connection."""
    named = {
        part.strip().lower().encode("latin-1")
        for value in answer.headers.getall("Connection", ())
        for part in value.split(",")
    }
    dropped = _HOP | named | (set() if same_length else {b"content-length"})
    return [(name.lower(), value) for name, value in answer.raw_headers if name.lower() not in dropped]


def location_allowed(answer: aiohttp.ClientResponse, base: str) -> str | None:
    """A redirect's place as seen from the client: a path on the same upstream; None where it leads elsewhere."""
    place = answer.headers.get("Location", "")
    parts, home = urlsplit(place), urlsplit(base)
    if not parts.scheme and not parts.netloc:
        return place
    if (parts.scheme, parts.netloc) != (home.scheme, home.netloc):
        return None
    path = parts.path.removeprefix(home.path.rstrip("/")) or "/"
    return path + (f"?{parts.query}" if parts.query else "")


async def begin(send: Send, status: int, headers: Headers) -> None:
    """Status and headers of the answer."""
    await send({"type": "http.response.start", "status": status, "headers": headers})


def error_body(message: str, kind: str, status: int) -> bytes:
    """An error in the form that OpenAI's clients read."""
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": status}}).encode()


async def send_error(send: Send, status: int, kind: str, message: str) -> None:
    """A whole answer that is an error of the proxy's own."""
    body = error_body(message, kind, status)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b'Basic realm="quantvane", charset="UTF-8"'))
    await begin(send, status, headers)
    await send({"type": "http.response.body", "body": body})


def watch_client(receive: Receive, flow: Flow) -> asyncio.Task[None]:
    """A task that stops the flow when the client leaves."""

    async def wait() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        flow.stop("client_gone")

    return asyncio.get_running_loop().create_task(wait())
