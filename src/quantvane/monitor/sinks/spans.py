"""One OpenTelemetry span a stream (extra ``otel``)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from quantvane.errors import CapabilityError
from quantvane.monitor.sinks.fan import Event

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

__all__ = ["Spans", "otlp_provider"]

_MISSING = CapabilityError(
    "OpenTelemetry is not installed",
    expected="the extra otel",
    got="no opentelemetry package",
    remedy="pip install 'quantvane[otel]'",
)


def otlp_provider() -> TracerProvider:
    """A provider that exports by OTLP over HTTP, configured by the standard ``OTEL_…`` variables.

    Raises:
        CapabilityError: the extra is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise _MISSING from None
    provider = TracerProvider(resource=Resource.create({"service.name": "quantvane-watch"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class Spans:
    """A span from a stream's first to its last moment, an event in it for each alarm.

    Names follow OpenTelemetry's conventions for generative models where these have one
    (``gen_ai.response.model``, ``gen_ai.usage.output_tokens``); the rest is ``quantvane.…``.

    Args:
        provider: where spans go.

    Raises:
        CapabilityError: the extra is not installed.
    """

    def __init__(self, provider: TracerProvider) -> None:
        try:
            from opentelemetry.trace import Status, StatusCode
        except ImportError:
            raise _MISSING from None
        self._provider, self._tracer = provider, provider.get_tracer("quantvane.monitor")
        self._bad = Status(StatusCode.ERROR)
        self._alarms: dict[tuple[str, int], list[Event]] = {}

    def take(self, event: Event) -> None:
        if event["event"] == "alarm":
            self._alarms.setdefault((event["stream"], event["choice"]), []).append(event)
        elif event["event"] == "stream":
            self._span(event, self._alarms.pop((event["stream"], event["choice"]), []))

    def _span(self, event: Event, alarms: list[Event]) -> None:
        end = event["time"]
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": "chat" if event["kind"] == "chat" else "text_completion",
            "gen_ai.response.model": event["model"] or "unknown",
            "gen_ai.usage.output_tokens": event["tokens"],
            "quantvane.label": event["label"],
            "quantvane.outcome": event["outcome"],
            "quantvane.alarms": list(event["alarms"]),
        }
        if event["reason"]:
            attributes["quantvane.reason"] = event["reason"]
        if event["first_alarm"] is not None:
            attributes["quantvane.first_alarm"] = event["first_alarm"]
        span = self._tracer.start_span(
            "quantvane.stream", attributes=attributes, start_time=int((end - event["seconds"]) * 1e9)
        )
        for alarm in alarms:
            span.add_event(
                "alarm", {"index": alarm["index"], "statistics": alarm["statistics"]}, int(alarm["time"] * 1e9)
            )
        if event["label"] == "ALARM" or event["outcome"] not in ("complete", "truncated"):
            span.set_status(self._bad)
        span.end(end_time=int(end * 1e9))

    async def close(self) -> None:
        shutdown = getattr(self._provider, "shutdown", None)
        if shutdown is not None:
            await asyncio.wait_for(asyncio.to_thread(shutdown), 5.0)
