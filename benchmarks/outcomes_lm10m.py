"""Drops and leapfrogs per task of a cohort, through ``quantvane bench``, as JSON and as the table of docs/bench.md.

    python benchmarks/outcomes_lm10m.py --reference m-f16.gguf --cohort DIR --tasks items.jsonl --tasks blimp/ --run RUN
    python benchmarks/outcomes_lm10m.py --table        # rewrites the table from the stored JSON

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
    from quantvane.run.bench import bench

    paths = [str(next(args.cohort.glob(f"*-{kind}.gguf"))) for kind in args.types.split(",")]
    done = bench(
        args.reference, paths, tasks=args.tasks, limit=args.limit, replay=not args.plain, out=args.run, slots=args.slots
    )
    summary = done.summary
    document = {
        "schema": 1,
        "protocol": summary["protocol"],
        "versions": summary["versions"],
        "hardware": summary["hardware"],
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
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def table(document: dict[str, Any]) -> str:
    """Pooled counts, then the generation tasks: drops/leapfrogs."""
    names = [entry["name"] for entry in document["candidates"]]
    tasks = list(document["candidates"][0]["tasks"])
    if len(tasks) > 24:  # the minimal pairs are summed up
        tasks = [t for t in tasks if t in _generated(document)]
    lines = ["| task | n | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for task in [*tasks, "all items"]:
        found = [e["pooled"] if task == "all items" else e["tasks"][task] for e in document["candidates"]]
        row = [f"{f['drops']} / {f['leapfrogs']} ({f['delta']:+.4f})" for f in found]
        lines.append(f"| {task} | {found[0]['n']} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def _generated(document: dict[str, Any]) -> set[str]:
    return {task["name"] for task in document["protocol"]["tasks"] if task["metric"] == "exact_match"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only rewrite the table in docs/bench.md")
    parser.add_argument("--reference", help="the reference's GGUF file")
    parser.add_argument("--cohort", type=Path, help="directory of its quants, named NAME-TYPE.gguf")
    parser.add_argument("--tasks", action="append", default=[])
    parser.add_argument("--types", default=TYPES)
    parser.add_argument("--limit", type=int, default=None, help="items of each task")
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--plain", action="store_true", help="generate plainly instead of replaying")
    parser.add_argument("--run", type=Path, default=Path("quantvane-runs/outcomes-lm10m"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "outcomes_lm10m.json")
    args = parser.parse_args()
    if not args.table:
        if not (args.reference and args.cohort and args.tasks):
            parser.error("--reference, --cohort and --tasks are needed")
        run(args)
    text = table(json.loads(args.out.read_text(encoding="utf-8")))
    print(text)
    if args.limit is not None:
        return  # a trial: the page keeps the table of whole tasks
    page = PAGE.read_text(encoding="utf-8")
    head, rest = page.split(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
