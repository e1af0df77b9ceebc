"""The application: watched routes, metrics, the live page."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from importlib import resources
from pathlib import Path

import aiohttp
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from quantvane.errors import ProtocolMismatchError
from quantvane.monitor.calibration import Calibration
from quantvane.monitor.proxy.desk import Desk
from quantvane.monitor.proxy.flow import Sweeper
from quantvane.monitor.proxy.forward import send_error
from quantvane.monitor.proxy.guard import refusal
from quantvane.monitor.proxy.handler import Proxy
from quantvane.monitor.proxy.settings import WatchSettings
from quantvane.monitor.sinks import Sink, Sinks
from quantvane.monitor.sinks.metrics import CONTENT_TYPE, Metrics
from quantvane.monitor.upstream import compare, learn, open_session
from quantvane.store.atomic import to_json

__all__ = ["Watcher", "build_app"]

_log = logging.getLogger("quantvane.watch")
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{}'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store",
}  # fmt: skip


class Watcher:
    """One proxy's parts, and the check of its upstream.

    Attributes:
        desk, proxy, metrics: as built. error: the last mismatch, None where the upstream fits or is not known.
    """

    def __init__(
        self, settings: WatchSettings, calibration: Calibration, sinks: Sequence[Sink] = (), *,
        metrics: Metrics | None = None, upstream_key: str = "",
    ) -> None:  # fmt: skip
        self.settings, self.calibration = settings, calibration
        self.metrics = metrics or Metrics()
        self.sinks = Sinks(sinks)
        self.desk = Desk(calibration, self.metrics, self.sinks)
        self.sweeper = Sweeper(settings.limits)
        self.proxy = Proxy(settings, self.desk, self.sweeper)
        self.error: ProtocolMismatchError | None = None
        self._key = upstream_key
        self._digests: dict[tuple[str, int, int], str] = {}

    async def check(self) -> None:
        """Compare the upstream with the calibration; what is found holds until the next time.

        Raises nothing: an upstream that cannot be reached, or does not fit, leaves every stream INVALID, with the
        reason.
        """
        session = self.proxy.session
        if session is None:
            return
        desk = self.desk
        try:
            facts = await learn(session, self.settings.base, self._key)
            digest = await asyncio.to_thread(self._digest, facts.path)
            self.proxy.facts = facts
            desk.unchecked = compare(self.calibration, facts, self.settings.k, digest)
            desk.reason, self.error = "", None
        except ProtocolMismatchError as problem:
            if self.error is None:
                _log.error("%s", problem)
            desk.reason, self.error = f"{problem.message} ({problem.got})", problem
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            if not self.proxy.facts.server and not self.proxy.facts.models:  # a known one may be busy for a while
                desk.reason = "the upstream could not be reached to compare it with the calibration"
        self.metrics.checked.set(0.0 if desk.reason else 1.0)

    async def first_check(self) -> None:
        """Check once before serving.

        Raises:
            ProtocolMismatchError: the upstream answers and does not fit.
        """
        self.proxy.session = open_session(self.settings.limits.connect_seconds)
        try:
            await self.check()
        finally:
            await self.proxy.session.close()
            self.proxy.session = None
        if self.error is not None:
            raise self.error

    def _digest(self, path: str) -> str:
        """SHA-256 of the model's file where this machine can read it and the calibration names one; cached."""
        if len(self.calibration.fingerprint.model) != 64 or not path:
            return ""
        with suppress(OSError):
            stat = Path(path).stat()
            key = (path, stat.st_size, stat.st_mtime_ns)
            if key not in self._digests:
                with Path(path).open("rb") as file:
                    self._digests = {key: hashlib.file_digest(file, "sha256").hexdigest()}
            return self._digests[key]
        return ""

    async def keep_checking(self) -> None:
        """Check again and again: soon while the upstream is not known, then now and then."""
        pause = 0.5
        while True:
            pause = min(pause * 2.0, 10.0) if self.desk.reason else self.settings.recheck_seconds
            await asyncio.sleep(min(pause, self.settings.recheck_seconds))
            # llama_cpp.server breaks off a running stream when any other request comes, a look at its models too.
            if self.proxy.facts.server != "llama_cpp.server" or not self.sweeper.flows:
                await self.check()

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        limits = self.settings.limits
        self.proxy.session = open_session(limits.connect_seconds, limits.header_bytes)
        await self.check()
        tasks = [asyncio.create_task(self.sweeper.run()), asyncio.create_task(self.keep_checking())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.proxy.session.close()
            await self.sinks.close()


class _App:
    """Own pages through Starlette, the rest straight to the proxy: a chunk passes no layer that it does not need."""

    def __init__(self, pages: Starlette, proxy: Proxy) -> None:
        self._pages, self._proxy = pages, proxy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope.get("path", "").startswith(("/metrics", "/quantvane")):
            await self._pages(scope, receive, send)
        else:
            await self._proxy(scope, receive, send)


def build_app(watcher: Watcher) -> ASGIApp:
    """The ASGI application of a watcher.

    ``/metrics``, ``/quantvane/`` (page), ``/quantvane/state`` (its JSON); everything else goes to the upstream.
    """
    html = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    script = html.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    headers = {name: value.replace("{}", digest) for name, value in _PAGE_HEADERS.items()}

    def metrics(request: Request) -> Response:
        watcher.desk.count_all()
        return Response(watcher.metrics.text(), media_type=CONTENT_TYPE)

    def page(request: Request) -> Response:
        return Response(html, media_type="text/html", headers=headers)

    def state(request: Request) -> Response:
        return Response(
            to_json(watcher.desk.state(), indent=None), media_type="application/json",
            headers={"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"},
        )  # fmt: skip

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def home(request: Request) -> Response:
        return RedirectResponse("/quantvane/")

    def own(path: str, endpoint: Callable[[Request], Response]) -> Route:
        async def guarded(request: Request) -> Response:
            refused = refusal(watcher.settings, request.scope["headers"])
            if not refused:
                return endpoint(request)
            watcher.desk.fault(refused)

            async def answer(scope: object, receive: object, send: object) -> None:
                status = 401 if refused == "unauthorized" else 403
                await send_error(send, status, refused, "the page and the metrics are not open to you")  # type: ignore[arg-type]

            return answer  # type: ignore[return-value]

        return Route(path, guarded, methods=["GET"])

    routes = [
        own("/metrics", metrics), own("/quantvane/", page), own("/quantvane/state", state),
        Route("/quantvane", home), Route("/quantvane/health", health), Mount("/", app=watcher.proxy),
    ]  # fmt: skip
    return _App(Starlette(routes=routes, lifespan=watcher.lifespan), watcher.proxy)
