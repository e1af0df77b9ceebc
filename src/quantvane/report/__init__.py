"""Show it: reports, charts and tables from a stored summary, without a model.

Pure: :func:`build_report` returns what is to be written, the caller writes it. Importing this room loads no
drawing library.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["build_report", "table"]


def build_report(summary: Mapping[str, Any]) -> dict[str, bytes]:
    """Relative path → content of the HTML page, the Markdown and every chart; see ``report.build``."""
    from .build import build_report as build

    return build(summary)


def table(summary: Mapping[str, Any], width: int = 100) -> Table:
    """The compact Rich table of the terminal; see ``report.terminal``."""
    from .terminal import table as build

    return build(summary, width)
