"""What moving layers onto a GPU does to a model, beside what a quant does to it (needs llama.cpp built with CUDA).

    python benchmarks/gpu_layers.py --text books.txt --out benchmarks/results/gpu_layers.json \\
        m-f16.gguf m-Q8_0.gguf m-Q4_K_M.gguf

Each model on the processor alone is the reference of itself with none, some or all of its layers on the GPU; the first
model on the processor is the reference of the others there, for scale. "On the processor alone" takes more than
n_gpu_layers=0: llama.cpp then still sends the products of large batches, and the cache, to the GPU. The windows are
those of `quantvane compare`, F32 KV cache, no flash attention.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from quantvane.engines.registry import open_engine
from quantvane.run.lockstep import measure_unit, units
from quantvane.run.measure import kernel_of
from quantvane.run.plan import CompareSpec
from quantvane.run.prepare import prepare
from quantvane.spec import ModelSpec
from quantvane.store.manifest import package_versions

CONTEXT = 512
_ALONE = "n_gpu_layers=0&op_offload=false&offload_kqv=false"


def compared(reference: str, candidate: str, text: str, chunks: int) -> dict[str, Any]:
    """Mean, 99th percentile and maximum of KLD in nats, share of equal top-1 tokens, and where the candidate ran."""
    specs = [ModelSpec.parse(spec) for spec in (reference, candidate)]
    engines = [open_engine(spec, CONTEXT) for spec in specs]
    plan = CompareSpec(specs[0], (specs[1],), (candidate,), (text,), context=CONTEXT, chunks=chunks)
    windows = prepare(plan, engines[0]).windows
    kernel = kernel_of(plan)
    batches = [b for unit in units(windows) for b in measure_unit(unit, engines[0], [("", engines[1])], kernel)]
    kld = np.concatenate([b.column("kld").to_numpy() for b in batches])
    same = np.concatenate([b.column("same_top1").to_numpy(zero_copy_only=False) for b in batches])
    device = engines[1].info.device
    for engine in engines:
        engine.close()
    return {
        "reference": label(reference),
        "candidate": label(candidate),
        "device": device,
        "tokens": len(kld),
        "kld_mean": float(kld.mean()),
        "kld_p99": float(np.quantile(kld, 0.99)),
        "kld_max": float(kld.max()),
        "top1_agreement": float(same.mean()),
    }


def label(spec: str) -> str:
    path, _, settings = spec.partition("?")
    return f"{Path(path).stem}, {settings}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--text", required=True)
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--layers", type=int, nargs="*", default=[0, 1, 5, 99])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    first = f"{args.models[0]}?{_ALONE}"
    rows = []
    for model in args.models:
        on_cpu = f"{model}?{_ALONE}"
        pairs = [(first, on_cpu), (f"{args.models[0]}?n_gpu_layers=0", f"{model}?n_gpu_layers=0")]
        pairs += [(on_cpu, f"{model}?n_gpu_layers={n}") for n in args.layers]
        for pair in pairs:
            rows.append(compared(*pair, args.text, args.chunks))
            print(json.dumps(rows[-1]), flush=True)
    engine = open_engine(ModelSpec.parse(first), CONTEXT)
    result = {"benchmark": "gpu_layers", "build": engine.info.build, "rows": rows, "versions": package_versions()}
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
