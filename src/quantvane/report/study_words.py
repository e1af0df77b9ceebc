"""A study's findings in sentences, from its document alone. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .readings import clean

__all__ = ["findings", "main_parts", "metric_name", "rho_words", "short_corpus", "signed_text"]

Row = Mapping[str, Any]


def signed_text(value: float | None) -> str:
    """``+0.12``, ``−0.95``, or a dash where there is none."""
    return "—" if value is None else f"{value:+.2f}".replace("-", "−")


def rho_words(found: Row, ends: str = "ci") -> str:
    """``ρ = −0.72 [−0.84, −0.52]``, or why there is none."""
    if found["value"] is None:
        return f"no ρ ({clean(found.get('reason', 'not known'))})"
    interval = found.get(ends)
    tail = "" if interval is None else f" [{signed_text(interval[0])}, {signed_text(interval[1])}]"
    return f"ρ = {signed_text(found['value'])}{tail}"


def short_corpus(name: str) -> str:
    """A corpus's file name without its ending."""
    return clean(name).removesuffix(".txt").removesuffix(".jsonl")


def metric_name(document: Row) -> str:
    """The metric that stands for displacement, with its corpus and context."""
    metric = document["metric"]
    words = next((v["words"] for v in document["variants"] if v["variant"] == metric["variant"]), metric["variant"])
    return f"{words} on {short_corpus(metric['corpus'])} at context {metric['context']}"


def _number(value: float | None, digits: int = 2) -> str:
    return "—" if value is None else f"{value:.{digits}f}"


def _interval(found: Row, digits: int = 3, percent: bool = False) -> str:
    if found["value"] is None:
        return f"not known ({clean(found.get('reason', ''))})"
    scale, unit = (100.0, "%") if percent else (1.0, "")
    ends = found["ci"]
    tail = "" if ends is None else f" [{ends[0] * scale:.{digits}f}, {ends[1] * scale:.{digits}f}]"
    return f"{found['value'] * scale:.{digits}f}{unit}{tail}"


def findings(document: Row) -> list[str]:
    """What came out, in the order of the questions; every sentence stands by itself."""
    out = [_headline(document)]
    if document.get("reason"):
        return [*out, f"There is no score to judge by: {clean(document['reason'])}."]
    out += [_reading(document), _holdout(document["holdout"]), _null(document["null"])]
    out.append(_ceiling(document["ceiling"]))
    out.append(_decomposition(document))
    out += _prediction(document["prediction"])
    out += _router(document["router"])
    out.append(_signed(document["signed"]))
    return [sentence for sentence in out if sentence]


def _headline(document: Row) -> str:
    full, zone, held = document["headline"]["full"], document["headline"]["zone"], document["zone"]
    inside = f"in the zone of {len(held['members'])} ({clean(held['words'])}) {rho_words(zone)}"
    if held.get("reason"):
        inside = f"the zone is empty: {clean(held['reason'])}"
    return (
        f"{metric_name(document)} against the composite score: over all {len(document['candidates'])} candidates "
        f"{rho_words(full)}; {inside}. Intervals are over candidates."
    )


def _reading(document: Row) -> str:
    zone = document["headline"]["zone"]
    if zone["value"] is None or zone["ci"] is None:
        return ""
    low, high = zone["ci"]
    if low > 0 or high < 0:
        return "Inside the zone the metric still ranks: its interval leaves out 0."
    return "Inside the zone the metric cannot be told from one that says nothing: its interval contains 0."


def _holdout(found: Row) -> str:
    if found["mean"] is None:
        return f"Hold-out: none ({clean(found.get('reason', ''))})."
    return (
        f"Hold-out (zone chosen on one half of the items, ρ on the other): mean ρ {signed_text(found['mean'])} over "
        f"{found['splits']} halves, 95% of them in [{signed_text(found['low'])}, {signed_text(found['high'])}]; "
        f"choosing and judging on the same half gives {signed_text(found['same_half'])}."
    )


def _null(found: Row) -> str:
    if found["median"] is None:
        return f"Range-restriction null: none ({clean(found.get('reason', ''))})."
    less = found["p"] <= 0.05
    return (
        f"If the whole cohort's relation held in the zone, its narrowness and the benchmark's noise would leave "
        f"ρ = {signed_text(found['median'])} there (95%: {signed_text(found['low'])} to {signed_text(found['high'])}); "
        f"a ρ as weak as the observed one has p = {found['p']:.3f}: "
        + ("the zone is more silent than that explains." if less else "the zone is no more silent than that explains.")
    )


def _ceiling(found: Row) -> str:
    parts = []
    for region, words in (("full", "in full"), ("zone", "in the zone")):
        one = found[region]
        if one["value"] is None:
            parts.append(f"{words} not known ({clean(one.get('reason', ''))})")
        else:
            ends = "" if one["low"] is None else f" [{_number(one['low'])}, {_number(one['high'])}]"
            parts.append(f"{words} {_number(one['value'])}{ends}")
    return f"Noise ceiling of |ρ| for any metric: {'; '.join(parts)}."


def main_parts(document: Row) -> dict[str, Row]:
    """Region → the main metric's correlations with the composite's volume, direction and Δscore."""
    metric = document["metric"]
    return {
        row["region"]: row
        for row in document["decomposition"]
        if row["score"] == "composite" and all(row[k] == metric[k] for k in ("variant", "corpus", "context"))
    }


def _decomposition(document: Row) -> str:
    held = main_parts(document)
    parts = [
        f"{words} ρ with volume {signed_text(held[region]['volume']['value'])}, with direction "
        f"{signed_text(held[region]['direction']['value'])}"
        for region, words in (("full", "in full"), ("zone", "in the zone"))
        if region in held
    ]
    return f"What it tracks: {'; '.join(parts)}." if parts else ""


def _prediction(rows: Sequence[Row]) -> list[str]:
    row = next((r for r in rows if r["items"] == "all" and r["region"] == "zone"), None)
    if row is None:
        return []
    return [
        f"Per item, in the zone: failed items have {_interval(row['ratio'], 2)} times the KLD of passed ones "
        f"(geometric means); AUROC for failed {_interval(row['auroc_failed'])}, for flipped "
        f"{_interval(row['auroc_flipped'])}, for dropped given flipped {_interval(row['auroc_direction'])}."
    ]


def _router(rows: Sequence[Row]) -> list[str]:
    zone = {r["rule"]: r for r in rows if r["region"] == "zone"}
    if "kld" not in zone:
        return []
    others = "; ".join(
        f"{r['words']} {_interval(r['accuracy'], 1, True)}" for k, r in zone.items() if k not in ("kld", "random")
    )
    return [
        f"Router in the zone, where exactly one of two candidates is right: lower KLD on the item picks it "
        f"{_interval(zone['kld']['accuracy'], 1, True)} of the time (random 50%; {others})."
    ]


def _signed(rows: Sequence[Row]) -> str:
    zone = [r for r in rows if r["region"] == "zone" and r["value"] is not None]
    if not zone:
        return ""
    parts = [f"{r['words']} {signed_text(r['value'])}" for r in zone]
    return f"Judged on items they have not seen, in the zone: {'; '.join(parts)}."
