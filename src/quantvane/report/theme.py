"""Colours, type and shared axes of the charts.

Series colours are Okabe and Ito's, tensor types Tol's muted and light schemes: both keep apart under the
common kinds of colour blindness. Ink, grid, paper and series colours are replaced by style variables in
the page, so that a chart follows its dark mode; see ``render.themed``.
"""

from __future__ import annotations

from typing import Any

import altair as alt

from .scales import Axis

__all__ = [
    "FLOOR",
    "GRID",
    "INK",
    "MUTED",
    "PAPER",
    "SERIES",
    "STEPS",
    "TYPES",
    "finish",
    "text_on",
    "x_axis",
    "y_axis",
]

INK, MUTED, GRID, PAPER = "#1b1f24", "#57606b", "#d8dee5", "#ffffff"
FLOOR = "#d55e01"
SERIES = ("#56b4ea", "#e69f01", "#cc79a8", "#0173b3")
STEPS = ("#fde726", "#a0da3a", "#4ac26e", "#1fa188", "#365c8e", "#46327f")
TYPES = (
    "#88ccee", "#ddcc77", "#cc6677", "#44aa99", "#332288",
    "#aa4499", "#117733", "#999933", "#882255", "#ee8866",
    "#77aadd", "#bbcc33", "#ffaabb", "#5b5b5b", "#dddddd",
)  # fmt: skip
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"


def text_on(colour: str) -> str:
    """Near-black or near-white, whichever reads better on ``colour`` (WCAG relative luminance)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#010101" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "#fefefe"


def _scale(axis: Axis) -> Any:
    more = {"zero": False} if axis.kind == "linear" else {}
    return alt.Scale(type=axis.kind, domain=[axis.low, axis.high], nice=False, clamp=True, **more)


def _marks(axis: Axis) -> Any:
    extra = {"values": list(axis.ticks)} if axis.ticks else {"tickCount": 5}
    return alt.Axis(format=axis.form, **extra)


def x_axis(field: str, axis: Axis, title: str | None) -> Any:
    """Horizontal quantitative encoding of ``field``."""
    return alt.X(f"{field}:Q", scale=_scale(axis), axis=_marks(axis), title=title)


def y_axis(field: str, axis: Axis, title: str | None) -> Any:
    """Vertical quantitative encoding of ``field``."""
    return alt.Y(f"{field}:Q", scale=_scale(axis), axis=_marks(axis), title=title)


def finish(chart: Any, title: str, subtitle: list[str]) -> Any:
    """The chart with its title and the house's configuration."""
    titled = chart.properties(
        title=alt.TitleParams(text=title, subtitle=subtitle, anchor="start", frame="bounds", offset=14)
    )
    axis = {
        "labelColor": INK,
        "titleColor": INK,
        "gridColor": GRID,
        "domainColor": MUTED,
        "tickColor": MUTED,
        "labelFont": FONT,
        "titleFont": FONT,
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "labelLimit": 460,
    }
    return titled.configure(
        background=PAPER,
        padding=14,
        font=FONT,
        aria=False,
        axis=alt.AxisConfig(**axis),
        legend=alt.LegendConfig(
            labelColor=INK, titleColor=INK, labelFontSize=11, titleFontSize=11, labelLimit=300
        ),
        title=alt.TitleConfig(
            color=INK,
            subtitleColor=MUTED,
            fontSize=15,
            subtitleFontSize=11.5,
            subtitleLineHeight=16,
            font=FONT,
            subtitleFont=FONT,
            fontWeight=600,
            subtitlePadding=6,
        ),
        view=alt.ViewConfig(stroke=None),
    )
