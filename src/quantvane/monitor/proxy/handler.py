"""The watched routes and the passed ones, as raw ASGI."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass

import aiohttp
from yarl import URL

from quantvane.monitor.proxy import forward
from quantvane.monitor.proxy.answers import EventFilter, WholeFilter
from quantvane.monitor.proxy.asked import Asked, read_request
from quantvane.monitor.proxy.desk import Desk, Watch
from quantvane.monitor.proxy.flow import Flow, Sweeper
from quantvane.monitor.proxy.forward import BodyTooLargeError, ClientGoneError, Receive, Scope, Send
from quantvane.monitor.proxy.settings import WatchSettings
from quantvane.monitor.proxy.wire import EventSplitter
from quantvane.monitor.upstream import Facts

__all__ = ["Proxy"]

_CHAT = ("/v1/chat/completions", "/chat/completions")
_TEXT = ("/v1/completions",)
_REFUSALS = (400, 422, 500, 501)
_log = logging.getLogger("quantvane.watch")


class _FaultError(Exception):
    """Ends a request with a counted fault and, where the client still listens, an error."""

    def __init__(self, kind: str, status: int, message: str) -> None:
        super().__init__(kind)
        self.kind, self.status, self.message = kind, status, message


_STOPPED = {
    "upstream_timeout": (504, "the upstream was silent for too long"),
    "stream_too_long": (504, "the answer took longer than is allowed"),
    "client_gone": (499, "the client left"),
    "client_too_slow": (499, "the client does not read"),
}


@dataclass(slots=True)
class _Out:
    """What has been sent to the client."""

    send: Send
    begun: bool = False
    stream: bool = False
    status: int = 0

    async def begin(self, status: int, headers: list[tuple[bytes, bytes]], *, stream: bool = False) -> None:
        self.begun, self.stream, self.status = True, stream, status
        await forward.begin(self.send, status, headers)

    async def piece(self, data: bytes, *, more: bool) -> None:
        await self.send({"type": "http.response.body", "body": data, "more_body": more})

    async def fail(self, status: int, kind: str, message: str) -> None:
        """Tell the client, in the form that fits what it has got so far."""
        if not self.begun:
            self.status = status
            await forward.send_error(self.send, status, kind, message)
        elif self.stream:
            await self.piece(b"data: " + forward.error_body(message, kind, status) + b"\n\n", more=False)


class Proxy:
    """Everything that goes to the upstream.

    Args:
        settings: as `WatchSettings`. desk: where streams are recorded. sweeper: ends what takes too long.

    Attributes:
        session: made by the lifespan. facts: what is known of the upstream.
    """

    def __init__(self, settings: WatchSettings, desk: Desk, sweeper: Sweeper) -> None:
        self._settings, self._desk, self._sweeper = settings, desk, sweeper
        self._limits = settings.limits
        self.session: aiohttp.ClientSession | None = None
        self.facts = Facts()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # no web sockets: the server answers with its own refusal
        flow, out = Flow(), _Out(send)
        self._sweeper.flows.add(flow)
        watched = scope["method"] == "POST" and scope["path"].endswith((*_CHAT, *_TEXT))
        watch: list[Watch] = []
        try:
            await self._run(scope, receive, out, flow, watch if watched else None)
        except asyncio.CancelledError:
            if not flow.stopped:
                raise  # the server itself is being stopped
            flow.resume()
            await self._failed(out, watch, flow.stopped, *_STOPPED[flow.stopped])
        except _FaultError as fault:
            await self._failed(out, watch, fault.kind, fault.status, fault.message)
        except (OSError, ClientGoneError):  # from the server's side: the connection to the client broke
            await self._failed(out, watch, "client_gone", *_STOPPED["client_gone"])
        except Exception as problem:
            _log.error("internal error: %s", type(problem).__name__, exc_info=_log.isEnabledFor(logging.DEBUG))
            await self._failed(out, watch, "internal", 500, "internal error of the monitor")
        finally:
            self._sweeper.flows.discard(flow)
            for one in watch:
                one.end("incomplete")
            route = "watched" if watched else "passed"
            self._desk.metrics.requests.labels(route, f"{out.status // 100}xx" if out.status else "none").inc()

    async def _failed(self, out: _Out, watch: list[Watch], kind: str, status: int, message: str) -> None:
        self._desk.fault(kind, watch[0] if watch else None)
        for one in watch:
            one.end(kind)
        if kind in ("client_gone", "client_too_slow"):
            out.status = out.status or status
            return
        try:
            async with asyncio.timeout(5.0):
                await out.fail(status, kind, message)
        except (OSError, TimeoutError):
            pass  # the client is gone as well

    async def _run(self, scope: Scope, receive: Receive, out: _Out, flow: Flow, watch: list[Watch] | None) -> None:
        url = forward.target(self._settings.base, scope)
        if url is None:
            raise _FaultError("internal", 400, "the path cannot be passed on")
        if len(self._sweeper.flows) > self._limits.streams:
            raise _FaultError("too_many_streams", 503, "too many requests at once")
        if forward.declared_size(scope) > self._limits.request_bytes:
            raise _FaultError("request_too_large", 413, "the request body is too large")
        try:
            body = await forward.read_body(receive, self._limits.request_bytes)
        except BodyTooLargeError:
            raise _FaultError("request_too_large", 413, "the request body is too large") from None
        except ClientGoneError:
            raise _FaultError("request_aborted", 400, "the request broke off") from None
        listener = forward.watch_client(receive, flow)
        try:
            if watch is None:
                await self._pass(scope, url, body, out, flow)
            else:
                await self._watched(scope, url, body, out, flow, watch)
        finally:
            listener.cancel()

    async def _open(self, scope: Scope, url: URL, body: bytes, flow: Flow, *, plain: bool) -> aiohttp.ClientResponse:
        """Send a request to the upstream; faults where it cannot be reached or leads elsewhere."""
        if self.session is None:
            raise _FaultError("internal", 503, "the monitor is not running")
        flow.wait("upstream")
        try:
            return await self.session.request(
                scope["method"], url, data=body or None, headers=forward.request_headers(scope, plain=plain),
                skip_auto_headers=("User-Agent", "Content-Type", "Accept", "Accept-Encoding"), allow_redirects=False,
            )  # fmt: skip
        except TimeoutError:
            raise _FaultError("upstream_timeout", 504, "the upstream does not answer") from None
        except aiohttp.ClientConnectorError:
            raise _FaultError("upstream_unreachable", 502, "the upstream cannot be reached") from None
        except (aiohttp.ClientError, OSError, ValueError):
            raise _FaultError("upstream_died", 502, "the upstream broke off, or sent headers over the limit") from None

    def _redirect(self, answer: aiohttp.ClientResponse, headers: list[tuple[bytes, bytes]]) -> None:
        """Let a redirect within the upstream pass, as a path; refuse any other."""
        if not 300 <= answer.status < 400 or "Location" not in answer.headers:
            return
        place = forward.location_allowed(answer, self._settings.base)
        if place is None:
            raise _FaultError("redirect_refused", 502, "the upstream redirects to another place")
        headers[:] = [(n, v) for n, v in headers if n != b"location"] + [(b"location", place.encode("latin-1"))]

    async def _pass(self, scope: Scope, url: URL, body: bytes, out: _Out, flow: Flow) -> None:
        answer = await self._open(scope, url, body, flow, plain=False)
        try:
            await self._send_raw(answer, out, flow)
        finally:
            answer.close()

    async def _send_raw(self, answer: aiohttp.ClientResponse, out: _Out, flow: Flow) -> None:
        """Hand an answer on as it comes."""
        headers = forward.response_headers(answer, same_length=True)
        self._redirect(answer, headers)
        await out.begin(answer.status, headers)
        size = 0
        flow.wait("upstream")
        while data := await self._piece(answer):
            size += len(data)
            if size > self._limits.stream_bytes:
                raise _FaultError("upstream_too_large", 502, "the answer is too large")
            flow.wait("client")
            await out.piece(data, more=True)
            flow.wait("upstream")
        await out.piece(b"", more=False)

    async def _piece(self, answer: aiohttp.ClientResponse) -> bytes:
        """What has come of the body, b"" at its end; faults where the upstream breaks off."""
        try:
            return await answer.content.readany()
        except TimeoutError:
            raise _FaultError("upstream_timeout", 504, "the upstream was silent for too long") from None
        except (aiohttp.ClientError, OSError):
            raise _FaultError("upstream_died", 502, "the upstream broke off before its answer ended") from None

    async def _watched(self, scope: Scope, url: URL, body: bytes, out: _Out, flow: Flow, watches: list[Watch]) -> None:
        chat = scope["path"].endswith(_CHAT)
        asked = read_request(body, chat=chat).for_server(
            keep_chosen=self.facts.keeps_chosen, absent=self.facts.leaves_out(chat=chat)
        )
        watch = self._desk.watch("chat" if chat else "text", self._unpromised(asked))
        watches.append(watch)
        if asked.body is None:
            self._desk.fault("request_not_json", watch)
        k = self._settings.k
        flow.patient = not asked.stream
        answer = await self._open(scope, url, asked.upstream_body(k), flow, plain=True)
        try:
            if answer.status in _REFUSALS and asked.asks_more(k):
                answer, asked = await self._without_lists(scope, url, body, flow, watch, answer, asked)
            kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            packed = answer.headers.get("Content-Encoding", "identity").lower() != "identity"
            if answer.status != 200 or packed:
                watch.reason = watch.reason or ("the answer is compressed" if packed else "")
                await self._send_raw(answer, out, flow)
            elif kind == "text/event-stream":
                flow.patient = False
                await self._stream(scope, url, body, answer, asked, out, flow, watch)
            else:
                await self._whole(answer, asked, out, flow, watch)
        finally:
            answer.close()

    async def _without_lists(
        self, scope: Scope, url: URL, body: bytes, flow: Flow, watch: Watch, refused: aiohttp.ClientResponse,
        asked: Asked,
    ) -> tuple[aiohttp.ClientResponse, Asked]:  # fmt: skip
        """The client's own request, after the upstream refused the one that asked for more."""
        refused.close()
        answer = await self._open(scope, url, body, flow, plain=True)
        if answer.status < 400:
            self._refusal(watch)
        return answer, asked

    def _refusal(self, watch: Watch) -> None:
        self._desk.fault("upstream_refuses_logprobs", watch)
        watch.reason = watch.reason or "the upstream refuses to give log-probabilities"

    def _unpromised(self, asked: Asked) -> str:
        """Why the calibration promises nothing for a request; "" where it does."""
        if asked.body is None:
            return "the request is no JSON object"
        if asked.body.get("echo"):
            return "the answer repeats its prompt (echo), whose tokens were not generated"
        wanted = self._desk.calibration.fingerprint.temperature
        given = asked.sampling().get("temperature", self.facts.temperature)
        if given is None:
            return "the request names no temperature, and the upstream's default is not known"
        if abs(given - wanted) > 1e-9:
            return f"temperature is {given:g}, the calibration's {wanted:g}"
        return ""

    async def _whole(self, answer: aiohttp.ClientResponse, asked: Asked, out: _Out, flow: Flow, watch: Watch) -> None:
        pieces, size = [], 0
        flow.wait("upstream")
        while data := await self._piece(answer):
            size += len(data)
            if size > self._limits.answer_bytes:
                raise _FaultError("upstream_too_large", 502, "the answer is too large")
            pieces.append(data)
            flow.wait("upstream")
        raw = b"".join(pieces)
        verdict = WholeFilter(watch, asked, self._settings.k, self._settings.action)
        try:
            body = verdict.text(raw.decode()).encode()
        except (ValueError, RecursionError):
            self._desk.fault("chunk_not_json", watch)
            body = raw
        headers = forward.response_headers(answer, same_length=False)
        headers += [(b"content-length", str(len(body)).encode()), *verdict.headers()]
        flow.wait("client")
        await out.begin(answer.status, headers)
        await out.piece(body, more=False)

    async def _stream(
        self, scope: Scope, url: URL, body: bytes, answer: aiohttp.ClientResponse, asked: Asked, out: _Out,
        flow: Flow, watch: Watch,
    ) -> None:  # fmt: skip
        events = EventFilter(watch, asked, self._settings.k, self._settings.action)
        await out.begin(answer.status, forward.response_headers(answer, same_length=False), stream=True)
        try:
            await self._events(answer, events, out, flow)
        except _FaultError as fault:
            if fault.kind != "upstream_died" or events.started or not asked.asks_more(self._settings.k):
                raise
            # Some servers notice only after the headers that they have no lists to give.
            answer.close()
            answer = await self._open(scope, url, body, flow, plain=True)
            try:
                if answer.status != 200:
                    raise
                self._refusal(watch)
                await self._events(answer, events, out, flow)
            finally:
                answer.close()
        if events.over:
            answer.close()  # before anything else: the upstream stops computing
            await out.piece(events.closing(), more=False)
            return
        if not events.ended and any(not c.finished for c in watch.choices.values()):
            raise _FaultError("upstream_died", 502, "the upstream ended its stream before the answer was finished")
        watch.end("complete")
        await out.piece(b"", more=False)

    async def _events(self, answer: aiohttp.ClientResponse, events: EventFilter, out: _Out, flow: Flow) -> None:
        splitter, size, limits = EventSplitter(), 0, self._limits
        added, blocks = self._desk.metrics.added, 0
        flow.wait("upstream")
        while data := await self._piece(answer):
            begun = time.perf_counter()
            size += len(data)
            if size > limits.stream_bytes:
                raise _FaultError("stream_too_long", 502, "the stream is too long")
            parts = []
            for raw in splitter.feed(data):
                if len(raw) > limits.event_bytes:
                    raise _FaultError("event_too_large", 502, "an event of the upstream's is too large")
                parts.append(events.event(raw))
                if events.over:
                    break
            if splitter.held > limits.event_bytes:
                raise _FaultError("event_too_large", 502, "an event of the upstream's is too large")
            shown = parts[0] if len(parts) == 1 else b"".join(parts)
            if not blocks & 15:  # one in sixteen will do: an observation costs as much as parsing an event's frame
                added.observe(time.perf_counter() - begun)
            blocks += 1
            if shown:
                flow.wait("client")
                await out.piece(shown, more=True)
                flow.wait("upstream")
            if events.over:
                return
        rest = splitter.flush()
        if rest:
            await out.piece(events.event(rest), more=True)
        if not events.started and not events.ended:
            raise _FaultError("upstream_died", 502, "the upstream ended its stream before it began an answer")
