"""Speed of the displacement kernels on one thread: ns per scored logit (a reference and a candidate value).

Prints one JSON document; ``--out FILE`` also writes it. Rows are like a language model's: a bulk of
normal(0, 2.5) and about five entries raised by 9; the candidate adds normal(0, 0.3). Every figure is the
fastest of ``--repeat`` calls on rows that do not fit in the last-level cache, by the thread's own CPU time,
so that other work on the machine disturbs it less; the load at the start is recorded.

    python benchmarks/cpu_kernels.py --out benchmarks/results/cpu_kernels.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ["NUMBA_NUM_THREADS"] = "1"

import llvmlite
import numba
import numpy as np
from llvmlite import binding

import quantvane.displacement.ops.numba_rows as fast
import quantvane.displacement.ops.numpy_rows as slow


def rows_like_a_model(
    rng: np.random.Generator, rows: int, vocab: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ref = rng.standard_normal((rows, vocab), dtype=np.float32) * np.float32(2.5)
    ref[rng.random(ref.shape, dtype=np.float32) < 5 / vocab] += 9
    cand = ref + np.float32(0.3) * rng.standard_normal(ref.shape, dtype=np.float32)
    return ref, cand, rng.integers(0, vocab, rows)


def fastest(call: Callable[[], object], repeat: int) -> float:
    call()
    best = float("inf")
    for _ in range(repeat):
        start = time.thread_time()
        call()
        best = min(best, time.thread_time() - start)
    return best


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def commit() -> str:
    told = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return told.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocab", type=int, nargs="+", default=[32_000, 151_936])
    parser.add_argument("--logits", type=int, default=16_000_000, help="rows × V of each side")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    load = os.getloadavg()[0]
    start = time.perf_counter()
    fast.warm_up()
    warm = time.perf_counter() - start
    rows = []
    for vocab in args.vocab:
        ref, cand, tokens = rows_like_a_model(np.random.default_rng(1), max(4, args.logits // vocab), vocab)
        kernels: dict[str, tuple[int, Callable[[], object]]] = {
            "numba": (len(ref), lambda r=ref, c=cand, t=tokens: fast.rows(r, c, t, 10)),
            "numba, peer fields": (len(ref), lambda r=ref, c=cand, t=tokens: fast.rows_peer(r, c, t)),
            "numpy": (4, lambda r=ref[:4], c=cand[:4], t=tokens[:4]: slow.rows(r, c, t, 10)),
        }
        for name, (count, call) in kernels.items():
            seconds = fastest(call, args.repeat)
            figure = round(seconds * 1e9 / (count * vocab), 3)
            rows.append({"vocab": vocab, "backend": name, "rows": count, "ns_per_logit": figure})
    document = json.dumps(
        {
            "benchmark": "cpu_kernels",
            "threads": 1,
            "clock": "thread CPU time, fastest call",
            "device": f"{processor()} ({binding.get_host_cpu_name()})",
            "versions": {
                "python": platform.python_version(),
                "numpy": np.__version__,
                "numba": numba.__version__,
                "llvmlite": llvmlite.__version__,
            },
            "commit": commit(),
            "load_at_start": load,
            "warm_up_seconds": warm,
            "rows": rows,
        },
        indent=1,
    )
    print(document)
    if args.out:
        args.out.write_text(document + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
