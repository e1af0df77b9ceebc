"""Everything the report consists of, from one summary. Pure: bytes by path, nothing is written here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .markdown import markdown
from .page import page
from .readings import read_summary
from .render import png, spec_text, svg
from .specs import charts

__all__ = ["build_report"]


def build_report(summary: Mapping[str, Any]) -> dict[str, bytes]:
    """The report's files.

    Args:
        summary: the document ``compare`` stores as ``summary.json``.

    Returns:
        Relative path → content: ``report.html``, ``report.md`` and, for each chart with something to draw,
        ``charts/NAME.svg``, ``charts/NAME.png`` (two device pixels a unit) and ``charts/NAME.vl.json``.
        The same summary gives the same bytes.

    Raises:
        DataError: the summary cannot be read.
        RunError: a chart could not be rendered.
    """
    read = read_summary(summary)
    files: dict[str, bytes] = {}
    drawings: dict[str, tuple[str, str]] = {}
    for name, chart in charts(read).items():
        spec = spec_text(chart)
        document = svg(spec)
        drawings[name] = (str(chart.title.text), document)
        files[f"charts/{name}.svg"] = document.encode()
        files[f"charts/{name}.png"] = png(document)
        files[f"charts/{name}.vl.json"] = spec.encode()
    titles = {name: title for name, (title, _) in drawings.items()}
    files["report.html"] = page(read, drawings).encode()
    files["report.md"] = markdown(read, titles).encode()
    return files
