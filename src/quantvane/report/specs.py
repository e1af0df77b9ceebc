"""Chart specifications: summary in, Altair chart out. Pure; nothing is rendered here.

The numbers come from :mod:`~quantvane.report.tables` alone. A chart with nothing to draw is None.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable
from typing import Any

import altair as alt

from . import tables
from .marks import ONE, TWO, Lines, Panel, bits_words, data, note_marks, panel
from .numbers import number, percent
from .readings import Summary
from .scales import Axis, choose_axis, place_labels
from .tables import Row
from .theme import FLOOR, INK, MUTED, PAPER, SERIES, STEPS, TYPES, finish, text_on, x_axis, y_axis
from .words import floor_words

__all__ = [
    "CHARTS",
    "agreement_chart",
    "charts",
    "confidence_chart",
    "headline_chart",
    "size_chart",
    "tail_chart",
    "tensor_chart",
]

_NATS = "nats per token"


def _floor(summary: Summary) -> float | None:
    value = summary.floor.value
    return value if math.isfinite(value) else None


def _floor_subtitle(summary: Summary, axis: Axis, drawn_as: str) -> list[str]:
    words, floor = floor_words(summary), _floor(summary)
    if floor is not None:
        seen = axis.draws(floor) and axis.low <= floor <= axis.high
        words += f" – {drawn_as}" if seen else " – it lies off this axis"
    return textwrap.wrap(words, 112)


def _values(rows: list[Row]) -> list[float | None]:
    return [row[key] for row in rows for key in ("value", "low", "high")]


def _axis(rows: list[Row], **more: Any) -> Axis:
    """Axis of one measure: the values decide, interval ends count where they are above zero."""
    values = [row["value"] for row in rows]
    ends = [row["high"] for row in rows]
    lows = [row["low"] for row in rows if row["low"] is not None and row["low"] > 0]
    return choose_axis([*values, *ends, *lows], **more)


def headline_chart(summary: Summary) -> Any:
    """Average, top-5% mean and maximum of the KLD by candidate, bits per weight beside the name."""
    lines, rows, floor = Lines.of(summary), tables.headline_rows(summary), _floor(summary)
    parts, mean_axis, log = [], None, False
    for number_, (field, words) in enumerate(tables.HEADLINE.items()):
        mine = [row for row in rows if row["field"] == field]
        own_floor = floor if field == "kld.mean" else None
        axis = _axis(mine, floor=own_floor, room=0.24)
        mean_axis = mean_axis or axis
        log = log or axis.kind == "log"
        unit = f"KLD, {_NATS}" + (", log scale" if axis.kind == "log" else "")
        how = Panel(axis, unit, words, SERIES[number_], width=225)
        parts.append(panel(mine, how, lines, shown=number_ == 0, floor=own_floor))
    first_axis = mean_axis or Axis("linear", 0, 1)
    subtitle = [
        f"KL divergence of each candidate's next-token distribution from {summary.reference.key}'s; "
        "shorter is closer. Each panel has its own axis.",
        "Whiskers: 95% intervals. The maximum is a sample extreme: it grows with the amount of text and "
        "has no interval.",
        *(
            ["Log scale: each labelled step is a factor of 10, so bar lengths compare orders of magnitude."]
            if log
            else []
        ),
        *_floor_subtitle(summary, first_axis, "dashed line"),
    ]
    chart = alt.hconcat(*parts, spacing=22)
    return finish(chart, "How far each quant moves the model's next-token predictions", subtitle)


_PLOT = (620, 400)


def _point_labels(rows: list[Row], names: dict[str, str]) -> tuple[list[str], list[str]]:
    """Texts beside the points, and the key's lines where names are too long or too many to stand there."""
    full = [names[row["name"]] for row in rows]
    if len(full) <= 12 and max(map(len, full)) <= 22:
        return full, []
    texts = [str(i) for i in range(1, len(full) + 1)]
    sizes = ["?" if row["bits"] is None else f"{row['bits']:.2f}" for row in rows]
    return texts, [f"{i}.  {name}  ·  {size} bpw" for i, name, size in zip(texts, full, sizes, strict=True)]


