"""Building blocks of the charts: one line a candidate, bars or dots with whiskers, the noise floor. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from .numbers import number
from .readings import Candidate, Summary
from .scales import Axis
from .tables import Row, chart_names
from .theme import FLOOR, INK, MUTED, x_axis

__all__ = ["Lines", "Panel", "data", "floor_line", "note_marks", "panel", "whiskers"]

_LONG = 26
ONE, TWO = "  ·  ", "\n"


def bits_words(model: Candidate) -> str:
    """Bits per weight with their unit, or that they are unknown."""
    return "size unknown" if math.isnan(model.bits) else f"{model.bits:.2f} bpw"


def data(rows: Sequence[Row]) -> Any:
    """Rows as inline data (no file, no address)."""
    return alt.Data(values=list(rows))


@dataclass(frozen=True, slots=True)
class Lines:
    """The candidates' lines, one below the other: ``text`` maps a row's name to what its line says."""

    text: dict[str, str]
    step: int

    @classmethod
    def of(cls, summary: Summary) -> Lines:
        """Lines in the summary's order, bits per weight beside the name (below it where a name is long)."""
        names = chart_names(summary)
        long = any(len(name) > _LONG for name in names.values())
        text: dict[str, str] = {}
        for candidate in summary.candidates:
            text[candidate.key] = f"{names[candidate.key]}{TWO if long else ONE}{bits_words(candidate)}"
        return cls(text, 32 if long else 24)

    def label(self, rows: Sequence[Row]) -> list[Row]:
        """The rows with ``line``, the text of their line."""
        return [{**row, "line": self.text[row["name"]]} for row in rows]

    def y(self, *, shown: bool = True) -> Any:
        """Vertical encoding; hidden in all panels but the first."""
        axis = None
        if shown:
            offset = -7 if self.step > 24 else 0  # a label's first line is what is centred
            axis = alt.Axis(
                labelExpr="split(datum.value, '\\n')",
                ticks=False,
                domain=False,
                labelPadding=6,
                labelOffset=offset,
            )
        return alt.Y("line:N", scale=alt.Scale(domain=list(self.text.values())), axis=axis, title=None)


@dataclass(frozen=True, slots=True)
class Panel:
    """How one panel is drawn: its axis, the axis's title, the heading, colour, width; bars or dots."""

    axis: Axis
    unit: str
    heading: str
    colour: str
    width: int = 200
    bars: bool = True


def whiskers(rows: Sequence[Row], axis: Axis, lines: Lines, shown: bool, unit: str) -> list[Any]:
    """95% intervals as rules with caps; ends outside a logarithmic axis are cut at it (no cap there)."""
    drawn = [r for r in rows if r["low"] is not None and r["high"] is not None and axis.draws(r["high"])]
    cut = [{**r, "low": axis.clip(r["low"]), "high": axis.clip(r["high"])} for r in drawn]
    caps = [{**r, "end": r[side]} for r in drawn for side in ("low", "high") if axis.clip(r[side]) == r[side]]
    rule = alt.Chart(data(cut)).mark_rule(color=INK, strokeWidth=1.4)
    tick = alt.Chart(data(caps)).mark_tick(color=INK, thickness=1.4, size=8, orient="vertical")
    y = lines.y(shown=shown)
    return [
        rule.encode(x=x_axis("low", axis, unit), x2="high:Q", y=y),
        tick.encode(x=x_axis("end", axis, unit), y=y),
    ]


def floor_line(axis: Axis, floor: float, unit: str) -> list[Any]:
    """The noise floor as a dashed line, where it lies on the axis."""
    if not axis.draws(floor) or not axis.low <= floor <= axis.high:
        return []
    rule = alt.Chart(data([{"floor": floor}])).mark_rule(color=FLOOR, strokeDash=[5, 3], strokeWidth=1.6)
    return [rule.encode(x=x_axis("floor", axis, unit))]


def note_marks(rows: Sequence[Row], axis: Axis, lines: Lines, shown: bool, unit: str) -> Any:
    """Words in place of what cannot be drawn, at the start of its line."""
    notes = []
    for row in rows:
        words = ""
        if row["note"]:
            words = row["note"].split(":")[0]
        elif not axis.draws(row["value"]):
            words = f"{number(row['value'])}, off this axis"
        if words:
            notes.append({**row, "start": axis.low, "words": words})
    text = alt.Chart(data(notes)).mark_text(
        align="left", dx=4, color=MUTED, fontSize=10.5, fontStyle="italic"
    )
    return text.encode(x=x_axis("start", axis, unit), y=lines.y(shown=shown), text="words:N")


def panel(rows: Sequence[Row], how: Panel, lines: Lines, *, shown: bool, floor: float | None = None) -> Any:
    """One panel: bars (or dots) with their numbers, whiskers, notes and, where given, the noise floor."""
    rows, axis, y = lines.label(rows), how.axis, lines.y(shown=shown)
    drawn = [r for r in rows if axis.draws(r["value"])]
    for row in drawn:
        value = row["value"]
        row["text"] = f"{number(value * 100, 4)}%" if axis.form == "~%" else number(value)
        row["start"] = axis.low if axis.kind == "log" else 0.0
        row["after"] = max(value, row["high"] if row["high"] is not None else value)
    unit = how.unit
    base = alt.Chart(data(drawn))
    if how.bars:
        body = base.mark_bar(color=how.colour, height={"band": 0.62})
        body = body.encode(x=x_axis("start", axis, unit), x2="value:Q", y=y)
    else:
        body = base.mark_point(stroke=INK, fill=how.colour, filled=True, opacity=1, size=62, strokeWidth=1)
        body = body.encode(x=x_axis("value", axis, unit), y=y)
    words = base.mark_text(align="left", dx=7, color=INK, fontSize=10.5)
    words = words.encode(x=x_axis("after", axis, unit), y=y, text="text:N")
    spread = whiskers(rows, axis, lines, shown, unit)
    marks = [body, *spread] if how.bars else [*spread, body]
    layers = [*marks, words, note_marks(rows, axis, lines, shown, unit)]
    if floor is not None:
        layers += floor_line(axis, floor, unit)
    title = alt.TitleParams(text=how.heading, fontSize=12, anchor="start", frame="group", offset=6, color=INK)
    return alt.layer(*layers).properties(width=how.width, height=alt.Step(lines.step), title=title)
