"""`quantvane compare` of a reference and seven quants against llama.cpp's own tool, in turn on one machine.

The peer needs one base pass and one KL pass a quant; ours is one command. Rounds alternate, the ratio is taken
round by round, and both figures count the whole of it: start-up, files, resampling, charts.

    python benchmarks/compare_vs_peer.py --peer BUILD/bin --model m-f16.gguf --text books.txt --out results.json

BUILD is a Release build of llama.cpp's sources at the commit llama-cpp-python vendors (targets llama-perplexity).
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from quantvane.run.cohort import make_cohort
from quantvane.store.manifest import package_versions

TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_NL", "Q3_K_M", "Q2_K")


def timed(commands: list[list[str]]) -> tuple[float, float, float]:
    """Wall seconds, processor seconds and peak MB of one process, over commands run one after another."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.monotonic()
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or ("--kl-divergence" in command and "Same top p" not in done.stdout + done.stderr):
            sys.exit(f"failed: {' '.join(command)}\n{done.stderr[-2000:]}")
    wall = time.monotonic() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu, after.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--chunks", type=int, default=80)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache", default="f16")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        cohort = [r["path"] for r in make_cohort(args.model, TYPES, work / "cohort")]
        base = str(work / "base.kld")
        common = ["-c", "512", "--chunks", str(args.chunks), "-t", str(args.threads), "--kl-divergence-base", base]
        tool = str(args.peer / "llama-perplexity")
        peer = [[tool, "-m", args.model, "-f", args.text, *common]]
        peer += [[tool, "-m", path, "--kl-divergence", *common] for path in cohort]
        settings = {"n_threads": args.threads, "cache_type_k": args.cache, "cache_type_v": args.cache}
        ours = [sys.executable, "-m", "quantvane", "compare", args.model, *cohort, "--text", args.text]
        ours += ["--chunks", str(args.chunks), "--json", "--out", str(work / "run")]
        for key, value in settings.items():
            ours += ["--set", f"{key}={value}"]
        rounds = []
        for _ in range(args.rounds):
            shutil.rmtree(work / "run", ignore_errors=True)
            a, b = timed([ours]), timed(peer)
            rounds.append({"ours": a[:2], "peer": b[:2], "ratio_wall": a[0] / b[0], "ratio_cpu": a[1] / b[1]})
            print(json.dumps(rounds[-1]), flush=True)
        processor = json.loads((work / "run" / "manifest.json").read_text())["hardware"]["processor"]
    result = {
        "benchmark": "compare_vs_peer",
        "what": f"{Path(args.model).name} and {len(TYPES)} quants, context 512, {args.chunks} chunks, "
        f"{args.threads} threads, KV cache {args.cache}; (wall s, processor s) of all passes",
        "processor": processor,
        "versions": package_versions(),
        "rounds": rounds,
        "median_ratio_wall": statistics.median(r["ratio_wall"] for r in rounds),
        "median_ratio_cpu": statistics.median(r["ratio_cpu"] for r in rounds),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
