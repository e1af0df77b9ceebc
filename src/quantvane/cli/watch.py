"""``quantvane watch``: the monitoring proxy."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from quantvane.cli.options import json_option
from quantvane.errors import CapabilityError, SpecError

if TYPE_CHECKING:
    from quantvane.monitor.proxy.app import Watcher
    from quantvane.monitor.proxy.settings import WatchSettings
    from quantvane.monitor.sinks import Sink
    from quantvane.monitor.sinks.metrics import Metrics

__all__ = ["command"]


def _secret(path: str | None, what: str) -> str:
    """The first line of a file."""
    if path is None:
        return ""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise SpecError(
            f"cannot read {what}", expected="a text file", got=type(problem).__name__, remedy="name a readable file"
        ) from None
    secret = lines[0].strip() if lines else ""
    if not secret:
        raise SpecError(f"{what} is empty", expected="a secret on its first line", got="nothing", remedy="write one")
    return secret


@click.command("watch")
@click.option(
    "--upstream", required=True, metavar="URL", help="The server to watch, for example http://127.0.0.1:8080."
)
@click.option("--calibration", required=True, type=click.Path(), help="What quantvane calibrate wrote.")
@click.option("--port", default=8100, show_default=True, help="Where to listen; 0 takes a free port.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to bind; loopback unless you say otherwise."
)
@click.option(
    "--action", type=click.Choice(["observe", "annotate", "truncate"]), default="observe", show_default=True,
    help="Leave answers alone, add the verdict to them, or also end them at the first alarm.",
)  # fmt: skip
@click.option("--token-file", type=click.Path(), help="Secret that the page and the metrics ask for.")
@click.option("--jsonl", type=click.Path(), help="Append streams, alarms and faults to this file; rotates at 64 MiB.")
@click.option("--webhook-file", type=click.Path(), help="File with an address on its first line that gets every alarm.")
@click.option("--webhook", help="The same address on the command line, where other users may see it.")
@click.option("--otel", is_flag=True, help="Export spans by OTLP; configure with the OTEL_… variables.")
@json_option
def command(
    upstream: str, calibration: str, port: int, host: str, action: str, token_file: str | None,
    jsonl: str | None, webhook_file: str | None, webhook: str | None, otel: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Watch a server: a proxy that raises calibrated alarms.

    Point clients at this proxy instead of the server. Page at /quantvane/, metrics at /metrics. A server that wants
    a key for its list of models finds it in the environment variable QUANTVANE_UPSTREAM_KEY.

    \b
    quantvane watch --upstream http://127.0.0.1:8080 --calibration cal.json
    """
    from quantvane.monitor.calibration import load_calibration
    from quantvane.monitor.proxy.settings import WatchSettings

    loaded = load_calibration(calibration)
    _observable(loaded.fingerprint.top_k)
    settings = WatchSettings(upstream, action, loaded.fingerprint.top_k, host, port, _secret(token_file, "the token"))
    try:
        from quantvane.monitor.proxy.app import Watcher
        from quantvane.monitor.sinks.metrics import Metrics
    except ImportError as problem:
        raise CapabilityError(
            f"the proxy needs {problem.name}", expected="the extra monitor", got="not installed",
            remedy="pip install 'quantvane[monitor]'",
        ) from None  # fmt: skip
    metrics = Metrics()
    hook = webhook or _secret(webhook_file, "the webhook's address")
    watcher = Watcher(
        settings, loaded, _sinks(metrics, jsonl, hook, otel), metrics=metrics,
        upstream_key=os.environ.get("QUANTVANE_UPSTREAM_KEY", ""),
    )  # fmt: skip
    _run(watcher, settings, as_json)


def _observable(k: int) -> None:
    if k < 1:
        raise CapabilityError(
            "this calibration saw the whole vocabulary, a server shows only its most probable tokens: top_k differs",
            expected="a calibration with top_k ≥ 1",
            got="top_k = 0",
            remedy="calibrate with --top-k 20, or through the server",
        )


def _sinks(metrics: Metrics, jsonl: str | None, webhook: str, otel: bool) -> list[Sink]:
    from quantvane.monitor.sinks.jsonl import JsonLines
    from quantvane.monitor.sinks.spans import Spans, otlp_provider
    from quantvane.monitor.sinks.webhook import Webhook

    sinks: list[Sink] = []
    if jsonl is not None:
        sinks.append(JsonLines(Path(jsonl), metrics))
    if webhook:
        sinks.append(Webhook(webhook, metrics))
    if otel:
        sinks.append(Spans(otlp_provider()))
    return sinks


def _run(watcher: Watcher, settings: WatchSettings, as_json: bool) -> None:
    import asyncio
    import logging

    from quantvane.cli.output import print_json
    from quantvane.monitor.proxy.app import build_app
    from quantvane.monitor.proxy.server import listen, serve

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    asyncio.run(watcher.first_check())
    sock = listen(settings)
    place = sock.getsockname()
    address = f"http://{f'[{place[0]}]' if ':' in place[0] else place[0]}:{place[1]}"

    def ready() -> None:
        if as_json:
            print_json(
                {"listening": address, "upstream": settings.base, "page": f"{address}/quantvane/",
                 "metrics": f"{address}/metrics", "action": settings.action, "reason": watcher.desk.reason,
                 "unchecked": list(watcher.desk.unchecked)}
            )  # fmt: skip
            return
        click.echo(f"watching {settings.base} at {address} ({settings.action}); page at {address}/quantvane/")
        if watcher.desk.unchecked:
            click.echo(f"the upstream does not say, so not compared: {', '.join(watcher.desk.unchecked)}")
        if watcher.desk.reason:
            click.echo(f"nothing is promised yet: {watcher.desk.reason}", err=True)
        if not settings.loopback and not settings.token:
            click.echo("the page and the metrics are open to the network: consider --token-file", err=True)

    serve(build_app(watcher), sock, ready)
