"""Alarms and faults to a URL, with retry and back-off."""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import suppress
from urllib.parse import urlsplit

import aiohttp

from quantvane.errors import SpecError
from quantvane.monitor.sinks.fan import Event
from quantvane.monitor.sinks.metrics import Metrics
from quantvane.store.atomic import to_json

__all__ = ["Webhook"]

_log = logging.getLogger("quantvane.watch")


class Webhook:
    """POSTs one JSON document an event, in order; retried on connection errors, 408, 429 and 5xx.

    The wait before attempt i is base · 2^i, at most ``longest``, times a random factor in [½, 1], or what
    ``Retry-After`` asks for (seconds; at most ``longest``). After ``attempts`` the event is dropped and counted
    (``quantvane_webhooks_total{result="dropped"}``). Redirects are not followed. The URL, which often holds a
    secret, is never logged.

    Args:
        kinds: the events to send.

    Raises:
        SpecError: the URL is no http(s) URL.
    """

    def __init__(
        self, url: str, metrics: Metrics, *, kinds: tuple[str, ...] = ("alarm", "drift"), attempts: int = 6,
        base: float = 0.5, longest: float = 60.0, held: int = 1000,
    ) -> None:  # fmt: skip
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise SpecError(
                "the webhook's address cannot be used", expected="http(s)://…", got="something else",
                remedy="give a whole URL",
            )  # fmt: skip
        self._url, self._kinds, self._attempts = url, kinds, attempts
        self._base, self._longest = base, longest
        self._queue: asyncio.Queue[Event] = asyncio.Queue(held)
        self._results, self._lost = metrics.webhooks, metrics.lost.labels("webhook")
        self._task: asyncio.Task[None] | None = None

    def take(self, event: Event) -> None:
        if event["event"] not in self._kinds:
            return
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._send_all(), name="quantvane-webhook")
        try:
            self._queue.put_nowait(event)
        except asyncio.QueueFull:
            self._lost.inc()

    async def _send_all(self) -> None:
        async with aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=20.0), cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
        ) as session:
            while True:
                event = await self._queue.get()
                try:
                    self._results.labels(await self._send(session, to_json(event, indent=None).encode())).inc()
                finally:
                    self._queue.task_done()

    async def _send(self, session: aiohttp.ClientSession, body: bytes) -> str:
        for attempt in range(self._attempts):
            asked = None
            try:
                async with session.post(
                    self._url, data=body, headers={"Content-Type": "application/json"}, allow_redirects=False
                ) as answer:
                    if answer.status < 300:
                        return "delivered"
                    if answer.status not in (408, 429) and answer.status < 500:
                        _log.error("the webhook refuses with status %d", answer.status)
                        return "refused"
                    asked = answer.headers.get("Retry-After")
            except (aiohttp.ClientError, TimeoutError, OSError):
                pass  # the message would name the address
            if attempt + 1 < self._attempts:
                self._results.labels("retried").inc()
                await asyncio.sleep(self._wait(attempt, asked))
        _log.error("the webhook did not answer %d times: event dropped", self._attempts)
        return "dropped"

    def _wait(self, attempt: int, asked: str | None) -> float:
        if asked is not None and asked.isdigit():
            return min(float(asked), self._longest)
        return min(self._base * 2.0**attempt, self._longest) * random.uniform(0.5, 1.0)

    async def close(self) -> None:
        if self._task is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._queue.join(), 5.0)
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
