"""What measuring costs on the shape of a 135M model (d = 576, V = 49,152, random weights): time and disk.

    python benchmarks/shape_135m.py --text books.txt --rounds 3 --out benchmarks/results/shape_135m.json

Time: the whole `quantvane compare` of the model and seven quants against the plain forward passes of the same eight
models over the same windows by the same engine, every row of logits computed and thrown away. The passes are run one
model after another on all processors; rounds alternate. Disk: a `hidden` trace against llama.cpp's base file of the
same windows, and what the trace adds to the KL divergence (the model against its own trace).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from random_model import Shape, write_random_model

from quantvane.engines.registry import open_engine
from quantvane.run.cohort import make_cohort
from quantvane.run.plan import CompareSpec
from quantvane.run.prepare import prepare
from quantvane.spec import ModelSpec
from quantvane.store.manifest import package_versions

TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_NL", "Q3_K_M", "Q2_K")
CONTEXT = 512


def forward(models: list[str], text: str, chunks: int) -> None:
    """Every window through every model, logits read and dropped."""
    specs = [ModelSpec.parse(f"{model}@llamacpp") for model in models]
    windows: Any = None
    for spec in specs:
        engine = open_engine(spec, CONTEXT)
        if windows is None:
            plan = CompareSpec(specs[0], tuple(specs[1:]), tuple(models[1:]), (text,), context=CONTEXT, chunks=chunks)
            windows = prepare(plan, engine).windows
        rows = sum(len(block) for block in engine.logits(windows))
        engine.close()
        print(spec.path, rows, flush=True)


def quantvane(*args: str) -> str:
    done = subprocess.run([sys.executable, "-m", "quantvane", *args], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return done.stdout


def time_rounds(models: list[str], text: str, chunks: int, rounds: int, work: Path) -> dict[str, Any]:
    seconds = []
    for number in range(rounds):
        begun = time.monotonic()
        quantvane("compare", *models, "--text", text, "--chunks", str(chunks), "--floor-windows", "0", "--json",
                  "--out", str(work / f"run-{number}"))  # fmt: skip
        ours = time.monotonic() - begun
        begun = time.monotonic()
        command = [sys.executable, __file__, "--text", text, "--chunks", str(chunks), "--forward", *models]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        plain = time.monotonic() - begun
        seconds.append({"compare": round(ours, 2), "forward": round(plain, 2), "ratio": round(ours / plain, 4)})
        print(json.dumps(seconds[-1]), flush=True)
    return {"chunks": chunks, "rounds": seconds, "median_ratio": statistics.median(s["ratio"] for s in seconds)}


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
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--disk-chunks", type=int, default=64)
    parser.add_argument("--work", type=Path, help="keep the models here")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--forward", nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.forward:
        forward(args.forward, args.text, args.chunks)
        return
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        models = args.work or work
        models.mkdir(parents=True, exist_ok=True)
        model = models / "shape135m-f16.gguf"
        if not model.exists():
            write_random_model(model, Shape())
        cohort = [str(r["path"]) for r in make_cohort(str(model), TYPES, models / "cohort")]
        result: dict[str, Any] = {"benchmark": "shape_135m", "model": "d=576, V=49152, 30 layers, random weights"}
        if args.rounds:
            result["time"] = time_rounds([str(model), *cohort], args.text, args.chunks, args.rounds, work)
        if args.disk_chunks:
            result["disk"] = disk(str(model), args.text, args.disk_chunks, work)
            print(json.dumps(result["disk"]), flush=True)
        result["versions"] = package_versions()
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
