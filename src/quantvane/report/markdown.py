"""The report as Markdown, ready for a model card. Pure."""

from __future__ import annotations

import re

from .grid import Cell, Grid, Notes, main_grid, model_grid
from .readings import Summary
from .words import floor_words, headline, pairs, protocol_line

__all__ = ["escape", "markdown"]

# An underscore inside a word is no emphasis, and a bracket is a link only before "(", "[" or ":".
_SPECIAL = re.compile(r"([\\`*<>#|~&]|(?<!\w)_|_(?!\w)|\](?=[(\[:]))")
_MAIN = (
    "rank",
    "bpw",
    "size",
    "mean KLD",
    "top 5% mean",
    "max",
    "median",
    "99%",
    "same top-1",
    "ln PPL ratio",
)


def escape(text: str) -> str:
    """Untrusted text as plain Markdown: nothing in it makes a link, a tag, emphasis or a table cell."""
    escaped = (
        _SPECIAL.sub(r"\\\1", text).replace("\\<", "&lt;").replace("\\>", "&gt;").replace("\\&", "&amp;")
    )
    return escaped.replace("://", "&#58;//").replace("www.", "www&#46;").replace("@", "&#64;")


def _cell(cell: Cell) -> str:
    note = f" ({cell.note})" if cell.note else ""
    ends = f" {escape(cell.interval)}" if cell.interval else ""
    return f"{escape(cell.text)}{ends}{note}"


def table(grid: Grid, columns: tuple[str, ...] = ()) -> list[str]:
    """Lines of a pipe table with the named columns (all of them by default)."""
    keep = [i for i, (name, _) in enumerate(grid.columns) if not columns or name in columns]
    lines = [
        "| model | " + " | ".join(escape(grid.columns[i][0]) for i in keep) + " |",
        "|:--|" + "--:|" * len(keep),
    ]
    for name, cells in grid.rows:
        lines.append(f"| {escape(name)} | " + " | ".join(_cell(cells[i]) for i in keep) + " |")
    return lines


def markdown(summary: Summary, charts: dict[str, str]) -> str:
    """The model card's section.

    Args:
        summary: what to report.
        charts: chart name → its words, for the images under ``charts/``.
    """
    notes = Notes()
    grid = main_grid(summary, notes)
    versions = ", ".join(f"{name} {value}" for name, value in pairs(summary.data.get("versions")))
    engine = ", ".join(value for _, value in pairs(summary.data.get("engine")))
    lines = [f"## Displacement from {escape(summary.reference.key)}", ""]
    lines += [f"{escape(sentence)}  " for sentence in headline(summary)] + [""]
    if "headline" in charts:
        lines += [f"![{escape(charts['headline'])}](charts/headline.png)", ""]
    lines += [*table(grid, _MAIN), ""]
    lines += [
        "KLD in nats per token, 95% intervals in brackets; max is a sample extreme and has no interval. "
        '"tied": this run cannot tell the candidates apart.',
        "",
    ]
    lines += [f"({number}) {escape(reason)}  " for number, reason in enumerate(notes.reasons, 1)]
    lines += [""] if notes.reasons else []
    lines += [f"**{escape(floor_words(summary))}.**  ", f"Protocol: {escape(protocol_line(summary))}.  "]
    lines += [f"Engine: {escape(engine or 'not stored')}. Versions: {escape(versions or 'not stored')}.", ""]
    for name, words in charts.items():
        if name != "headline":
            lines += [f"![{escape(words)}](charts/{name}.png)", ""]
    lines += ["### Models", "", *table(model_grid(summary)), ""]
    return "\n".join(lines)
