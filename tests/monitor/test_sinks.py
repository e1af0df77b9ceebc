"""Sinks: lines that rotate and survive, a webhook that tries again, spans, counters; none can hold a stream up."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from quantvane.errors import OutputError, SpecError
from quantvane.monitor.sinks import Sinks
from quantvane.monitor.sinks.jsonl import JsonLines
from quantvane.monitor.sinks.metrics import Metrics
from quantvane.monitor.sinks.spans import Spans
from quantvane.monitor.sinks.webhook import Webhook
from quantvane.store.lines import RotatingLines

ALARM = {"event": "alarm", "time": 1000.0, "stream": "s", "choice": 0, "index": 3, "statistics": ["kl_high"]}
STREAM = {
    "event": "stream", "time": 1001.0, "stream": "s", "choice": 0, "kind": "chat", "model": "m", "tokens": 7,
    "missing": 0, "label": "ALARM", "reason": "", "first_alarm": 3, "alarms": ["kl_high"], "extremes": {"x": math.nan},
    "outcome": "complete", "seconds": 2.5,
}  # fmt: skip


def _lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_rotate_and_lose_nothing_but_the_oldest(tmp_path):
    lines = RotatingLines(tmp_path / "a" / "log.jsonl", max_bytes=100, keep=2)
    for i in range(30):
        lines.append({"i": i, "nan": math.nan})
    lines.close()
    found = [_lines(tmp_path / "a" / name) for name in ("log.jsonl.2", "log.jsonl.1", "log.jsonl")]
    flat = [one["i"] for part in found for one in part]
    assert flat == list(range(flat[0], 30))
    assert all((tmp_path / "a" / name).stat().st_size <= 100 for name in ("log.jsonl", "log.jsonl.1"))
    assert not (tmp_path / "a" / "log.jsonl.3").exists()
    assert found[2][-1]["nan"] is None
    assert (tmp_path / "a" / "log.jsonl").stat().st_mode & 0o077 == 0


def test_a_line_cut_by_a_crash_spoils_no_other(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"i": 0}\n{"i": ')
    lines = RotatingLines(path)
    lines.append({"i": 1})
    lines.close()
    assert path.read_bytes() == b'{"i": 0}\n{"i": \n{"i": 1}\n'


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError):
        RotatingLines(tmp_path / "file" / "log.jsonl")


def test_json_lines_are_written_by_their_own_thread(tmp_path):
    async def run() -> None:
        sink = JsonLines(tmp_path / "log.jsonl", Metrics())
        for _ in range(50):
            sink.take(STREAM)
        await sink.close()

    asyncio.run(run())
    assert len(_lines(tmp_path / "log.jsonl")) == 50


def test_a_full_queue_drops_and_counts(tmp_path, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(RotatingLines, "append", lambda self, record: gate.wait(5))
    metrics = Metrics()
    sink = JsonLines(tmp_path / "log.jsonl", metrics, held=3)
    for _ in range(20):
        sink.take(STREAM)
    assert (metrics.registry.get_sample_value("quantvane_lost_events_total", {"sink": "jsonl"}) or 0) >= 16
    gate.set()
    asyncio.run(sink.close())


class _Hook:
    """A receiver that answers with the statuses it is given, then 204."""

    def __init__(self, *statuses: int) -> None:
        self.got: list[Any] = []
        left, got = list(statuses), self.got

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                status = left.pop(0) if left else 204
                self.send_response(status)
                if status == 429:
                    self.send_header("Retry-After", "0")
                if status == 302:
                    self.send_header("Location", "http://192.0.2.1/")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                return

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook/secret"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def _deliver(url: str, metrics: Metrics, *events: dict[str, Any], **more: Any) -> None:
    async def run() -> None:
        sink = Webhook(url, metrics, base=0.01, **more)
        for event in events:
            sink.take(event)
        await sink._queue.join()
        await sink.close()

    asyncio.run(asyncio.wait_for(run(), 30))


def _results(metrics: Metrics, result: str) -> float:
    return metrics.registry.get_sample_value("quantvane_webhooks_total", {"result": result}) or 0.0


def test_webhook_tries_again_until_it_is_heard():
    hook, metrics = _Hook(500, 429, 503), Metrics()
    _deliver(hook.url, metrics, ALARM, STREAM, {**ALARM, "index": 4})
    assert [e["index"] for e in hook.got] == [3, 3, 3, 3, 4]
    assert (_results(metrics, "delivered"), _results(metrics, "retried")) == (2, 3)


def test_webhook_gives_up_in_the_end(caplog):
    hook, metrics = _Hook(*[500] * 9), Metrics()
    _deliver(hook.url, metrics, ALARM, attempts=3)
    assert len(hook.got) == 3
    assert _results(metrics, "dropped") == 1
    _deliver("http://127.0.0.1:9/secret", metrics, ALARM, attempts=2)
    assert _results(metrics, "dropped") == 2
    assert "secret" not in caplog.text


@pytest.mark.parametrize("status", [400, 401, 302])
def test_webhook_does_not_insist_nor_follow(status):
    hook, metrics = _Hook(status), Metrics()
    _deliver(hook.url, metrics, ALARM)
    assert len(hook.got) == 1
    assert _results(metrics, "refused") == 1


def test_back_off_grows_and_is_bounded():
    hook = Webhook("http://x", Metrics(), base=1.0, longest=10.0)
    for attempt, most in enumerate((1, 2, 4, 8, 10, 10)):
        assert most / 2 <= hook._wait(attempt, None) <= most
    assert hook._wait(0, "7") == 7.0
    assert hook._wait(0, "9999") == 10.0
    assert hook._wait(0, "Wed, 21 Oct") <= 1.0


def test_webhook_wants_an_address():
    with pytest.raises(SpecError) as problem:
        Webhook("file:///secret", Metrics())
    assert "secret" not in str(problem.value)


def test_spans():
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    kept, provider = InMemorySpanExporter(), sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    sink = Spans(provider)
    sink.take(ALARM)
    sink.take(STREAM)
    (span,) = kept.get_finished_spans()
    assert span.end_time - span.start_time == 2_500_000_000
    assert span.attributes["quantvane.label"] == "ALARM"
    assert span.attributes["gen_ai.usage.output_tokens"] == 7
    assert [(e.name, e.attributes["index"]) for e in span.events] == [("alarm", 3)]
    assert not span.status.is_ok


def test_counters_start_at_none():
    text = Metrics().text().decode()
    assert 'quantvane_faults_total{kind="upstream_died"} 0.0' in text


def test_a_sink_that_fails_hurts_no_other():
    class Bad:
        def take(self, event: Any) -> None:
            raise RuntimeError

        async def close(self) -> None:
            raise RuntimeError

    metrics = Metrics()
    sinks = Sinks([Bad(), metrics])
    sinks.take(STREAM)
    asyncio.run(sinks.close())
    value = metrics.registry.get_sample_value("quantvane_streams_total", {"label": "ALARM", "outcome": "complete"})
    assert value == 1.0
