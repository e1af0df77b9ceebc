"""Counters for Prometheus, in a registry of their own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from quantvane.monitor.sinks.fan import Event

__all__ = ["CONTENT_TYPE", "FAULTS", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

FAULTS = (
    "request_not_json", "request_too_large", "request_aborted", "too_many_streams", "unauthorized", "bad_host",
    "upstream_unreachable", "upstream_timeout", "upstream_died", "upstream_too_large", "upstream_refuses_logprobs",
    "chunk_not_json", "event_too_large", "stream_too_long", "client_gone", "client_too_slow", "redirect_refused",
    "internal",
)  # fmt: skip
"""What can go wrong with a request, each counted under ``quantvane_faults_total{kind}``, from 0 on."""


class Metrics:
    """The metrics of one proxy; also a sink."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labelled: dict[str, tuple[str, list[str]]] = {
            "streams": ("Finished streams (one a choice) by closing label and how they ended", ["label", "outcome"]),
            "tokens": ("Generated tokens by the state they left the stream in", ["label"]),
            "alarms": ("First passages by statistic", ["statistic"]),
            "faults": ("Requests and streams that went wrong", ["kind"]),
            "webhooks": ("Webhook deliveries", ["result"]),
            "requests": ("Requests by route and status class", ["route", "status"]),
            "lost_events": ("Events that a full queue dropped", ["sink"]),
        }
        made = {
            name: Counter(f"quantvane_{name}", help, labels, registry=self.registry)
            for name, (help, labels) in labelled.items()
        }
        self.streams, self.tokens, self.alarms = made["streams"], made["tokens"], made["alarms"]
        self.faults, self.webhooks, self.requests = made["faults"], made["webhooks"], made["requests"]
        self.lost = made["lost_events"]
        self.active = Gauge("quantvane_active_streams", "Streams being watched now", registry=self.registry)
        self.checked = Gauge(
            "quantvane_calibration_fits", "1 where the upstream was compared with the calibration and fits",
            registry=self.registry,
        )  # fmt: skip
        self.drift = Gauge(
            "quantvane_drift_log_martingale", "ln of the fleet's drift martingale", registry=self.registry
        )
        self.drifted = Gauge(
            "quantvane_drift_alarm", "1 once the drift martingale has passed its threshold", registry=self.registry
        )
        self.added = Histogram(
            "quantvane_chunk_seconds", "Time between an event of the upstream's and its handing on",
            buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0), registry=self.registry,
        )  # fmt: skip
        for kind in FAULTS:
            self.faults.labels(kind)

    def take(self, event: Event) -> None:
        if event["event"] == "stream":
            self.streams.labels(event["label"], event["outcome"]).inc()
        elif event["event"] == "alarm":
            for name in event["statistics"]:
                self.alarms.labels(name).inc()
        elif event["event"] == "fault":
            self.faults.labels(event["kind"] if event["kind"] in FAULTS else "internal").inc()

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)

    async def close(self) -> None:
        return
