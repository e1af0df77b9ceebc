"""Milliseconds a token for λ_max at a vocabulary of 151 936, and for its top-k bounds, on one core.

Run: OMP_NUM_THREADS=1 python benchmarks/lambda_max.py [--rows N] [--repeats N]
Prints one JSON document: median and fastest repeat and median CPU time per case, machine and versions.
A measured document is kept in results/lambda_max.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # before numpy is imported

import numpy as np  # noqa: E402

from quantvane.displacement.topk import kld_bounds_topk  # noqa: E402
from quantvane.fisher import lambda_bounds_topk, lambda_max  # noqa: E402

VOCABULARY = 151_936


def timed(call: Callable[[], Any], rows: int, repeats: int) -> dict[str, float]:
    """Milliseconds a row, after one warm-up; CPU time leaves out what other processes took."""
    call()
    wall, cpu = [], []
    for _ in range(repeats):
        begin, begin_cpu = time.perf_counter(), time.process_time()
        call()
        wall.append((time.perf_counter() - begin) / rows * 1e3)
        cpu.append((time.process_time() - begin_cpu) / rows * 1e3)
    return {
        "median_ms": round(float(np.median(wall)), 5),
        "fastest_ms": round(min(wall), 5),
        "median_cpu_ms": round(float(np.median(cpu)), 5),
    }


def processor() -> str:
    """The processor's model name where the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rng = np.random.default_rng(0)
    cases: dict[str, dict[str, float]] = {}
    for label, scale in (("flat", 0.01), ("normal", 3.0), ("sharp", 8.0)):
        logits = (rng.normal(size=(options.rows, VOCABULARY)) * scale).astype(np.float32)
        cases[f"lambda_max/{label}"] = timed(lambda x=logits: lambda_max(x), options.rows, options.repeats)
    reference = logits.astype(np.float64)  # the last case, sharp
    reference -= reference.max(axis=-1, keepdims=True)
    reference -= np.log(np.exp(reference).sum(axis=-1, keepdims=True))
    candidate = reference + rng.normal(size=reference.shape) * 0.3
    candidate -= np.log(np.exp(candidate).sum(axis=-1, keepdims=True))
    for k in (5, 20):
        lists = []
        for full in (reference, candidate):
            ids = np.argsort(-full, axis=-1)[:, :k]
            lists += [np.tile(np.take_along_axis(full, ids, axis=-1), (16, 1)), np.tile(ids, (16, 1))]
        rows = len(lists[0])
        bounds = timed(lambda x=lists[0]: lambda_bounds_topk(x, VOCABULARY), rows, options.repeats)
        cases[f"lambda_bounds_topk/{k}"] = bounds
        cases[f"kld_bounds_topk/{k}"] = timed(
            lambda x=tuple(lists): kld_bounds_topk(*x, VOCABULARY), rows, options.repeats
        )
    document = {
        "vocabulary": VOCABULARY,
        "rows": options.rows,
        "processor": processor(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "cases": cases,
    }
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
