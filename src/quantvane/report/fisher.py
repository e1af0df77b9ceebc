"""The report of a ``fisher`` run: table rows, sentences, one chart, Markdown and HTML. Pure: bytes by path."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
from altair.utils.schemapi import debug_mode
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from .markdown import escape
from .marks import data
from .numbers import number, value_text
from .page import template_text
from .readings import clean, read
from .render import png, spec_text, svg, themed
from .scales import Axis
from .theme import FLOOR, INK, MUTED, SERIES, finish, x_axis
from .words import pairs

__all__ = ["HEADINGS", "build_fisher_report", "fisher_rows", "sentences", "sigma_chart"]

HEADINGS = (
    "candidate", "space", "σ, geometric mean", "median", "5%–95% of windows", "share of windows with σ < 1", "λ_max",
    "Δ NLL, nats", "Δ entropy, nats",
)  # fmt: skip
Sigmas = Mapping[str, Mapping[str, Sequence[float | None]]]

_CAPTION = (
    "One dot a window, on a logarithmic axis: right of the dashed line the candidate's λ_max is larger than the "
    "reference's on the same tokens, left of it smaller. The bar holds the middle half of the windows, the line 90%."
)
_GLOSSARY = (
    (
        "λ_max",
        "The largest eigenvalue of the Fisher information: how strongly the output distribution can respond to a small "
        "change in the direction it is most sensitive to.",
    ),
    ("σ", "λ_max of the candidate over λ_max of the reference, on the same window of text."),
    ("logit", "F = diag(p) − ppᵀ of each next-token distribution; exact; the mean over a window's scored positions."),
    (
        "hidden",
        "F over the last hidden state, Wᵀ(diag p − ppᵀ)W; the largest Ritz value, a lower bound; mean over positions.",
    ),
    ("head", "F over the weights of the output head, for the window as a whole."),
    ("params", "F over all weights, for the window as a whole, from the gradients of its scored positions."),
    ("empirical", "Labels are the tokens that stand in the text."),
    ("sampled", "Labels are drawn from the model; λ_max of a draw is biased upward (Jensen's inequality)."),
    ("true", "The expectation over labels drawn from the model; for logit and hidden it is what F is by definition."),
)


def _space(name: str, fisher: str) -> str:
    return name if name in ("logit", "hidden") else f"{name}, {fisher}"


def fisher_rows(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Cells of `HEADINGS`, one row a candidate and space."""
    rows: list[tuple[str, ...]] = []
    for entry in summary["candidates"]:
        change = {k: (entry[k]["cand"] or math.nan) - (entry[k]["ref"] or math.nan) for k in ("nll", "entropy")}
        for space, found in entry["spaces"].items():
            sigma = found["sigma"]
            ends = " – ".join(number(read(sigma[name]).value) for name in ("p05", "p95"))
            rows.append(
                (
                    clean(entry["name"]),
                    _space(space, found["fisher"]),
                    value_text(read(sigma["geomean"])),
                    value_text(read(sigma["median"])),
                    ends,
                    value_text(read(sigma["below_one"])),
                    str(found["verdict"]),
                    f"{change['nll']:+.3f}",
                    f"{change['entropy']:+.3f}",
                )
            )
    return rows


def sentences(summary: Mapping[str, Any]) -> list[str]:
    """One sentence a space: in which candidates λ_max rises, falls, or does neither that could be told."""
    out = []
    for space, fisher in summary["spaces"].items():
        groups: dict[str, list[str]] = {}
        for entry in summary["candidates"]:
            groups.setdefault(entry["spaces"][space]["verdict"], []).append(clean(entry["name"]))
        parts = [f"{verdict}: {', '.join(names)}" for verdict, names in groups.items()]
        out.append(f"λ_max in {_panel_title(space, fisher)} – {'; '.join(parts)}.")
    out.append(
        "“rises” and “falls”: the 95% interval of σ's geometric mean lies wholly above or below 1; “undecided”: it "
        "holds 1."
    )
    return out


