"""The study of the bundled model's cohort: results as JSON, and the results section of docs/study.md.

    python benchmarks/study_lm10m.py              # studies examples/study_cohort/tables, rewrites the section
    python benchmarks/study_lm10m.py --tables DIR # another compact export
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

from quantvane.report.numbers import number as number_text  # noqa: E402
from quantvane.report.study_words import findings, main_parts, signed_text  # noqa: E402
from quantvane.run.study import study  # noqa: E402

ROOT = HERE.parent
PAGE = ROOT / "docs" / "study.md"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
COVERAGE_BEGIN, COVERAGE_END = "<!-- promises: begin -->", "<!-- promises: end -->"
# As published: arXiv 2606.19558.
PAPER = {
    "full": ("−0.72", "−0.86"), "zone": ("+0.00", "−0.24"), "volume": ("+0.94", "+0.55"),
    "router": ("42.3–49.4%", "(both models)"), "ratio": ("1.08–1.22", "(both models)"),
}  # fmt: skip


def number(value: float | None, digits: int = 2) -> str:
    return "—" if value is None else f"{value:.{digits}f}"


def rho(found: dict[str, Any], key: str = "ci") -> str:
    if found["value"] is None:
        return f"— ({found.get('reason', '')})"
    ends = found.get(key)
    return signed_text(found["value"]) + ("" if ends is None else f" [{signed_text(ends[0])}, {signed_text(ends[1])}]")


def share(found: dict[str, Any], scale: float = 1.0, digits: int = 2, unit: str = "") -> str:
    if found["value"] is None:
        return f"— ({found.get('reason', '')})"
    ends = found["ci"]
    tail = "" if ends is None else f" [{ends[0] * scale:.{digits}f}, {ends[1] * scale:.{digits}f}]"
    return f"{found['value'] * scale:.{digits}f}{unit}{tail}"


def pick(rows: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    return next(row for row in rows if all(row[k] == v for k, v in wanted.items()))


def comparison(document: dict[str, Any]) -> list[str]:
    head, parts = document["headline"], main_parts(document)
    ratio = pick(document["prediction"], items="all", region="zone")["ratio"]
    router = pick(document["router"], rule="kld", region="zone")["accuracy"]
    rows = [
        ("ρ(KLD, score), whole cohort", rho(head["full"]), PAPER["full"]),
        ("ρ(KLD, score), zone", rho(head["zone"]), PAPER["zone"]),
        ("ρ(KLD, volume), whole cohort / zone",
         f"{signed_text(parts['full']['volume']['value'])} / {signed_text(parts['zone']['volume']['value'])}",
         PAPER["volume"]),
        ("ρ(KLD, direction), whole cohort / zone",
         f"{signed_text(parts['full']['direction']['value'])} / {signed_text(parts['zone']['direction']['value'])}",
         ("", "")),
        ("router by lower KLD, zone", share(router, 100, 1, "%"), PAPER["router"]),
        ("KLD of failed over passed items, zone", share(ratio), PAPER["ratio"]),
    ]  # fmt: skip
    lines = ["| | lm10m, here | Qwen3.6-35B-A3B, published | Devstral-Small-2-24B, published |", "|:--|--:|--:|--:|"]
    return lines + [f"| {name} | {ours} | {theirs[0]} | {theirs[1]} |" for name, ours, theirs in rows]


def variants(document: dict[str, Any]) -> list[str]:
    metric = document["metric"]
    lines = [
        f"All metrics on {metric['corpus']} at context {metric['context']} (the other corpora and contexts are in "
        "`tables/variants.parquet`):", "",
        "| metric | ρ, whole cohort | p (Holm) | ρ, zone | over items | p (Holm) |", "|:--|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    for row in document["variants"]:
        if row["corpus"] == metric["corpus"] and row["context"] == metric["context"]:
            full, zone = row["full"], row["zone"]
            items = rho({"value": zone["value"], "ci": zone["ci_items"], "reason": ""}).partition(" ")[2]
            name = row["words"].replace("|", "\\|")
            cells = [name, rho(full), number(full["p_holm"], 3), rho(zone), items or "—", number(zone["p_holm"], 3)]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def by_score(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Score → region → the main metric's row of the decomposition."""
    metric = document["metric"]
    rows: dict[str, dict[str, Any]] = {}
    for row in document["decomposition"]:
        if all(row[k] == metric[k] for k in ("variant", "corpus", "context")):
            rows.setdefault(row["score"], {})[row["region"]] = row
    return rows


