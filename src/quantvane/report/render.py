"""Charts to SVG and PNG, and SVG made fit for the page. Pure: text in, bytes out."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import altair as alt
import vl_convert

from ..errors import RunError
from .theme import FLOOR, GRID, INK, MUTED, PAPER, SERIES

__all__ = ["png", "spec_text", "svg", "themed"]

_SVG = "{http://www.w3.org/2000/svg}"
_VARIABLES = {
    INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--paper", FLOOR: "--floor",
    **{colour: f"--series-{number}" for number, colour in enumerate(SERIES, 1)},
}  # fmt: skip


def _grammar() -> str | None:
    """Vega-Lite version of the installed Altair, where the renderer has it; None leaves the choice to it."""
    wanted = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    return wanted if wanted in vl_convert.get_vegalite_versions() else None


def spec_text(chart: Any) -> str:
    """The chart's Vega-Lite document."""
    return str(chart.to_json(indent=1))


def svg(spec: str) -> str:
    """A stand-alone SVG on white paper. The renderer is allowed no address to load from."""
    try:
        return str(vl_convert.vegalite_to_svg(spec, vl_version=_grammar(), allowed_base_urls=[]))
    except ValueError as error:
        raise RunError(
            "A chart could not be rendered.",
            got=str(error)[:300],
            remedy="Report this together with summary.json.",
        ) from error


def png(document: str, scale: float = 2.0) -> bytes:
    """The SVG as PNG, ``scale`` device pixels a unit."""
    return bytes(vl_convert.svg_to_png(document, scale=scale))


def themed(document: str, name: str, title: str, description: str) -> str:
    """An SVG to stand inside an HTML page.

    Its colours become the page's style variables, its identifiers are made unique with ``name``, it gets a
    title and a description, scales with its box, and loses its namespace (HTML needs none).
    """
    root = ET.fromstring(document)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        for key, value in list(element.attrib.items()):
            variable = _VARIABLES.get(value)
            if variable and key in ("fill", "stroke"):
                del element.attrib[key]
                old = element.get("style")
                element.set("style", f"{old + ';' if old else ''}{key}:var({variable})")
            elif key == "id":
                element.set(key, f"{name}-{value}")
            elif value.startswith("url(#"):
                element.set(key, value.replace("url(#", f"url(#{name}-"))
    width, height = root.get("width", "0"), root.get("height", "0")
    root.attrib = {
        "viewBox": root.get("viewBox", f"0 0 {width} {height}"),
        "width": width,
        "height": height,
        "style": f"min-width:{0.72 * float(width):.0f}px",
        "role": "img",
        "aria-labelledby": f"{name}-title {name}-desc",
    }
    for tag, words in (("desc", description), ("title", title)):
        child = ET.Element(tag, {"id": f"{name}-{tag}"})
        child.text = words
        root.insert(0, child)
    return ET.tostring(root, encoding="unicode")