def size_chart(summary: Summary) -> Any | None:
    """Mean KLD against bits per weight, with intervals and the noise floor as a band."""
    rows = tables.size_rows(summary)
    drawn = [row for row in rows if row["bits"] is not None and row["value"] is not None and row["value"] > 0]
    if not drawn:
        return None
    floor, (width, height) = _floor(summary), _PLOT
    y = _axis(drawn, floor=floor, force_log=True)
    x = choose_axis([row["bits"] for row in drawn], from_zero=False, room=0.1)
    x = Axis("linear", x.low - 0.03 * (x.high - x.low), x.high)
    pixels = [(x.at(row["bits"]) * width, (1 - y.at(row["value"])) * height) for row in drawn]
    texts, key = _point_labels(drawn, tables.chart_names(summary))
    for row, text, (px, py, align) in zip(
        drawn, texts, place_labels(pixels, texts, width, height), strict=True
    ):
        row.update(text=text, px=px, py=py, align=align)
        row.update(low=y.clip(row["low"]), high=y.clip(row["high"]))
    bits, kld = "bits per weight (file)", f"mean KLD, {_NATS}, log scale"
    xs, ys = x_axis("bits", x, bits), y_axis("value", y, kld)
    layers = []
    if floor is not None and y.draws(floor) and y.low < floor:
        top = min(floor, y.high)
        band = alt.Chart(data([{"bottom": y.low, "top": top}]))
        layers.append(
            band.mark_rect(color=FLOOR, opacity=0.16).encode(y=y_axis("bottom", y, kld), y2="top:Q")
        )
        layers.append(band.mark_rule(color=FLOOR, strokeDash=[5, 3]).encode(y=y_axis("top", y, kld)))
    spread = alt.Chart(data([r for r in drawn if r["low"] is not None and r["high"] is not None]))
    layers.append(
        spread.mark_rule(color=INK, strokeWidth=1.4).encode(x=xs, y=y_axis("low", y, kld), y2="high:Q")
    )
    base = alt.Chart(data(drawn))
    points = base.mark_point(stroke=INK, fill=SERIES[0], filled=True, opacity=1, size=70, strokeWidth=1)
    layers.append(points.encode(x=xs, y=ys))
    for align in ("left", "center", "right"):
        mine = alt.Chart(data([row for row in drawn if row["align"] == align]))
        words = mine.mark_text(align=align, baseline="middle", color=INK, fontSize=11.5)
        place = {"x": alt.X("px:Q", scale=None, axis=None), "y": alt.Y("py:Q", scale=None, axis=None)}
        layers.append(words.encode(text="text:N", **place))
    missing = [row["name"] for row in rows if row not in drawn]
    subtitle = [
        f"Mean KL divergence from {summary.reference.key} against size; lower is closer, left is smaller. "
        "Whiskers: 95% intervals.",
        *_floor_subtitle(summary, y, "shaded band"),
    ]
    if missing:
        subtitle += textwrap.wrap("Not drawn (no size, or no mean above zero): " + ", ".join(missing), 116)
    chart = alt.layer(*layers).properties(width=width, height=height)
    if key:
        chart = alt.hconcat(chart, _key(key), spacing=18)
    return finish(chart, "What a smaller file costs: divergence against bits per weight", subtitle)


def _key(lines: list[str]) -> Any:
    rows = [{"order": i, "words": line} for i, line in enumerate(lines)]
    text = alt.Chart(data(rows)).mark_text(align="left", color=INK, fontSize=11)
    y = alt.Y("order:O", axis=None)
    wide = max(map(len, lines)) * 6
    return text.encode(x=alt.value(0), y=y, text="words:N").properties(width=wide, height=alt.Step(17))


def tail_chart(summary: Summary) -> Any:
    """Median, upper percentiles and maximum of the KLD on one line a candidate."""
    lines, rows = Lines.of(summary), tables.tail_rows(summary)
    axis = _axis(rows)
    unit = f"KLD, {_NATS}" + (", log scale" if axis.kind == "log" else "")
    rows = lines.label(rows)
    drawn = [row for row in rows if axis.draws(row["value"])]
    y = lines.y()
    spans = []
    for name in {row["name"]: None for row in drawn}:
        mine = [row for row in drawn if row["name"] == name]
        values = [row["value"] for row in mine]
        spans.append({**mine[0], "from": min(values), "to": max(values)})
    bar = alt.Chart(data(spans)).mark_rule(color=MUTED, strokeWidth=1.5)
    order = list(tables.PERCENTILES.values())
    shapes = ["circle", "square", "diamond", "triangle-up", "triangle-down", "cross"]
    legend = alt.Legend(orient="top", title="Token at", columns=6, symbolStrokeColor=INK, symbolSize=90)
    dots = alt.Chart(data(drawn)).mark_point(filled=True, stroke=INK, strokeWidth=0.8, opacity=1, size=85)
    dots = dots.encode(
        x=x_axis("value", axis, unit),
        y=y,
        fill=alt.Fill(
            "measure:N", scale=alt.Scale(domain=order, range=list(STEPS)), legend=legend, sort=order
        ),
        shape=alt.Shape("measure:N", scale=alt.Scale(domain=order, range=shapes), legend=legend, sort=order),
    )
    whole = [row for name in lines.text for row in _whole_note([r for r in rows if r["name"] == name], axis)]
    layers = [bar.encode(x=x_axis("from", axis, unit), x2="to:Q", y=y), dots]
    layers.append(note_marks(whole, axis, lines, True, unit))
    chart = alt.layer(*layers).properties(width=640, height=alt.Step(lines.step))
    subtitle = [
        "Half of all tokens lie left of the median, 1 in 100 right of the 99% mark, 1 in 1000 right of "
        "99.9%. "
        "The maximum is a sample extreme.",
        *textwrap.wrap(_not_drawn(rows, axis), 116),
    ]
    return finish(chart, "Typical token and worst tokens: the tail of the divergence", subtitle)