def reading(document: dict[str, Any]) -> list[str]:
    """What stands beside the verdict: the benchmarks apart, the items, the zone's width."""
    rows, parts = by_score(document), []
    for group in document["groups"]:
        zone = rows[group["name"]]["zone"]
        ends = zone["delta"]["ci"]
        silent = ends is not None and ends[0] <= 0 <= ends[1]
        parts.append(
            f"{group['name']}: ρ with Δscore {rho(zone['delta'])}, with direction {rho(zone['direction'])}; "
            + ("its interval contains 0" if silent else "it ranks")
        )
    item = pick(document["prediction"], items="all", region="zone")
    inside = [c["metric"] for c in document["candidates"] if c["in_zone"]]
    low, high = number_text(min(inside), 1), number_text(max(inside), 1)
    return [
        f"- The benchmarks apart, in the same zone: {'. '.join(parts)}.",
        "- Item by item the paper's distinction is here: KLD tells which items flip (AUROC "
        f"{share(item['auroc_flipped'])}) "
        f"far better than which way a flipped one went ({share(item['auroc_direction'])}).",
        f"- The zone spans mean KLDs from {low} to {high} nats: without KV-cache types and "
        "8-bit files it would be narrower. One model of 10 M parameters says nothing about others.",
    ]


def decomposition(document: dict[str, Any]) -> list[str]:
    """The main metric against the parts of the composite, of the bench runs and of the first run's tasks."""
    rows = by_score(document)
    lines = ["| score | volume, whole cohort | direction | Δscore | volume, zone | direction | Δscore |",
             "|:--|--:|--:|--:|--:|--:|--:|"]  # fmt: skip
    groups = [g["name"] for g in document["groups"]]
    first = next(g for g in document["groups"])
    shown = ["composite", *groups, *[n for n in rows if n not in ("composite", *groups)][: first["tasks"]]]
    for name in shown:
        cells = [rho(rows[name][r][part]) for r in ("full", "zone") for part in ("volume", "direction", "delta")]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def sweep(document: dict[str, Any]) -> list[str]:
    lines = ["| loss allowed | candidates | ρ |", "|--:|--:|--:|"]
    lines += [f"| {r['threshold'] * 100:g}% | {r['members']} | {rho(r)} |" for r in document["sweep"]]
    return lines


def signed(document: dict[str, Any]) -> list[str]:
    lines = ["| metric | ρ, whole cohort | ρ, zone | beats KLD in the zone |", "|:--|--:|--:|--:|"]
    for row in document["signed"]:
        if row["region"] == "full":
            zone = pick(document["signed"], metric=row["metric"], region="zone")
            beats = "—" if zone["beats_kld"] is None else f"{zone['beats_kld'] * 100:.0f}% of halves"
            lines.append(f"| {row['words']} | {rho(row)} | {rho(zone)} | {beats} |")
    return lines


