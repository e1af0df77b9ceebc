"""Charts of a study: document in, Altair chart out. Pure; nothing is rendered here."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from .marks import data
from .scales import Axis, choose_axis
from .study_words import main_parts, metric_name, rho_words, short_corpus, signed_text
from .theme import FLOOR, GRID, INK, MUTED, SERIES, finish, x_axis, y_axis

__all__ = ["study_charts"]

Row = dict[str, Any]
Document = Mapping[str, Any]
_IN, _OUT = SERIES[3], SERIES[1]
_DIVERGING = ("#b35806", "#f1a340", "#fee0b6", "#f7f7f7", "#d8daeb", "#998ec3", "#542788")


def study_charts(document: Document) -> dict[str, Any]:
    """Name → chart, without those that have nothing to draw."""
    drawn = {
        "scatter": _scatter(document),
        "sweep": _sweep(document),
        "variants": _variants(document),
        "parts": _parts(document),
        "signed": _signed(document),
        "items": _items(document),
    }
    return {name: chart for name, chart in drawn.items() if chart is not None}


def _wrap(*sentences: str) -> list[str]:
    return [line for sentence in sentences for line in textwrap.wrap(sentence, 118)]


def _points(document: Document, field: str) -> list[Row]:
    rows = []
    for row in document["candidates"]:
        if row["metric"] is not None and row["metric"] > 0 and row[field] is not None:
            rows.append({**row, "y": row[field], "where": "in the zone" if row["in_zone"] else "outside"})
    return rows


def _colour(shown: bool) -> Any:
    legend = alt.Legend(orient="top", title=None, symbolSize=80) if shown else None
    scale = alt.Scale(domain=["in the zone", "outside"], range=[_IN, _OUT])
    return alt.Color("where:N", scale=scale, legend=legend)


def _cloud(rows: Sequence[Row], x: Axis, y: Axis, titles: tuple[str, str], legend: bool) -> list[Any]:
    base = alt.Chart(data(rows))
    layers = []
    spread = [{**r, "low": y.clip(r["low"]), "high": y.clip(r["high"])} for r in rows if r.get("low") is not None]
    if spread:
        rule = alt.Chart(data(spread)).mark_rule(color=MUTED, strokeWidth=1, opacity=0.7)
        layers.append(rule.encode(x=x_axis("metric", x, titles[0]), y=y_axis("low", y, titles[1]), y2="high:Q"))
    dots = base.mark_point(filled=True, stroke=INK, strokeWidth=0.7, size=62, opacity=0.95)
    layers.append(
        dots.encode(
            x=x_axis("metric", x, titles[0]), y=y_axis("y", y, titles[1]), color=_colour(legend), tooltip=["name:N"]
        )
    )
    return layers


def _rule_at(value: float, x: Axis, y: Axis, titles: tuple[str, str], dash: bool) -> list[Any]:
    if not y.low <= value <= y.high:
        return []
    line = alt.Chart(data([{"at": value}]))
    mark = line.mark_rule(color=FLOOR if dash else INK, strokeDash=[5, 3] if dash else [1, 0], strokeWidth=1.3)
    return [mark.encode(y=y_axis("at", y, titles[1]))]


def _panel(layers: Sequence[Any], words: str, size: tuple[int, int]) -> Any:
    title = alt.TitleParams(text=words, fontSize=12, anchor="start", frame="group", offset=6, color=INK)
    return alt.layer(*layers).properties(width=size[0], height=size[1], title=title)


def _scatter(document: Document) -> Any | None:
    rows = _points(document, "score")
    if len(rows) < 2:
        return None
    for row in rows:
        if row["error"] is not None:
            row["low"], row["high"] = row["score"] - 1.96 * row["error"], row["score"] + 1.96 * row["error"]
    ref = document["reference"]["score"]
    titles = (f"{metric_name(document)}, nats per token, log scale", "composite score")
    panels = []
    zone = [r for r in rows if r["in_zone"]]
    for mine, region, words in ((rows, "full", "All candidates"), (zone, "zone", "The zone alone")):
        if len(mine) < 2:
            continue
        x = choose_axis([r["metric"] for r in mine], force_log=True, form="~e")
        ends = [v for r in mine for v in (r.get("low"), r.get("high"), ref) if v is not None]
        y = choose_axis(ends, from_zero=False, form=".2f" if max(ends) - min(ends) > 0.1 else ".3f")
        layers = [*_rule_at(ref, x, y, titles, False)]
        rule, _, number = document["zone"]["rule"].partition(":")
        if rule == "score":
            layers += _rule_at(ref * (1 - float(number)), x, y, titles, True)
        layers += _cloud(mine, x, y, titles, region == "full")
        found = document["headline"][region]
        panels.append(_panel(layers, f"{words} ({len(mine)}): {rho_words(found)}", (430, 330)))
    subtitle = _wrap(
        "Each point is a candidate; whiskers: 95% of its paired difference from the reference. Solid line: the "
        "reference's score" + ("; dashed: the zone's threshold." if document["zone"]["rule"][:5] == "score" else "."),
        "The panels have their own axes.",
    )
    return finish(
        alt.hconcat(*panels, spacing=26), "Displacement ranks a cohort from afar; does it rank near the baseline?",
        subtitle,
    )  # fmt: skip


def _sweep(document: Document) -> Any | None:
    rule = document["zone"]["rule"].partition(":")[0]
    rows: list[Row] = [
        {"members": r["members"], "value": r["value"], "low": r["ci"][0], "high": r["ci"][1],
         "threshold": r["threshold"], "rule": r["rule"], "words": _threshold_words(rule, r["threshold"])}
        for r in document["sweep"] if r["value"] is not None and r["ci"] is not None
    ]  # fmt: skip
    # Several thresholds can make the same zone: the first stands for all.
    rows = list({r["members"]: r for r in reversed(rows)}.values())[::-1]
    if len(rows) < 2:
        return None
    x = Axis("linear", min(r["members"] for r in rows) - 1, max(r["members"] for r in rows) + 1)
    y = Axis("linear", -1.05, max(0.45, *(r["high"] + 0.05 for r in rows)))
    titles = ("candidates in the zone", "Spearman ρ" if document["choices"]["method"] == "spearman" else "coefficient")
    base = alt.Chart(data(rows))
    layers = [
        *_rule_at(0.0, x, y, titles, False),
        base.mark_area(color=_IN, opacity=0.18).encode(
            x=x_axis("members", x, titles[0]), y=y_axis("low", y, titles[1]), y2="high:Q"
        ),
        base.mark_line(color=_IN, strokeWidth=2).encode(
            x=x_axis("members", x, titles[0]), y=y_axis("value", y, titles[1])
        ),
        base.mark_point(filled=True, fill=_IN, stroke=INK, size=55, opacity=1).encode(
            x=x_axis("members", x, titles[0]), y=y_axis("value", y, titles[1])
        ),
        alt.Chart(data(_spaced(rows))).mark_text(dy=-12, color=INK, fontSize=10).encode(
            x=x_axis("members", x, titles[0]), y=y_axis("value", y, titles[1]), text="words:N"
        ),
    ]
    declared = [r for r in rows if r["rule"] == document["zone"]["rule"]]
    ring = alt.Chart(data(declared)).mark_point(filled=False, stroke=FLOOR, size=190, strokeWidth=2, opacity=1)
    layers.append(ring.encode(x=x_axis("members", x, titles[0]), y=y_axis("value", y, titles[1])))
    subtitle = _wrap(
        f"{metric_name(document)} against the composite score in zones of every size; band: 95% interval over "
        "candidates. Ringed: the declared zone.",
        _ceiling_words(document),
    )
    chart = alt.layer(*layers).properties(width=760, height=320)
    return finish(chart, "The correlation as the zone widens", subtitle)


def _spaced(rows: Sequence[Row]) -> list[Row]:
    """Rows far enough apart for their labels."""
    kept: list[Row] = []
    for row in rows:
        if not kept or row["members"] - kept[-1]["members"] >= 2:
            kept.append(row)
    return kept


def _threshold_words(rule: str, value: float) -> str:
    return f"{value * 100:.3g}%" if rule == "score" else f"{value:.3g}"


def _ceiling_words(document: Document) -> str:
    found = document["ceiling"]["zone"]["value"]
    null = document["null"]
    words = "" if found is None else f"No metric's |ρ| can exceed {found:.2f} in the declared zone (noise ceiling). "
    if null["median"] is None:
        return words
    return words + (
        f"Its narrowness and the benchmark's noise alone would leave {signed_text(null['median'])} "
        f"({signed_text(null['low'])} to {signed_text(null['high'])})."
    )


def _variants(document: Document) -> Any | None:
    rows: list[Row] = []
    for row in document["variants"]:
        for region, words in (("full", "all candidates"), ("zone", "zone")):
            found = row[region]
            sure = found["p_holm"] is not None and found["p_holm"] <= 0.05
            text = "—" if found["value"] is None else signed_text(found["value"]) + ("*" if sure else "")
            rows.append(
                {
                    "line": row["words"], "column": f"{short_corpus(row['corpus'])} · {row['context']}",
                    "region": words, "value": found["value"], "text": text,
                    "ink": "#fefefe" if abs(found["value"] or 0) > 0.75 else "#010101",
                }
            )  # fmt: skip
    if not rows:
        return None
    lines = list(dict.fromkeys(r["line"] for r in rows))
    columns = list(dict.fromkeys(r["column"] for r in rows))
    scale = alt.Scale(domain=[-1, -0.66, -0.33, 0, 0.33, 0.66, 1], range=list(_DIVERGING), clamp=True)
    panels: list[Any] = []
    for region in ("all candidates", "zone"):
        mine = [r for r in rows if r["region"] == region]
        y = alt.Y("line:N", sort=lines, title=None, axis=alt.Axis(ticks=False, domain=False) if not panels else None)
        x = alt.X("column:N", sort=columns, title=None, axis=alt.Axis(labelAngle=-30, ticks=False, domain=False))
        boxes = alt.Chart(data(mine)).mark_rect(stroke=GRID).encode(
            x=x, y=y,
            color=alt.Color("value:Q", scale=scale,
                            legend=alt.Legend(title="ρ", orient="right", gradientLength=180) if panels else None),
        )  # fmt: skip
        words = alt.Chart(data(mine)).mark_text(fontSize=10.5).encode(
            x=x, y=y, text="text:N", color=alt.Color("ink:N", scale=None)
        )
        panels.append(
            alt.layer(boxes, words).resolve_scale(color="independent").properties(
                width=alt.Step(64), height=alt.Step(21),
                title=alt.TitleParams(text=region, fontSize=12, anchor="start", frame="group", color=INK),
            )
        )  # fmt: skip
    subtitle = _wrap(
        "Correlation of each displacement metric with the composite score, by corpus and context length. Larger is "
        "further, so −1 means: further is worse.",
        "*: p ≤ 0.05 after Holm's correction over all metrics of the panel. —: not defined.",
    )
    return finish(alt.hconcat(*panels, spacing=14), "Every metric, in full and near the baseline", subtitle)


_PARTS = {
    "volume": "volume: items that flipped",
    "direction": "direction: −1 all drops, +1 all gains",
    "delta": "Δscore = volume × direction",
}


def _parts(document: Document) -> Any | None:
    main = main_parts(document)
    panels: list[Any] = []
    still = sum(r["volume"] == 0 for r in document["candidates"])
    for field, words in _PARTS.items():
        # Where nothing flipped there is no direction, and no place on a logarithmic axis.
        rows = [r for r in _points(document, field) if r["volume"]]
        if len(rows) < 2 or "full" not in main:
            continue
        x = choose_axis([r["metric"] for r in rows], force_log=True, form="~e")
        y = choose_axis([r["y"] for r in rows], from_zero=False, form="~g" if field == "volume" else ".2f")
        titles = ("displacement, nats per token, log scale", words)
        layers = _rule_at(0.0, x, y, titles, False) if field != "volume" else []
        layers += _cloud(rows, x, y, titles, not panels)
        full, zone = main["full"][field]["value"], main["zone"][field]["value"]
        panels.append(_panel(layers, f"ρ {signed_text(full)} in full, {signed_text(zone)} in the zone", (270, 280)))
    if not panels:
        return None
    subtitle = _wrap(
        f"Displacement: {metric_name(document)}. Volume and direction of the composite score; "
        "Δscore is their product.",
        f"{still} candidates flipped no item and are not drawn." if still else "",
    )
    return finish(alt.hconcat(*panels, spacing=22), "Displacement is volume; is it direction?", subtitle)


def _dots(rows: list[Row], axis: Axis, unit: str, lines: list[str], reference: float | None) -> Any:
    y = alt.Y("line:N", sort=lines, title=None, axis=alt.Axis(ticks=False, domain=False, labelLimit=330))
    offset = alt.YOffset("where:N", sort=["all candidates", "zone"])
    scale = alt.Scale(domain=["all candidates", "zone"], range=[_OUT, _IN])
    colour = alt.Color("where:N", scale=scale, legend=alt.Legend(orient="top", title=None, symbolSize=80))
    layers = []
    if reference is not None:
        line = alt.Chart(data([{"at": reference}])).mark_rule(color=INK, strokeDash=[5, 3])
        layers.append(line.encode(x=x_axis("at", axis, unit)))
    spread = alt.Chart(data([r for r in rows if r["low"] is not None])).mark_rule(strokeWidth=1.6)
    layers.append(spread.encode(x=x_axis("low", axis, unit), x2="high:Q", y=y, yOffset=offset, color=colour))
    dots = alt.Chart(data(rows)).mark_point(filled=True, stroke=INK, strokeWidth=0.7, size=70, opacity=1)
    layers.append(dots.encode(x=x_axis("value", axis, unit), y=y, yOffset=offset, color=colour))
    text = alt.Chart(data(rows)).mark_text(align="left", dx=7, dy=-7, color=INK, fontSize=10)
    layers.append(text.encode(x=x_axis("value", axis, unit), y=y, yOffset=offset, text="text:N"))
    return alt.layer(*layers).properties(width=520, height=alt.Step(20))


_WHERE = {"full": "all candidates", "zone": "zone"}


def _signed(document: Document) -> Any | None:
    rows: list[Row] = []
    for row in document["signed"]:
        if row["value"] is not None:
            low, high = row["ci"] or (None, None)
            rows.append(
                {"line": row["words"], "where": _WHERE[row["region"]], "value": row["value"], "low": low, "high": high,
                 "text": signed_text(row["value"])}
            )  # fmt: skip
    if not rows:
        return None
    lines = list(dict.fromkeys(r["line"] for r in rows))
    chart = _dots(rows, Axis("linear", -1.05, 1.12), "ρ with the score on the other half of the items", lines, 0.0)
    subtitle = _wrap(
        "Each metric is computed on one half of the items (or on the corpus) and judged by the score on the other; "
        "mean over repeated halves, 95% interval over candidates.",
        "A useful KLD lies left of 0, every other one right of it.",
    )
    return finish(chart, "Metrics that know which way, judged on items they have not seen", subtitle)


def _items(document: Document) -> Any | None:
    auc: list[Row] = []
    for row in document["prediction"]:
        for field, words in (("auroc_failed", "failed"), ("auroc_flipped", "flipped (volume)"),
                             ("auroc_direction", "dropped, given flipped (direction)")):  # fmt: skip
            found = row[field]
            if found["value"] is not None:
                group = "" if row["items"] == "all" else f" · {short_corpus(row['items'])}"
                auc.append(_dot(found, words + group, row["region"], f"{found['value']:.3f}"))
    routes = [
        _dot(row["accuracy"], row["words"], row["region"], f"{row['accuracy']['value'] * 100:.1f}%")
        for row in document["router"]
        if row["accuracy"]["value"] is not None and row["rule"] != "random"
    ]
    panels = []
    for rows, unit, words in (
        (auc, "AUROC of an item's KLD", "Does an item's KLD tell that it …"),
        (routes, "share of cases picked right", "Router between two candidates of which one is right"),
    ):
        if rows:
            ends = [v for r in rows for v in (r["low"], r["high"], r["value"], 0.5) if v is not None]
            span = max(max(ends) - min(ends), 0.02)
            axis = Axis("linear", min(ends) - 0.05 * span, max(ends) + 0.14 * span, (), ".2f")
            title = alt.TitleParams(text=words, fontSize=12, anchor="start", frame="group", offset=6, color=INK)
            lines = list(dict.fromkeys(r["line"] for r in rows))
            panels.append(_dots(rows, axis, unit, lines, 0.5).properties(title=title))
    if not panels:
        return None
    subtitle = _wrap(
        "Compared within each candidate (AUROC) or each pair of candidates (router); 95% intervals over items. "
        "Dashed: a coin."
    )
    return finish(alt.vconcat(*panels, spacing=26), "Item by item: does KLD know which answer is wrong?", subtitle)


def _dot(found: Mapping[str, Any], line: str, region: str, text: str) -> Row:
    low, high = found["ci"] or (None, None)
    value = found["value"]
    return {
        "line": line, "where": _WHERE[region], "text": text,
        "value": value if value is not None else math.nan, "low": low, "high": high,
    }  # fmt: skip
