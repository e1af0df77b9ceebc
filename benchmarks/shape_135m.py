"""What measuring costs on the shape of a 135M model (d = 576, V = 49,152, random weights): time and disk.

    python benchmarks/shape_135m.py --text books.txt --rounds 3 --out benchmarks/results/shape_135m.json

Time: the whole `quantvane compare` of the model and seven quants against the plain forward passes of the same eight
models over the same windows by the same engine, every row of logits computed and thrown away: one model after another
on all processors, and as many models at once as there are processors, on one thread each (as `compare` runs them).
Rounds alternate. Disk: a `hidden` trace against llama.cpp's base file of the
same windows, and what the trace adds to the KL divergence (the model against its own trace).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from compare_vs_peer import TYPES, timed
from random_model import Shape, write_random_model

from quantvane.engines.registry import open_engine
from quantvane.run.cohort import make_cohort
from quantvane.run.plan import CompareSpec
from quantvane.run.prepare import prepare
from quantvane.spec import ModelSpec
from quantvane.store.manifest import package_versions

CONTEXT = 512


def forward(models: list[str], text: str, chunks: int, at_once: int) -> None:
    """Every window through every model, ``at_once`` models at a time; logits are read and dropped."""
    specs = [ModelSpec.parse(f"{model}@llamacpp") for model in models]
    engines: list[Any] = [open_engine(spec, CONTEXT) for spec in specs]
    plan = CompareSpec(specs[0], tuple(specs[1:]), tuple(models[1:]), (text,), context=CONTEXT, chunks=chunks)
    windows = prepare(plan, engines[0]).windows
    for engine in engines:
        engine.share_threads(at_once)
    with ThreadPoolExecutor(at_once) as pool:
        rows = list(pool.map(lambda engine: sum(len(block) for block in engine.logits(windows)), engines))
    print(rows)


def quantvane(*args: str) -> str:
    done = subprocess.run([sys.executable, "-m", "quantvane", *args], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return done.stdout


def time_rounds(models: list[str], args: argparse.Namespace, work: Path) -> dict[str, Any]:
    found = []
    common = ["--text", args.text, "--chunks", str(args.chunks)]
    for number in range(args.rounds):
        ours = [sys.executable, "-m", "quantvane", "compare", *models, *common, "--floor-windows", "0", "--json"]
        seconds = {"compare": timed([[*ours, "--out", str(work / f"run-{number}")]])[:2]}
        for at_once in args.passes:
            plain = [sys.executable, __file__, *common, "--at-once", str(at_once), "--forward", *models]
            seconds[f"forward_{at_once}"] = timed([plain])[:2]
        wall, cpu = seconds["compare"]
        row: dict[str, Any] = {name: [round(x, 2) for x in pair] for name, pair in seconds.items()}
        for name, (other_wall, other_cpu) in list(seconds.items())[1:]:
            row[f"wall_to_{name}"] = round(wall / other_wall, 4)
            row[f"cpu_to_{name}"] = round(cpu / other_cpu, 4)
        found.append(row)
        print(json.dumps(row), flush=True)
    medians = {key: statistics.median(r[key] for r in found) for key in found[0] if "_to_" in key}
    return {"chunks": args.chunks, "processors": os.cpu_count(), "rounds": found, "median": medians}


def disk(model: str, text: str, chunks: int, work: Path) -> dict[str, Any]:
    sizes = {}
    for store in ("hidden", "kld"):
        out = work / f"trace-{store}"
        quantvane("record", model, "--text", text, "--chunks", str(chunks), "--store", store, "--out", str(out))
        files = [out] if out.is_file() else [f for f in out.rglob("*") if f.is_file()]
        sizes[store] = sum(f.stat().st_size for f in files)
        if store == "kld":
            for f in files:
                f.unlink()
    summary = json.loads(quantvane("compare", str(work / "trace-hidden"), model, "--json", "--out", str(work / "self")))
    candidate = summary["candidates"][0]
    return {
        "chunks": chunks,
        "tokens": candidate["tokens"],
        "bytes": sizes,
        "ratio": round(sizes["kld"] / sizes["hidden"], 2),
        "kld_mean_of_trace": candidate["kld"]["mean"]["value"],
        "kld_max_of_trace": candidate["kld"]["max"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", required=True)
    parser.add_argument("--chunks", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--passes", type=int, nargs="*", default=[1, os.cpu_count() or 1], help="models at once")
    parser.add_argument("--disk-chunks", type=int, default=64)
    parser.add_argument("--work", type=Path, help="keep the models here")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--forward", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--at-once", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.forward:
        forward(args.forward, args.text, args.chunks, args.at_once)
        return
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        models = args.work or work
        models.mkdir(parents=True, exist_ok=True)
        model = models / "shape135m-f16.gguf"
        if not model.exists():
            write_random_model(model, Shape())
        cohort = [str(r["path"]) for r in make_cohort(str(model), TYPES, models / "cohort")]
        # a run of one part keeps the other part of the results
        result: dict[str, Any] = json.loads(args.out.read_text()) if args.out and args.out.exists() else {}
        result |= {"benchmark": "shape_135m", "model": "d=576, V=49152, 30 layers, random weights"}
        if args.rounds:
            result["time"] = time_rounds([str(model), *cohort], args, work)
        if args.disk_chunks:
            result["disk"] = disk(str(model), args.text, args.disk_chunks, work)
            print(json.dumps(result["disk"]), flush=True)
        result["versions"] = package_versions()
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