def _whole_note(mine: list[Row], axis: Axis) -> list[Row]:
    """One row to put words on a line that has no mark at all."""
    if any(axis.draws(row["value"]) for row in mine):
        return []
    if all(row["value"] == 0 for row in mine):
        return [{**mine[0], "note": "all exactly 0"}]
    return mine[:1]


def _not_drawn(rows: list[Row], axis: Axis) -> str:
    """Which marks are missing on lines that have others."""
    parts = []
    for name in {row["name"]: None for row in rows}:
        mine = [row for row in rows if row["name"] == name]
        missing = [row for row in mine if not axis.draws(row["value"])]
        if missing and len(missing) < len(mine):
            words = (
                f"{row['measure']} ({row['note'].split(':')[0] or number(row['value'])})" for row in missing
            )
            parts.append(f"{tables.shorten(name, 30)} {', '.join(words)}")
    more = f"; and {len(parts) - 4} more" if len(parts) > 4 else ""
    return f"Not on this axis: {'; '.join(parts[:4])}{more}." if parts else ""


def confidence_chart(summary: Summary) -> Any | None:
    """Mean KLD by how sure the reference was, a small panel a candidate, one vertical scale for all."""
    rows = tables.bucket_rows(summary)
    if not any(row["value"] is not None for row in rows):
        return None
    axis, names = _axis(rows), tables.chart_names(summary)
    present = [names[name] for name in {row["name"]: None for row in rows}]
    columns = min(len(present), 4)
    width = max(150, 720 // columns - 60)
    headings = {name: "\n".join(textwrap.wrap(name, max(20, width // 7))) for name in present}
    for row in rows:
        drawn = axis.draws(row["value"])
        row["panel"] = headings[names[row["name"]]]
        row["value"] = row["value"] if drawn else None
        row["low"], row["high"] = (axis.clip(row[end]) if drawn else None for end in ("low", "high"))
    order = [row["bucket"] for row in sorted(rows, key=lambda r: r["order"])]
    left = "mean KLD, nats" + (", log scale" if axis.kind == "log" else "")
    title, angled = "reference's top probability", alt.Axis(labelAngle=-45, labelFontSize=10)
    x = alt.X("bucket:N", scale=alt.Scale(domain=list(dict.fromkeys(order))), title=title, axis=angled)
    base = alt.Chart().encode(x=x)
    path = base.mark_line(color=SERIES[3], strokeWidth=1.4).encode(
        y=y_axis("value", axis, left), order="order:Q"
    )
    rule = base.mark_rule(color=INK, strokeWidth=1.4).encode(y=y_axis("low", axis, left), y2="high:Q")
    dots = base.mark_point(filled=True, fill=SERIES[0], stroke=INK, opacity=1, size=42, strokeWidth=1)
    cell = alt.layer(path, rule, dots.encode(y=y_axis("value", axis, left)), data=data(rows))
    header = alt.Header(
        title=None, labelExpr="split(datum.value, '\\n')", labelAnchor="start", labelFontWeight=600,
        labelFontSize=11.5, labelColor=INK, labelLimit=400,
    )  # fmt: skip
    facet = alt.Facet("panel:N", sort=list(headings.values()), header=header)
    chart = cell.properties(width=width, height=130).facet(facet=facet, columns=columns, spacing=16)
    subtitle = [
        "Mean KL divergence of the tokens in each bucket of the reference's highest probability (right: the "
        "reference was nearly certain).",
        "All panels share one vertical scale. Whiskers: 95% intervals. Buckets without tokens stay empty.",
    ]
    return finish(chart, "Where it moves: unsure tokens against tokens the reference was sure of", subtitle)


def agreement_chart(summary: Summary) -> Any:
    """Top-1 agreement and ln PPL ratio with intervals."""
    lines, rows = Lines.of(summary), tables.agreement_rows(summary)
    same = [row for row in rows if row["field"] == "top1_agreement"]
    ratio = [row for row in rows if row["field"] == "ln_ppl_ratio"]
    first = choose_axis(_values(same), from_zero=False, room=0.2, form="~%")
    second = choose_axis([*_values(ratio), 0.0], from_zero=False, room=0.2)
    panels = [
        panel(
            same,
            Panel(first, "share of tokens (100% = always)", "Same most likely token", SERIES[0], 300, False),
            lines,
            shown=True,
        ),
    ]
    how = Panel(
        second,
        "ln(PPL candidate / PPL reference)",
        "Perplexity: 0 = unchanged, right = worse",
        SERIES[1],
        300,
        False,
    )
    zero = alt.Chart(data([{"zero": 0.0}])).mark_rule(color=MUTED, strokeWidth=1.2)
    right = panel(ratio, how, lines, shown=False)
    panels.append(
        alt.layer(zero.encode(x=x_axis("zero", second, how.unit)), *right.layer).properties(
            width=how.width, height=alt.Step(lines.step), title=right.title
        )
    )
    subtitle = [
        "How often candidate and reference would pick the same next token, and how much the text's "
        "perplexity changes.",
        "Whiskers: 95% intervals. Neither axis starts at zero: compare positions, not lengths.",
    ]
    return finish(
        alt.hconcat(*panels, spacing=26), "Same choice, same perplexity? Two coarser readings", subtitle
    )


def tensor_chart(summary: Summary) -> Any | None:
    """Share of the parameters in each tensor type, reference first."""
    rows = tables.tensor_rows(summary)
    known = [row for row in rows if row["type"] is not None]
    if not known:
        return None
    width = 620
    kinds = sorted({row["type"] for row in known}, key=lambda k: (k == "other", -tables.nominal_bits(k), k))
    colours = dict(zip(kinds, TYPES, strict=False))
    lines_text = Lines.of(summary)
    join = TWO if lines_text.step > 24 else ONE
    first = f"reference: {tables.shorten(summary.reference.key)}{join}{bits_words(summary.reference)}"
    lines = Lines({rows[0]["name"]: first, **lines_text.text}, lines_text.step)
    rows = lines.label(rows)
    for row in rows:
        if row["type"] is not None:
            words = f"{row['type']} {percent(row['share'], 2)}"
            fits = [w for w in (words, row["type"]) if len(w) * 6.3 < row["share"] * width]
            row.update(
                words=fits[0] if fits else "",
                ink=text_on(colours[row["type"]]),
                middle=(row["start"] + row["end"]) / 2,
            )
    known = [row for row in rows if row["type"] is not None]
    axis, unit = Axis("linear", 0.0, 1.0, form="~%"), "share of the parameters"
    base = alt.Chart(data(known))
    legend = alt.Legend(orient="top", title="Stored as", columns=10, symbolType="square")
    colour = alt.Color(
        "type:N", scale=alt.Scale(domain=kinds, range=[colours[k] for k in kinds]), legend=legend, sort=kinds
    )
    bars = base.mark_bar(stroke=PAPER, strokeWidth=1, height={"band": 0.7})
    bars = bars.encode(x=x_axis("start", axis, unit), x2="end:Q", y=lines.y(), color=colour)
    words = base.mark_text(fontSize=10.5).encode(
        x=x_axis("middle", axis, unit), y=lines.y(), text="words:N", color=alt.Color("ink:N", scale=None)
    )
    empty = [{**row, "value": None, "low": None, "high": None} for row in rows if row["type"] is None]
    chart = alt.layer(bars, words, note_marks(empty, axis, lines, True, unit))
    chart = chart.properties(width=width, height=alt.Step(lines.step))
    subtitle = [
        "A file's label names its main type only: layers whose shape a type cannot hold fall back to "
        "another one, and",
        "embeddings and outputs are often kept at more bits. Types are ordered from most to fewest bits.",
    ]
    return finish(chart, "What the files really contain: tensor types by share of parameters", subtitle)


CHARTS: dict[str, Callable[[Summary], Any | None]] = {
    "headline": headline_chart,
    "size": size_chart,
    "tail": tail_chart,
    "confidence": confidence_chart,
    "agreement": agreement_chart,
    "tensors": tensor_chart,
}


def charts(summary: Summary) -> dict[str, Any]:
    """Every chart that has something to draw, by name."""
    built = {name: draw(summary) for name, draw in CHARTS.items()}
    return {name: chart for name, chart in built.items() if chart is not None}
