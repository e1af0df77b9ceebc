"""Charts of docs/fisher-study.md from results/fisher_study.json: python benchmarks/fisher_charts.py [--to DIR]"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np

from quantvane.report.render import png, spec_text, svg
from quantvane.report.theme import FLOOR, INK, MUTED, SERIES, finish

HERE = Path(__file__).parent
SPACES = {
    "logit": "logit: mean over tokens",
    "hidden": "hidden: mean over tokens",
    "head": "head: whole window, observed labels",
    "params-token": "params: mean over tokens, observed labels",
    "gauss_newton": "params: whole window, Gauss–Newton",
}
ORDER = (
    "rtn:8",
    "Q8_0",
    "rtn:7",
    "rtn:6",
    "Q6_K",
    "rtn:5",
    "Q5_K_M",
    "rtn:4",
    "Q4_K_M",
    "rtn:3",
    "Q3_K_M",
    "rtn:2",
    "Q2_K",
)


def shown(label: str) -> str:
    return f"{label[4:]} bit, nearest" if label.startswith("rtn:") else label


def sigmas(entry: dict[str, Any], space: str) -> np.ndarray:
    rows = entry["gauss_newton"] if space == "gauss_newton" else [w[space] for w in entry["rows"]]
    return np.array([r["moved"] / r["value"] for r in rows])


def sigma_chart(study: dict[str, Any]) -> Any:
    """Median σ and range over windows: rows are candidates, columns spaces, colours models."""
    rows = []
    for model, part in study["models"].items():
        for label in ORDER:
            entry = part["candidates"].get(label)
            for space, title in SPACES.items() if entry else ():
                if space == "gauss_newton" and "gauss_newton" not in entry:
                    continue
                s = sigmas(entry, space)
                row = {"model": model, "candidate": shown(label), "space": title, "median": float(np.median(s))}
                rows.append(row | {"low": float(s.min()), "high": float(s.max())})
    low, high = min(r["low"] for r in rows), max(r["high"] for r in rows)
    base = alt.Chart(alt.Data(values=rows))
    y = alt.Y("candidate:N", sort=[shown(x) for x in ORDER], title=None)
    models = list(study["models"])
    colour = alt.Color(
        "model:N", scale=alt.Scale(domain=models, range=list(SERIES[: len(models)])), title="model", sort=models
    )
    scale = alt.Scale(type="log", domain=[10 ** np.floor(np.log10(low)), 10 ** np.ceil(np.log10(high))])
    axis = alt.Axis(values=[0.01, 0.1, 1, 10, 100, 1000, 10000], format="~g")
    x = alt.X("low:Q", scale=scale, axis=axis, title="σ = λ_max quantized / λ_max original")
    offset = alt.YOffset("model:N", sort=models)
    rule = base.mark_rule(strokeWidth=1.6).encode(x=x, x2="high:Q", y=y, yOffset=offset, color=colour)
    dot = base.mark_point(filled=True, size=34, opacity=1).encode(
        x=alt.X("median:Q", scale=scale), y=y, yOffset=offset, color=colour
    )
    one = base.mark_rule(color=MUTED, strokeWidth=1).encode(x=alt.datum(1.0))
    far = base.mark_rule(color=FLOOR, strokeDash=[5, 3]).encode(x=alt.datum(244.0))
    cell = alt.layer(one, far, rule, dot).properties(width=300, height=alt.Step(6))
    facet = alt.Facet(
        "space:N", sort=list(SPACES.values()), header=alt.Header(title=None, labelFontSize=11.5, labelColor=INK)
    )
    chart = cell.facet(facet=facet, columns=3, spacing=16)
    subtitle = [
        "Dot: median over windows; line: smallest to largest window. Left of the grey line λ_max fell.",
        "Dashed: 244, an inflation named in the literature. One logarithmic scale in all panels.",
        "In the two small models most K-quants fall back to more bits than their name says.",
    ]
    return finish(
        chart, "Does quantization raise λ_max? It depends on the space; medians hardly move above 4 bits", subtitle
    )


def curve_chart(study: dict[str, Any], model: str) -> Any:
    """λ(t)/λ(0) of one window beside its two-term expansion; columns are candidates, rows spaces."""
    part = study["models"][model]
    rows = []
    for label, entry in part["candidates"].items():
        for space in ("logit", "hidden", "head") if "curve" in entry else ():
            row = entry["curve"][0][space]
            grid = np.linspace(-1, 1, len(row["curve"]))
            for t, value in zip(grid, row["curve"], strict=True):
                two = row["value"] + t * row["slope"] + t * t / 2 * row["curvature"]
                for kind, y in (("measured", value), ("two terms", two)):
                    rows.append(
                        {"t": float(t), "y": y / row["value"], "kind": kind, "space": space, "at": shown(label)}
                    )
    x = alt.X("t:Q", title="t along θ + tδ", axis=alt.Axis(values=[-1, 0, 1]))
    base = alt.Chart(alt.Data(values=rows))
    colour = alt.Color(
        "kind:N", scale=alt.Scale(domain=["measured", "two terms"], range=[SERIES[3], FLOOR]), title=None
    )
    dash = alt.StrokeDash(
        "kind:N", scale=alt.Scale(domain=["measured", "two terms"], range=[[1, 0], [5, 3]]), title=None
    )
    line = base.mark_line(strokeWidth=1.8).encode(
        x=x, y=alt.Y("y:Q", title="λ(t)/λ(0)", scale=alt.Scale(zero=False)), color=colour, strokeDash=dash
    )
    header = alt.Header(title=None, labelFontSize=11.5, labelColor=INK)
    order = [shown(x) for x in ORDER]
    chart = (
        line.properties(width=120, height=95)
        .facet(
            row=alt.Row("space:N", sort=["logit", "hidden", "head"], header=header),
            column=alt.Column("at:N", sort=order, header=header),
            spacing=10,
        )
        .resolve_scale(y="independent")
    )
    subtitle = [
        f"{model}, its first window. t = 1: the quantized model; t = 0: the original; t = −1: the opposite change.",
        "Every panel has its own vertical scale. A slope at t = 0 means that one of ±δ lowers λ_max.",
    ]
    return finish(chart, "The way from the original weights to the quantized ones", subtitle)


def prediction_chart(study: dict[str, Any]) -> Any:
    """Predicted against measured mean σ, by width, round-to-nearest; columns are spaces, rows models."""
    rows = []
    for model, part in study["models"].items():
        for bits in range(8, 1, -1):
            entry = part["candidates"].get(f"rtn:{bits}", {})
            for space in entry.get("prediction", ()):
                found = entry["prediction"][space]
                common = {"bits": bits, "space": space, "model": model}
                rows.append(common | {"kind": "measured", "y": found["draws"]["measured"]})
                for how, kind in (("terms", "predicted: two terms"), ("draws", "predicted: noise drawn")):
                    rows.append(common | {"kind": kind, "y": found[how]["predicted"]})
    kinds = ["measured", "predicted: two terms", "predicted: noise drawn"]
    colour = alt.Color("kind:N", scale=alt.Scale(domain=kinds, range=[INK, FLOOR, SERIES[3]]), title=None, sort=kinds)
    shape = alt.Shape(
        "kind:N", scale=alt.Scale(domain=kinds, range=["circle", "triangle-up", "square"]), title=None, sort=kinds
    )
    header = alt.Header(title=None, labelFontSize=11.5, labelColor=INK)
    x = alt.X(
        "bits:Q", scale=alt.Scale(domain=[8, 2], nice=False, padding=8), title="bits per weight, round-to-nearest"
    )
    scale, axis = alt.Scale(type="log", nice=False, padding=6), alt.Axis(format="~g", tickCount=4)
    y = alt.Y("y:Q", scale=scale, title="mean σ", axis=axis)
    base = alt.Chart(alt.Data(values=[r for r in rows if r["y"] and r["y"] > 0]))
    marks = base.mark_line(strokeWidth=1.2, opacity=0.7).encode(x=x, y=y, color=colour)
    dots = base.mark_point(filled=True, size=42, opacity=1).encode(x=x, y=y, color=colour, shape=shape)
    chart = (
        alt.layer(marks, dots)
        .properties(width=165, height=110)
        .facet(
            row=alt.Row("model:N", sort=list(study["models"]), header=header),
            column=alt.Column("space:N", sort=list(SPACES), header=header),
            spacing=12,
        )
        .resolve_scale(y="independent")
    )
    subtitle = [
        "Predicted from the size of the rounding noise alone, before anything is quantized: by the first two terms of",
        "the expansion, and by drawing noise of that size and running the model. Each panel has its own log scale.",
    ]
    return finish(chart, "Can σ be predicted before quantizing?", subtitle)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "fisher_study.json")
    parser.add_argument("--to", type=Path, default=HERE.parent / "docs" / "images")
    given = parser.parse_args()
    study = json.loads(given.results.read_text(encoding="utf-8"))
    curved = "lm10m" if "lm10m" in study["models"] else next(iter(study["models"]))
    charts = {
        "fisher-sigma": sigma_chart(study),
        "fisher-curve": curve_chart(study, curved),
        "fisher-prediction": prediction_chart(study),
    }
    given.to.mkdir(parents=True, exist_ok=True)
    for name, chart in charts.items():
        (given.to / f"{name}.png").write_bytes(png(svg(spec_text(chart)), scale=1.3))


if __name__ == "__main__":
    main()
