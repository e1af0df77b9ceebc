"""The report of a study: page, Markdown and charts from its stored document. Pure: bytes by path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

from altair.utils.schemapi import debug_mode
from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup

from ..errors import DataError
from .markdown import escape
from .readings import clean
from .render import png, spec_text, svg, themed
from .study_specs import study_charts
from .study_words import findings, metric_name, short_corpus, signed_text

__all__ = ["build_study_report"]

CAPTIONS: dict[str, str] = {
    "scatter": "Left, the whole cohort; right, only the candidates a user would choose among. A relation that is "
    "carried by the candidates nobody would deploy does not help to choose among the others.",
    "sweep": "The zone's threshold is a choice, declared beforehand. This is what every other choice would have shown.",
    "variants": "All metrics at once, so that no single one is picked because it looks well.",
    "parts": "An item's outcome can flip either way. Displacement moves outcomes; whether they move up or down is a "
    "second question.",
    "signed": "KLD has no sign. These metrics have one, and are judged as KLD is: on items they have not seen.",
    "items": "If KLD knew which answers are wrong, it could route between candidates.",
}
GLOSSARY: dict[str, str] = {
    "ρ": "Spearman's rank correlation (or the declared one) over candidates; −1: further is always worse.",
    "zone": "The near-baseline part of a cohort, by a rule declared before the data are looked at.",
    "volume": "Weighted share of items whose outcome flipped, either way.",
    "direction": "(gains − drops)/(gains + drops), from −1 to 1; Δscore = volume × direction.",
    "hold-out": "The zone is chosen on one half of the items and ρ computed on the other, over repeated halves.",
    "range-restriction null": "What ρ the whole cohort's relation would leave in the zone, given its narrowness and "
    "the benchmark's sampling noise.",
    "noise ceiling": "The largest |ρ| any metric can be expected to reach, given how well two halves of the items "
    "agree on the candidates (Spearman–Brown).",
    "AUROC": "Probability that an item of the first kind has the larger KLD than one of the second; 0.5 is a coin.",
    "margin flow": "Expected change of the score if each item's margin moved by another item's shift.",
    "Holm": "Correction of p-values for the number of metrics looked at.",
}


def _template(name: str) -> str:
    return resources.files(__package__).joinpath("templates", name).read_text(encoding="utf-8")


@cache
def _page() -> Template:
    environment = Environment(
        loader=FunctionLoader(_template), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("study.html.j2")


def build_study_report(document: Mapping[str, Any]) -> dict[str, bytes]:
    """Relative path → content: ``report.html``, ``report.md`` and ``charts/NAME.svg|png|vl.json``.

    Raises:
        DataError: not a study's document. RunError: a chart could not be rendered.
    """
    if document.get("schema") != 1 or "headline" not in document:
        raise DataError("this is no study's document", expected="summary.json of quantvane study", got="another")
    files: dict[str, bytes] = {}
    drawings: dict[str, tuple[str, str]] = {}
    with debug_mode(False):
        charts = study_charts(document)
    for name, chart in charts.items():
        spec = spec_text(chart)
        drawn = svg(spec)
        drawings[name] = (str(chart.title.text), drawn)
        files[f"charts/{name}.svg"] = drawn.encode()
        files[f"charts/{name}.png"] = png(drawn)
        files[f"charts/{name}.vl.json"] = spec.encode()
    tables = _tables(document)
    figures = [
        {"name": n, "caption": CAPTIONS[n], "svg": Markup(themed(s, f"chart-{n}", title, CAPTIONS[n]))}
        for n, (title, s) in drawings.items()
    ]
    page = _page().render(
        reference=clean(document["reference"]["name"]),
        count=len(document["candidates"]),
        sentences=findings(document),
        figures=figures,
        tables=tables,
        facts=_facts(document),
        glossary=GLOSSARY,
    )
    files["report.html"] = page.encode()
    files["report.md"] = _markdown(document, tables, {n: t for n, (t, _) in drawings.items()}).encode()
    return files


Table = dict[str, Any]


def _tables(document: Mapping[str, Any]) -> list[Table]:
    return [_candidates(document), _variants(document), _decomposition(document)]


def _ends(found: Mapping[str, Any], key: str = "ci") -> str:
    ends = found.get(key)
    return "" if ends is None else f"[{signed_text(ends[0])}, {signed_text(ends[1])}]"


def _rho(found: Mapping[str, Any]) -> tuple[str, str]:
    return signed_text(found["value"]), _ends(found) or clean(found.get("reason", ""))


def _candidates(document: Mapping[str, Any]) -> Table:
    rows = []
    ordered = sorted(document["candidates"], key=lambda r: (r["metric"] is None, r["metric"] or 0.0))
    for row in ordered:
        cells = [
            ("—" if row["bits_per_weight"] is None else f"{row['bits_per_weight']:.2f}", ""),
            ("—" if row["metric"] is None else f"{row['metric']:.3g}", ""),
            ("—" if row["score"] is None else f"{row['score']:.4f}", ""),
            (_signed4(row["delta"]), "" if row["error"] is None else f"± {1.96 * row['error']:.4f}"),
            ("—" if row["volume"] is None else f"{row['volume']:.4f}", ""),
            (signed_text(row["direction"]), "" if row["direction"] is not None else "nothing flipped"),
            ("yes" if row["in_zone"] else "no", ""),
        ]
        rows.append((clean(row["name"]), cells))
    columns = ["bits/weight", "displacement", "score", "Δscore", "volume", "direction", "in the zone"]
    return {"caption": f"Candidates; displacement is {metric_name(document)}", "corner": "candidate",
            "columns": columns, "rows": rows}  # fmt: skip


def _signed4(value: float | None) -> str:
    return "—" if value is None else f"{value:+.4f}".replace("-", "−")


def _p(value: float | None) -> str:
    return "—" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def _variants(document: Mapping[str, Any]) -> Table:
    rows = []
    for row in document["variants"]:
        cells = []
        for region in ("full", "zone"):
            found = row[region]
            cells += [_rho(found), (_ends(found, "ci_items") or "—", "")]
            cells += [(_p(found[key]), "") for key in ("p", "p_holm")]
        rows.append((f"{row['words']} · {short_corpus(row['corpus'])} · {row['context']}", cells))
    columns = [f"{w}, {r}" for r in ("full", "zone") for w in ("ρ", "95% over items", "p", "p (Holm)")]
    return {"caption": "Every metric against the composite score; below ρ its 95% interval over candidates",
            "corner": "metric", "columns": columns, "rows": rows}  # fmt: skip


def _decomposition(document: Mapping[str, Any]) -> Table:
    metric = document["metric"]
    rows = []
    held: dict[str, dict[str, Any]] = {}
    for row in document["decomposition"]:
        if all(row[k] == metric[k] for k in ("variant", "corpus", "context")):
            held.setdefault(row["score"], {})[row["region"]] = row
    for name, regions in held.items():
        cells = [_rho(regions[r][part]) for r in ("full", "zone") for part in ("volume", "direction", "delta")]
        rows.append((clean(name), cells))
    columns = [f"{part}, {r}" for r in ("full", "zone") for part in ("volume", "direction", "Δscore")]
    return {"caption": f"{metric_name(document)}: ρ with volume, direction and Δscore", "corner": "score",
            "columns": columns, "rows": rows}  # fmt: skip


def _facts(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    choices = document["choices"]
    groups = ", ".join(f"{clean(g['name'])} ({g['tasks']} tasks, {g['items']} items)" for g in document["groups"])
    corpora = document.get("corpora") or []
    floor = document["noise_floor"]["kld_mean"]
    return [
        ("zone", f"{document['zone']['rule']}: {document['zone']['words']}"),
        ("composite", f"{choices['composite']}; bench runs: {groups or 'none'}"),
        ("corpora", ", ".join(f"{clean(c['name'])} at {c['context']} ({c['tokens']} tokens)" for c in corpora) or "—"),
        ("correlation", f"{choices['method']}; seed {choices['seed']}, {choices['resamples']} resamples, "
         f"{choices['splits']} halvings"),
        ("noise floor", "not measured" if floor is None else f"mean KLD {floor:.3g} nats"),
        ("protocols", ", ".join(str(p)[:12] for p in document.get("protocols") or []) or "—"),
        ("versions", ", ".join(f"{k} {v}" for k, v in (document.get("versions") or {}).items()) or "—"),
    ]  # fmt: skip


def _markdown(document: Mapping[str, Any], tables: Sequence[Table], titles: Mapping[str, str]) -> str:
    lines = [f"## Study of {len(document['candidates'])} candidates of {escape(clean(document['reference']['name']))}"]
    lines += ["", *(f"- {escape(sentence)}" for sentence in findings(document)), ""]
    for name, title in titles.items():
        lines += [f"![{escape(title)}](charts/{name}.png)", ""]
    for table in tables:
        lines += [f"### {escape(table['caption'])}", ""]
        heads = [table["corner"], *table["columns"]]
        lines += ["| " + " | ".join(map(escape, heads)) + " |", "|:--|" + "--:|" * len(table["columns"])]
        for name, cells in table["rows"]:
            texts = [escape(f"{text} {more}".strip()) for text, more in cells]
            lines.append(f"| {escape(name)} | " + " | ".join(texts) + " |")
        lines.append("")
    lines += [f"- {escape(name)}: {escape(words)}" for name, words in _facts(document)]
    return "\n".join(lines) + "\n"