def verdict(document: dict[str, Any]) -> str:
    """Whether the phenomenon is here, by a rule that does not look at how it came out."""
    full, zone, null = document["headline"]["full"], document["headline"]["zone"], document["null"]
    if full["ci"] is None or zone["ci"] is None:
        return "This cohort does not answer the question: a correlation is not defined."
    far = full["ci"][1] < 0
    silent = zone["ci"][0] <= 0 <= zone["ci"][1]
    if far and silent:
        words = "Yes: KLD ranks the whole cohort, and in the zone its correlation cannot be told from none."
    elif far:
        words = "No: KLD ranks the whole cohort, and it still ranks inside the zone."
    else:
        words = "No: KLD does not rank even the whole cohort."
    if far and silent and null["p"] is not None:
        words += (
            " The silence is deeper than the zone's narrowness and the benchmark's noise explain."
            if null["p"] <= 0.05
            else " But the zone's narrowness and the benchmark's noise explain as much: this cohort does not show more."
        )
    return f"**Does this small model show what the paper saw?** {words}"


def section(document: dict[str, Any]) -> str:
    groups = " and ".join(f"{g['items']} items of {g['tasks']} tasks ({g['name']})" for g in document["groups"])
    lines = [
        f"{len(document['candidates'])} candidates; {groups}. Zone: {document['zone']['words']}: "
        f"{len(document['zone']['members'])} candidates.", "",
        verdict(document), "", *reading(document), "", *comparison(document), "",
        "![The cohort in full beside the zone](images/study-scatter.png)", "", "In words, as the report says it:", "",
        *(f"- {sentence}" for sentence in findings(document)), "", *variants(document), "",
        "The smallest p that 4,999 permutations can give is 0.015 after Holm over 76 metrics.", "",
        f"What {document['metric']['variant']} tracks, by benchmark (bench-pairs' 67 tasks are in "
        "`tables/decomposition.parquet`):", "", *decomposition(document), "",
        "The sweep over the zone's threshold:", "", *sweep(document), "",
        "Direction-aware metrics, judged on the other half of the items:", "", *signed(document),
    ]  # fmt: skip
    return "\n".join(lines)


_WORDS = {
    "jackknife": "covers", "bootstrap": "the bootstrap's", "found": "p ≤ 0.05 in", "rejected": "p ≤ 0.05 in",
    "coverage": "covers", "mean_rho": "mean ρ", "rho_seen": "ρ seen", "rho_expected": "ρ expected",
    "jackknife_has_0": "interval contains 0 in", "bootstrap_has_0": "the bootstrap's in", "ceiling": "mean ceiling",
    "perfect_metric": "ρ of the true Δscore", "auroc_failed": "AUROC failed covers",
    "auroc_direction": "AUROC direction covers", "ratio": "ratio covers", "router": "router covers",
}  # fmt: skip


def promises() -> str:
    held = json.loads((HERE / "results" / "study_coverage.json").read_text("utf-8"))
    lines = [f"{held['trials']} simulated cohorts a line:", "", "| what | measured |", "|:--|:--|"]
    for name, found in held["results"].items():
        held_cells = found if isinstance(found, dict) else {"found": found}
        cells = [f"{_WORDS[k]} {v:.3f}" for k, v in held_cells.items() if k in _WORDS]
        lines.append(f"| {name} | {', '.join(cells)} |")
    return "\n".join(lines)


def put(begin: str, end: str, text: str) -> None:
    page = PAGE.read_text("utf-8")
    head, rest = page.split(begin)
    PAGE.write_text(f"{head}{begin}\n{text}\n{end}{rest.split(end)[1]}", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, default=ROOT / "examples" / "study_cohort" / "tables")
    parser.add_argument("--out", type=Path, default=Path("quantvane-runs/study-lm10m"))
    args = parser.parse_args()
    document = json.loads(study(args.tables, out=args.out).to_json())
    (HERE / "results" / "study_lm10m.json").write_text(
        json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    shutil.copyfile(args.out / "charts" / "scatter.png", ROOT / "docs" / "images" / "study-scatter.png")
    put(BEGIN, END, section(document))
    if (HERE / "results" / "study_coverage.json").exists():
        put(COVERAGE_BEGIN, COVERAGE_END, promises())


if __name__ == "__main__":
    main()
