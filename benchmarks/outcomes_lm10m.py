"""Drops and leapfrogs per task of a cohort, through ``quantvane bench``: JSON, table and chart of docs/bench.md.

    python benchmarks/outcomes_lm10m.py --reference m-f16.gguf --cohort DIR --tasks items.jsonl \\
        --tasks blimp/:60 --run RUN
    python benchmarks/outcomes_lm10m.py --table        # table and chart again from the stored JSON

An interrupted run continues in RUN. Δscore = V·D is checked exactly, in integers, for every task and candidate.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "bench.md"
BEGIN, END = "<!-- table of outcomes: begin -->", "<!-- table of outcomes: end -->"
TYPES = "Q8_0,Q6_K,Q5_K_M,Q4_K_M,IQ4_NL,Q3_K_M,Q2_K"
_FEW = 24
_KINDS = ["drops (right → wrong)", "leapfrogs (wrong → right)", "Δscore"]
_KEPT = ("n", "score_ref", "score_cand", "drops", "leapfrogs", "sidesteps", "volume")


def cells(found: dict[str, Any]) -> dict[str, Any]:
    """The counts of one task, with Δ = V·D proven: n·Δ, n·V·D and leapfrogs − drops are one integer."""
    n, down, up = found["n"], found["drops"], found["leapfrogs"]
    delta, direction = found["delta"]["value"], found["direction"]["value"] or 0.0
    whole = [round(n * delta), round(n * found["volume"] * direction), up - down]
    if len(set(whole)) != 1 or abs(n * delta - whole[0]) > 1e-6 * max(n, 1):
        raise SystemExit(f"Δscore = V·D fails: {whole}, n·Δ = {n * delta}")
    kept = {key: found[key] for key in _KEPT}
    return kept | {"delta": delta, "direction": found["direction"]["value"], "verdict": found["equivalent"]["verdict"]}


def run(args: argparse.Namespace) -> None:
    """One bench for each --tasks, so that each may have its own number of items; what is finished is only loaded."""
    from quantvane.run.bench import bench

    paths = [str(next(args.cohort.glob(f"*-{kind}.gguf"))) for kind in args.types.split(",")]
    groups = []
    for number, given in enumerate(args.tasks):
        path, _, limit = given.partition(":")
        done = bench(
            args.reference,
            paths,
            tasks=path,
            limit=int(limit) if limit else None,
            replay=not args.plain,
            out=args.run / str(number),
            slots=args.slots,
        )
        groups.append(group(Path(path).stem, done.summary))
        document = {"schema": 2, "versions": done.summary["versions"], "hardware": done.summary["hardware"]}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(document | {"groups": groups}, indent=1, ensure_ascii=False)
        args.out.write_text(text + "\n", encoding="utf-8")


def group(name: str, summary: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "protocol": summary["protocol"],
        "reference": summary["reference"],
        "noise_floor": summary["noise_floor"],
        "candidates": [
            {
                "name": entry["name"],
                "bits_per_weight": entry["bits_per_weight"],
                "kld_mean": entry["kld_mean"],
                "pooled": cells(entry["pooled"]) | {"noise": entry["pooled"].get("noise")},
                "tasks": {task: cells(found) for task, found in entry["tasks"].items()},
                "replay": {k: v for k, v in entry.get("replay", {}).items() if k != "unsure_items"},
            }
            for entry in summary["candidates"]
        ],
    }


def table(document: dict[str, Any]) -> str:
    """Drops / leapfrogs (Δscore): of many tasks only all together, of few every one."""
    names = [entry["name"].rpartition("-")[2] for entry in document["groups"][0]["candidates"]]
    lines = ["| items | n | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for held in document["groups"]:
        entries = held["candidates"]
        tasks = list(entries[0]["tasks"])
        for task in tasks if len(tasks) <= _FEW else []:
            lines.append(line(task, [entry["tasks"][task] for entry in entries]))
        lines.append(line(f"**{held['name']}**", [entry["pooled"] for entry in entries]))
        floor = [entry["pooled"]["noise"] for entry in entries]
        if floor[0]:
            lines.append(f"| noise floor | | {floor[0]['drops']} / {floor[0]['leapfrogs']} |" + " |" * (len(names) - 1))
        if entries[0]["kld_mean"] is not None:
            klds = " | ".join(f"{entry['kld_mean']:.2g}" for entry in entries)
            lines.append(f"| mean KLD, nats | | {klds} |")
    return "\n".join(lines)


def line(name: str, found: list[dict[str, Any]]) -> str:
    row = [f"{f['drops']} / {f['leapfrogs']} ({f['delta']:+.4f})" for f in found]
    return f"| {name} | {found[0]['n']} | " + " | ".join(row) + " |"


def chart(document: dict[str, Any]) -> Any:
    """Drops and leapfrogs in percent of the items, by quant; one panel for each group of tasks."""
    import altair as alt

    rows = []
    for held in document["groups"]:
        for entry in held["candidates"]:
            found, name = entry["pooled"], entry["name"].rpartition("-")[2]
            title, n = f"{held['name']}: {found['n']} items", found["n"]
            shares = (-found["drops"] / n, found["leapfrogs"] / n, found["delta"])
            rows += [
                {"group": title, "quant": name, "kind": kind, "share": share}
                for kind, share in zip(_KINDS, shares, strict=True)
            ]
    order = [entry["name"].rpartition("-")[2] for entry in document["groups"][0]["candidates"]]
    base = alt.Chart(alt.Data(values=rows)).encode(
        y=alt.Y("quant:N", sort=order, title=None),
        x=alt.X("share:Q", title="share of items", axis=alt.Axis(format="+.0%")),
    )
    colour = alt.Color(
        "kind:N",
        scale=alt.Scale(domain=_KINDS, range=["#b3442e", "#2f7d6d", "#222222"]),
        title=None,
        legend=alt.Legend(orient="top"),
    )
    bars = base.mark_bar(height=14).encode(color=colour).transform_filter("datum.kind != 'Δscore'")
    marks = base.mark_tick(thickness=3, height=22).encode(color=colour).transform_filter("datum.kind == 'Δscore'")
    panel = alt.layer(bars, marks).properties(width=330, height=190)
    return panel.facet(column=alt.Column("group:N", title=None)).resolve_scale(x="independent")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only rewrite the table in docs/bench.md")
    parser.add_argument("--reference", help="the reference's GGUF file")
    parser.add_argument("--cohort", type=Path, help="directory of its quants, named NAME-TYPE.gguf")
    parser.add_argument("--tasks", action="append", default=[], metavar="PATH[:N]", help="of each the first N")
    parser.add_argument("--page", type=Path, default=PAGE, help="page to write the table into")
    parser.add_argument("--types", default=TYPES)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--plain", action="store_true", help="generate plainly instead of replaying")
    parser.add_argument("--run", type=Path, default=Path("quantvane-runs/outcomes-lm10m"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "outcomes_lm10m.json")
    args = parser.parse_args()
    if not args.table:
        if not (args.reference and args.cohort and args.tasks):
            parser.error("--reference, --cohort and --tasks are needed")
        run(args)
    document = json.loads(args.out.read_text(encoding="utf-8"))
    text = table(document)
    print(text)
    page = args.page.read_text(encoding="utf-8")
    head, rest = page.split(BEGIN)
    args.page.write_text(f"{head}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}", encoding="utf-8")
    chart(document).save(str(args.page.parent / "images" / "bench-outcomes.png"), scale_factor=2)


if __name__ == "__main__":
    main()
