"""Where the monitor's events go: Prometheus, JSON lines, a webhook, spans. None of them can hold a stream up."""

from quantvane.monitor.sinks.fan import Event, Sink, Sinks

__all__ = ["Event", "Sink", "Sinks"]