_TICKS = (
    0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1, 1.02, 1.05, 1.1, 1.2, 1.5, 2, 3, 5, 10,
    20, 50, 100, 1000,
)  # fmt: skip
_WIDTH, _STEP = 330, 36


def _axis(values: Sequence[float]) -> Axis:
    """Logarithmic, as wide as the values and 1 need, with labels that do not touch."""
    low, high = min(*values, 1.0), max(*values, 1.0)
    room = (high / low) ** 0.05 if high > low else 1.1
    low, high = low / room, high * room
    axis = Axis("log", low, high)
    kept = [1.0]
    for tick in sorted((t for t in _TICKS if low <= t <= high), key=lambda t: abs(math.log(t))):
        if all(abs(axis.at(tick) - axis.at(other)) * _WIDTH > 38 for other in kept):
            kept.append(float(tick))
    return Axis("log", low, high, tuple(sorted(kept)))


def _sigma_panel(
    space: str, lines: Sequence[str], entries: Sequence[Any], sigmas: Sigmas, look: tuple[str, bool]
) -> Any:
    """One space: dots of windows, box, line and tick; ``look`` is colour and whether names stand beside it."""
    colour, shown = look
    points: list[dict[str, Any]] = [
        {"y": number_ + 0.24 * math.sin(12.9898 * (i + 1)), "sigma": value}
        for number_, entry in enumerate(entries)
        for i, value in enumerate(sigmas[entry["name"]][space])
        if value is not None and math.isfinite(value) and value > 0
    ]
    if not points:
        return None
    spans = []
    for number_, entry in enumerate(entries):
        found = {k: read(v).value for k, v in entry["spaces"][space]["sigma"].items() if isinstance(v, Mapping)}
        if not math.isnan(found["median"]):
            spans.append({**found, "y": number_, "top": number_ - 0.33, "bottom": number_ + 0.33})
    axis = _axis([point["sigma"] for point in points])
    title = "σ = λ_max(candidate)/λ_max(reference), log scale"
    scale = alt.Scale(domain=[len(lines) - 0.5, -0.5], nice=False)
    expression = json.dumps(list(lines)) + "[datum.value]"
    names = alt.Axis(values=list(range(len(lines))), labelExpr=expression, ticks=False, domain=False, grid=False,
                     labelPadding=6)  # fmt: skip

    def y(field: str) -> Any:
        return alt.Y(f"{field}:Q", scale=scale, axis=names if shown else None, title=None)

    base = alt.Chart(data(spans))
    one = alt.Chart(data([{"one": 1.0}])).mark_rule(color=FLOOR, strokeDash=[5, 3], strokeWidth=1.6)
    dots = alt.Chart(data(points)).mark_circle(size=18, opacity=0.6, color=colour)
    layers = [
        one.encode(x=x_axis("one", axis, title)),
        dots.encode(x=x_axis("sigma", axis, title), y=y("y")),
        base.mark_rule(color=MUTED, strokeWidth=1.2).encode(x=x_axis("p05", axis, title), x2="p95:Q", y=y("y")),
        base.mark_rect(filled=False, stroke=INK, strokeWidth=1.2).encode(
            x=x_axis("p25", axis, title), x2="p75:Q", y=y("top"), y2="bottom:Q"
        ),
        base.mark_rule(color=INK, strokeWidth=2.5).encode(x=x_axis("median", axis, title), y=y("top"), y2="bottom:Q"),
    ]
    fisher = entries[0]["spaces"][space]["fisher"]
    heading = alt.TitleParams(text=_panel_title(space, fisher), anchor="start", fontSize=12)
    return alt.layer(*layers).properties(width=_WIDTH, height=_STEP * len(lines), title=heading)


def _panel_title(space: str, fisher: str) -> str:
    return f"{space} space" if space in ("logit", "hidden") else f"{space} space, {fisher} Fisher"


