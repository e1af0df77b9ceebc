"""The study's cohort: 30 candidates of the bundled model, measured and benched, ready for ``quantvane study``.

    python examples/study_cohort/build.py --text wiki.txt --text books.txt --tasks items.jsonl \\
        --pairs-dir blimp/ --work DIR

Candidates: llama.cpp's types with and without an importance matrix (made here, of the package's own demo text), mixed
tensor types, and the reference under other KV-cache types. Four steps, each of which continues where it was
interrupted when the same command is given again:

1. the files; 2. ``compare`` on all texts at each context length; 3. ``bench`` on the generation items;
4. ``bench`` on a seeded sample of each paradigm's minimal pairs. Then: the compact tables in --export.
"""

from __future__ import annotations

import argparse
import sys
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from quantvane.run.bench import bench
from quantvane.run.cohort import make_cohort, make_imatrix
from quantvane.run.compare import compare, is_complete
from quantvane.run.study import export_study

PLAIN = (
    "Q8_0", "Q6_K", "Q5_K_M", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_0", "IQ4_NL", "IQ4_XS", "IQ3_M", "Q3_K_M", "Q3_K_S",
    "Q2_K",
)  # fmt: skip
WITH_IMATRIX = ("Q5_K_M", "Q4_K_M", "Q4_0", "IQ4_XS", "IQ3_M", "Q3_K_M", "Q2_K")
MIXED = (
    "Q8_0+attn_v=Q4_K", "Q8_0+output=Q5_K", "Q6_K+attn_q=Q3_K+attn_k=Q3_K", "Q4_K_M+output=Q8_0+token_embd=Q8_0",
)  # fmt: skip
CACHES = (
    "cache_type_k=q8_0", "cache_type_k=q5_0", "cache_type_k=iq4_nl", "cache_type_k=q4_0",
    "cache_type_k=f16&cache_type_v=f16", "cache_type_k=q4_0&cache_type_v=q4_0&flash_attn=on",
)  # fmt: skip


class Progress:
    """One line on stderr every ten seconds, and at each new step."""

    def __init__(self) -> None:
        self.begun = self.last = time.monotonic()
        self.step = ""

    def say(self, words: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self.begun), 60)
        print(f"[{minutes:3d}:{seconds:02d}] {self.step}: {words}", file=sys.stderr, flush=True)

    def begin(self, step: str) -> None:
        self.step = step
        self.say("begins")

    def __call__(self, event: dict[str, Any]) -> None:
        now = time.monotonic()
        if event["event"] == "progress" and now - self.last > 10:
            self.last = now
            self.say(f"{event['job']} {event['done'] / max(1, event['total']):.0%}")
        elif event["event"] == "summarizing":
            self.say("tables and intervals")


def sample_pairs(source: Path, target: Path, pairs: int, seed: int) -> Path:
    """So many pairs of every paradigm's file, drawn with the seed, in the file's order."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.glob("*.jsonl")):
        lines = path.read_text("utf-8").splitlines()
        rng = np.random.default_rng([seed, len(lines)])
        chosen = sorted(rng.choice(len(lines), min(pairs, len(lines)), replace=False))
        (target / path.name).write_text("\n".join(lines[i] for i in chosen) + "\n", encoding="utf-8")
    return target


def candidates(args: argparse.Namespace, progress: Progress) -> list[str]:
    """Model specs of the whole cohort; files are made where they are missing."""
    cohort = args.work / "cohort"
    text = args.calibration or str(files("quantvane") / "assets" / "demo.txt")
    matrix = args.imatrix or str(
        make_imatrix(args.reference, text, cohort / "imatrix.gguf", chunks=100, on_event=progress)
    )
    plain = make_cohort(args.reference, [*PLAIN, *MIXED], cohort, None, progress)
    weighted = make_cohort(args.reference, WITH_IMATRIX, cohort, matrix, progress)
    specs = [record["path"] for record in (*plain, *weighted)] + [f"{args.reference}?{cache}" for cache in CACHES]
    return specs[:: max(1, len(specs) // args.only)][: args.only] if args.only else specs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    bundled = str(files("quantvane") / "assets" / "lm10m-f16.gguf")
    parser.add_argument("--reference", default=bundled, help="GGUF file; the bundled model by default")
    parser.add_argument("--text", action="append", required=True, help="a corpus; give two or more")
    parser.add_argument("--tasks", required=True, help="generation items, .jsonl")
    parser.add_argument("--pairs-dir", type=Path, required=True, help="minimal pairs, one .jsonl file a paradigm")
    parser.add_argument("--work", type=Path, required=True, help="where everything is kept and continued")
    parser.add_argument("--contexts", default="128,512")
    parser.add_argument("--tokens", type=int, default=10240, help="tokens read of each corpus at each context")
    parser.add_argument("--pairs", type=int, default=40, help="pairs of each paradigm")
    parser.add_argument("--limit", type=int, default=None, help="generation items of each task; all by default")
    parser.add_argument("--seed", type=int, default=0, help="of the sample of pairs")
    parser.add_argument("--imatrix", help="importance matrix to use instead of making one")
    parser.add_argument("--calibration", help="text to make it of; the package's demo text by default")
    parser.add_argument("--only", type=int, default=0, help="a trial on so many candidates")
    parser.add_argument("--export", type=Path, default=None, help="directory for the compact tables of the study")
    args = parser.parse_args()

    progress = Progress()
    progress.begin("cohort")
    specs = candidates(args, progress)
    progress.say(f"{len(specs)} candidates")
    runs = []
    for context in (int(c) for c in args.contexts.split(",")):
        out = args.work / f"compare-{context}"
        runs.append(out)
        progress.begin(out.name)
        if not is_complete(out) or not (out / "summary.json").exists():
            # The study reads the token tables; their own intervals are not needed in full.
            compare(
                args.reference, specs, text=args.text, context=context, chunks=max(1, args.tokens // context), out=out,
                resamples=100, on_event=progress,
            )  # fmt: skip
    pairs = sample_pairs(args.pairs_dir, args.work / f"pairs-{args.pairs}", args.pairs, args.seed)
    for name, tasks, limit in (("items", args.tasks, args.limit), ("pairs", str(pairs), None)):
        out = args.work / f"bench-{name}"
        runs.append(out)
        progress.begin(out.name)
        if not is_complete(out) or not (out / "summary.json").exists():
            bench(args.reference, specs, tasks=[tasks], limit=limit, slots=64, out=out, on_event=progress)
    if args.export:
        progress.begin("export")
        export_study(runs, args.export)
    progress.begin("done")
    print(" ".join(str(run) for run in runs))


if __name__ == "__main__":
    main()
