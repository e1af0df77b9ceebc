"""The HTTP server: uvicorn with a capped request head, and sockets that let go of clients that do not read."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from quantvane.errors import OutputError
from quantvane.monitor.proxy.settings import WatchSettings

__all__ = ["listen", "serve"]

_HEAD_BYTES = 64 << 10
_HEAD_SECONDS = 30.0


class _Capped(HttpToolsProtocol):
    """Refuses a request head that is too large or does not come; uvicorn's own has a limit for neither."""

    _head = 0
    _in_head = True
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._timer = self.loop.call_later(_HEAD_SECONDS, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)
        # After a reset uvicorn leaves its keep-alive timer running, which holds all of the connection for a minute.
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head += min(len(data), _HEAD_BYTES + 1)
        super().data_received(data)
        if self._in_head and self._head > _HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The request head is too large.")

    def on_headers_complete(self) -> None:
        self._in_head, self._head = False, 0
        self._stop_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_head = True
        super().on_message_complete()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def listen(settings: WatchSettings) -> socket.socket:
    """A bound socket.

    Raises:
        OutputError: the address cannot be had.
    """
    try:
        place = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = socket.socket(place[0], socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # accepted sockets inherit it
            seconds = settings.limits.idle_seconds + 60.0
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))
        sock.bind(place[4])
    except OSError as problem:
        raise OutputError(
            f"cannot listen on {settings.host}:{settings.port}",
            expected="an address of this machine and a free port",
            got=problem.strerror or str(problem),
            remedy="choose another --host or --port",
        ) from None
    sock.setblocking(False)
    return sock


def _calm_collector() -> None:
    """Fewer passes of the cycle collector: a token's lists are hundreds of objects, and none is part of a cycle."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


def serve(app: Any, sock: socket.socket, ready: Callable[[], None] = lambda: None) -> None:
    """Serve until SIGINT or SIGTERM; ``ready`` is called once requests are answered."""

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                _calm_collector()
                ready()

    config = uvicorn.Config(
        app, http=_Capped, ws="none", lifespan="on", access_log=False, log_level="warning", log_config=None,
        server_header=False, date_header=False, proxy_headers=False, timeout_keep_alive=75,
        timeout_graceful_shutdown=5, backlog=2048,
    )  # fmt: skip
    Server(config).run(sockets=[sock])