def sigma_chart(summary: Mapping[str, Any], sigmas: Sigmas) -> Any | None:
    """σ of every window by candidate, one panel a space; None where σ is defined nowhere."""
    entries = summary["candidates"]
    lines = [clean(entry["name"]) for entry in entries]
    panels: list[Any] = []
    for number_, space in enumerate(summary["spaces"]):
        drawn = _sigma_panel(space, lines, entries, sigmas, (SERIES[number_ % len(SERIES)], len(panels) % 2 == 0))
        if drawn is not None:
            panels.append(drawn)
    if not panels:
        return None
    subtitle = [
        f"One dot a window: {summary['windows']} windows of the same text, read by "
        f"{clean(summary['reference']['name'])} (the reference) and by each candidate.",
        "Box: middle half; line: 90% of windows; thick tick: median; dashed: no change. Each panel has its own axis.",
    ]
    chart = alt.concat(*panels, columns=2, spacing=26)
    return finish(chart, "λ_max of the Fisher information after quantization, relative to before", subtitle)


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    protocol = summary["protocol"]
    corpora = ", ".join(clean(c["name"]) for c in protocol["corpora"])
    words = f"{protocol['name']}, {protocol['context']} tokens a window, {corpora}; hash {protocol['hash'][:16]}"
    return [
        ("protocol", words),
        ("scored", clean(protocol["scored"])),
        ("engine", clean(summary["reference"]["build"])),
        ("versions", ", ".join(f"{k} {v}" for k, v in pairs(summary.get("versions"))) or "not stored"),
    ]


def _page(summary: Mapping[str, Any], chart: str | None) -> str:
    environment = Environment(
        loader=FunctionLoader(template_text),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("fisher.html.j2").render(
        reference=clean(summary["reference"]["name"]),
        windows=summary["windows"],
        resampled_by=summary["resampled_by"],
        sentences=sentences(summary),
        headings=HEADINGS,
        rows=fisher_rows(summary),
        chart=None if chart is None else Markup(themed(chart, "chart-sigma", "σ by candidate and space", _CAPTION)),
        caption=_CAPTION,
        facts=_facts(summary),
        glossary=_GLOSSARY,
    )


def _markdown(summary: Mapping[str, Any], drawn: bool) -> str:
    lines = [f"# λ_max against {escape(clean(summary['reference']['name']))}", ""]
    lines += [f"- {escape(sentence)}" for sentence in sentences(summary)]
    lines += ["", "| " + " | ".join(HEADINGS) + " |", "|:--|:--|" + "--:|" * 4 + ":--|" + "--:|" * 2]
    lines += ["| " + " | ".join(escape(cell) for cell in row) + " |" for row in fisher_rows(summary)]
    lines += ["", f"Brackets are 95% intervals, resampled by {summary['resampled_by']}.", ""]
    if drawn:
        lines += ["![σ of every window by candidate and space](charts/sigma.png)", "", _CAPTION, ""]
    lines += [f"- **{term}**: {escape(words)}" for term, words in (*_facts(summary), *_GLOSSARY)]
    return "\n".join(lines) + "\n"


def build_fisher_report(summary: Mapping[str, Any], sigmas: Sigmas) -> dict[str, bytes]:
    """The report's files.

    Args:
        summary: the document ``fisher`` stores as ``summary.json``.
        sigmas: candidate → space → σ of every window; None where it is undefined.

    Returns:
        relative path → content: ``report.html``, ``report.md``, ``charts/sigma.{svg,png,vl.json}``.
    """
    files: dict[str, bytes] = {}
    with debug_mode(False):
        chart = sigma_chart(summary, sigmas)
        text = None if chart is None else spec_text(chart)
    drawing = None if text is None else svg(text)
    if text is not None and drawing is not None:
        files["charts/sigma.svg"] = drawing.encode()
        files["charts/sigma.png"] = png(drawing)
        files["charts/sigma.vl.json"] = text.encode()
    files["report.html"] = _page(summary, drawing).encode()
    files["report.md"] = _markdown(summary, drawing is not None).encode()
    return files
