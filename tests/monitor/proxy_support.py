"""A proxy under test, served from a thread. Tests only."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
import urllib.request
from dataclasses import replace
from typing import Any

import uvicorn
from scripted_upstream import events

from quantvane.monitor.averages import DEFAULT_STATISTICS
from quantvane.monitor.calibration import Base, Calibration, Fingerprint
from quantvane.monitor.proxy.app import Watcher, build_app
from quantvane.monitor.proxy.server import _Capped, listen
from quantvane.monitor.proxy.settings import Limits, WatchSettings

PRINT = Fingerprint("scripted", "BF16", "vllm", "9.9", "cpu", "raw", 0.0, 20, 64)


def calibration(**changes: Any) -> Calibration:
    """One that the scripted upstream's ordinary streams pass and its flat ones do not."""
    high = {"sigma_high": 2.0, "sigma_low": 2.0, "entropy_high": 3.0, "kl_high": 100.0, "flat": 50.0}
    scores = {name: tuple(0.01 * i for i in range(100)) for name in ("sigma", "entropy", "kl", "nll")}
    return replace(
        Calibration(
            PRINT, Base(0.2, 1.5, 3.0, 1.0), 0.3, 0.05, None, "joint", 64, 100, DEFAULT_STATISTICS, high,
            {name: 0.8 * value for name, value in high.items()}, scores,
        ),
        **changes,
    )  # fmt: skip


class Served:
    """A watcher on a free port of loopback."""

    def __init__(self, upstream: str, action: str = "observe", **more: Any) -> None:
        limits = Limits(**more.pop("limits", {}))
        cal = more.pop("calibration", None) or calibration()
        sinks, events_seen = list(more.pop("sinks", ())), Events()
        settings = WatchSettings(upstream, action, port=0, limits=limits, **more)
        self.watcher = Watcher(settings, cal, [*sinks, events_seen])
        self.events = events_seen.seen
        sock = listen(settings)
        self.port = sock.getsockname()[1]
        config = uvicorn.Config(
            build_app(self.watcher), http=_Capped, ws="none", log_level="critical", server_header=False,
            date_header=False, timeout_graceful_shutdown=1,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve([sock])), daemon=True)
        self._thread.start()
        end = time.monotonic() + 60
        while not self._server.started and time.monotonic() < end:
            time.sleep(0.01)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def desk(self) -> Any:
        return self.watcher.desk

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)

    def streams(self, count: int, seconds: float = 10.0) -> list[dict[str, Any]]:
        """The first ``count`` finished streams, waiting for them."""
        return self.wait(lambda: [e for e in self.events if e["event"] == "stream"], count, seconds)

    def faults(self, kind: str, count: int = 1, seconds: float = 10.0) -> float:
        """How often a fault was counted, waiting until it was ``count`` times."""
        self.wait(lambda: [e for e in self.events if e["event"] == "fault" and e["kind"] == kind], count, seconds)
        value = self.watcher.metrics.registry.get_sample_value("quantvane_faults_total", {"kind": kind})
        return float(value or 0.0)

    @staticmethod
    def wait(what: Any, count: int, seconds: float = 10.0) -> list[Any]:
        end = time.monotonic() + seconds
        while len(what()) < count and time.monotonic() < end:
            time.sleep(0.01)
        return list(what())


class Events:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def take(self, event: dict[str, Any]) -> None:
        self.seen.append(event)

    async def close(self) -> None:
        return


def ask(url: str, body: Any, headers: dict[str, str] | None = None, path: str = "/v1/chat/completions") -> Any:
    """(status, headers, body) of a request, errors too."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json", **(headers or {})})
    return _answer(request)


def get(url: str, path: str, headers: dict[str, str] | None = None) -> Any:
    return _answer(urllib.request.Request(url + path, headers=headers or {}))


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _answer(request: urllib.request.Request) -> Any:
    opener = urllib.request.build_opener(_Stay, urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=60) as answer:
            return answer.status, _lower(answer.headers), answer.read()
    except urllib.error.HTTPError as problem:
        return problem.code, _lower(problem.headers), problem.read()


def direct(chat: bool, how: str, body: dict[str, Any], k: int | None) -> bytes:
    """What the scripted upstream streams."""
    return b"".join(event for event in events(chat, how, body, k) if event is not None)


def raw_socket(port: int, data: bytes) -> socket.socket:
    """A connection on which a request was sent and nothing was read."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=30)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.sendall(data)
    return sock


def chat_request(body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    return b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data) + data


def _lower(headers: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}
