"""Printing: one JSON document on stdout, or a Rich table; progress on stderr, quiet where that is no terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from quantvane.errors import QuantvaneError
from quantvane.store.atomic import to_json

if TYPE_CHECKING:
    from quantvane.run.compare import Comparison

__all__ = ["print_comparison", "print_error", "print_json", "progress"]


def print_json(document: Any) -> None:
    """The one JSON document of a command."""
    click.echo(to_json(document))


def print_error(problem: QuantvaneError, as_json: bool) -> None:
    """An error in the form of the command-line contract."""
    if as_json:
        print_json({"error": problem.to_dict()})
    else:
        click.echo(f"error: {problem}", err=True)


def print_comparison(result: Comparison, as_json: bool) -> None:
    """The table, and where everything was written."""
    if as_json:
        print_json(result.summary)
        return
    from quantvane.report import table

    console = Console()
    console.print(table(result.summary, console.width))
    for name in ("report.html", "report.md", "summary.json", "tokens", "charts"):
        if (result.out / name).exists():
            click.echo(f"wrote {result.out / name}")


@contextmanager
def progress() -> Iterator[Any]:
    """An event handler that shows what is being done, tokens per second and the time left."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda event: None
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=None, rate="")
        begun: dict[str, tuple[float, int]] = {}

        def handle(event: dict[str, Any]) -> None:
            kind = event["event"]
            if kind == "loading":
                bar.update(task, description=f"loading {event['model']}", total=None, rate="")
            elif kind == "progress":
                now, first = begun.setdefault(event["job"], (time.monotonic(), event["done"]))
                spent = time.monotonic() - now
                speed = (event["done"] - first) * event["models"] / spent if spent > 0 else 0.0
                bar.update(
                    task,
                    description=f"measuring ({event['models']} models, {event['job']})",
                    total=event["total"],
                    completed=event["done"],
                    rate=f"{speed:,.0f} tokens/s",
                )
            elif kind == "summarizing":
                bar.update(task, description="resampling and drawing", total=None, rate="")

        yield handle
