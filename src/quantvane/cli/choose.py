"""``quantvane choose``: the smallest candidate that is certified equivalent."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from quantvane.cli.options import json_option
from quantvane.cli.output import print_json
from quantvane.errors import SpecError

if TYPE_CHECKING:
    from quantvane.choose.verdicts import Choice

__all__ = ["command", "read_size"]

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def read_size(text: str) -> float:
    """``"5GB"``, ``"4.5GiB"``, ``"700M"`` or a number, in bytes.

    Raises:
        SpecError: something else.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([KMGT]?I?)B?\s*", text.upper())
    if match is None or match[2] not in _UNITS or not float(match[1]) > 0:
        raise SpecError(
            f"--max-size '{text}' is no size",
            expected="a number with B, KB, MB, GB, TB, or KiB, MiB, GiB, TiB",
            got=text,
            remedy="for example --max-size 5GB",
        )
    return float(match[1]) * _UNITS[match[2]]


@click.command("choose")
@click.argument("run", metavar="RUN", type=click.Path())
@click.option("--margin", type=float, required=True, help="Loss in score that would not matter, chosen beforehand.")
@click.option("--max-size", default=None, metavar="SIZE", help="Largest weights file that will do, for example 5GB.")
@click.option("--alpha", default=0.05, show_default=True, help="Error probability for all candidates together.")
@json_option
def command(run: str, margin: float, max_size: str | None, alpha: float, as_json: bool) -> int:
    """Choose the smallest candidate of a bench RUN that is certified equivalent to its reference.

    Exit status 0 when one qualifies and 1 when none does, for use as a gate.

    \b
    quantvane choose run --margin 0.02 --max-size 5GB
    """
    from quantvane.run.choose import choice_document, choose  # here, so that --help loads no numerics

    limit = float("inf") if max_size is None else read_size(max_size)
    choice = choose(run, margin=margin, alpha=alpha, max_bytes=limit)
    if as_json:
        print_json(choice_document(choice))
    else:
        _print(choice)
    return 0 if choice.chosen is not None else 1


def _print(choice: Choice) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"margin {choice.rules.margin:g}, error probability {choice.rules.alpha:g} in all")
    for name in ("candidate", "MB", "items", "score", "Δ", "interval", "verdict", "items needed", "tied with"):
        table.add_column(name, justify="left" if name in ("candidate", "verdict", "tied with") else "right")
    for v in sorted(choice.verdicts, key=lambda v: v.file_bytes):
        marks = ("* " if v.name == choice.chosen else "") + v.name + (" (front)" if v.name in choice.front else "")
        table.add_row(
            escape(marks),
            f"{v.file_bytes / 1e6:.1f}" + ("" if v.fits else " >"),
            str(v.items),
            f"{v.score:.4f}",
            f"{v.delta:+.4f}",
            escape(f"[{v.low:+.4f}, {v.high:+.4f}]"),
            v.verdict,
            "–" if v.items_needed is None else str(v.items_needed),
            escape(", ".join(v.tied_with)) or "–",
        )
    Console().print(table)
    click.echo(f"chosen: {choice.chosen}" if choice.chosen else f"nothing qualifies: {choice.reason}")
