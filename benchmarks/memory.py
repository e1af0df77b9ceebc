"""Peak memory of `quantvane compare` against the length of the corpus and of the context.

    python benchmarks/memory.py --model m-f16.gguf --candidate m-Q4_K_M.gguf --text books.txt --out results.json

Every process of a run is watched: the command, the worker that holds the models, the child that draws. ``peak_mb`` is
the largest one's peak and ``command_mb`` the command's own (the kernel's VmHWM, so Linux only).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from pathlib import Path

import psutil
from gguf import GGUFReader

from quantvane.store.manifest import package_versions


def peaks(args: list[str]) -> tuple[float, float]:
    """(largest process, the command itself) of one command: peak MB of each, looked at until it ends."""
    with tempfile.TemporaryFile("w+") as noise:
        command = psutil.Popen([sys.executable, "-m", "quantvane", *args], stdout=noise, stderr=noise)
        found: dict[int, float] = {}
        while command.poll() is None:
            for process in (command, *_children(command)):
                found[process.pid] = _high_water(process.pid) or found.get(process.pid, 0.0)
            time.sleep(0.02)
        if command.returncode:
            noise.seek(0)
            sys.exit(noise.read())
    return max(found.values()), found[int(command.pid)]


def _children(command: psutil.Process) -> list[psutil.Process]:
    try:
        return list(command.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _high_water(pid: int) -> float:
    """MB at its highest so far; 0 once the process is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    found = re.search(r"VmHWM:\s+(\d+) kB", text)
    return int(found[1]) / 1024 if found else 0.0


def cache_mb(model: str, context: int) -> float:
    """MB of the F32 KV cache for one sequence of ``context`` tokens, from the file's own metadata."""
    fields = GGUFReader(model).fields
    name = fields["general.architecture"].contents()
    layers, width, heads, kv_heads = (
        fields[f"{name}.{key}"].contents()
        for key in ("block_count", "embedding_length", "attention.head_count", "attention.head_count_kv")
    )
    return layers * width // heads * kv_heads * 2 * 4 * context / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--candidate", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--chunks", type=int, nargs="*", default=[16, 160, 640])
    parser.add_argument("--contexts", type=int, nargs="*", default=[])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        base = ["compare", args.model, args.candidate, "--text", args.text, "--floor-windows", "0", "--json"]
        for number, (context, chunks) in enumerate([(512, c) for c in args.chunks] + [(c, 1) for c in args.contexts]):
            out = Path(folder) / str(number)
            largest, command = peaks([*base, "--ctx", str(context), "--chunks", str(chunks), "--out", str(out)])
            summary = json.loads((out / "summary.json").read_text())
            cache = sum(cache_mb(path, context) for path in (args.model, args.candidate))
            row = {"context": context, "windows": summary["corpora"][0]["windows"]}
            tokens = summary["candidates"][0]["tokens"]
            rows.append({**row, "tokens": tokens, "peak_mb": round(largest, 1), "command_mb": round(command, 1)})
            rows[-1]["kv_cache_mb"] = round(cache, 1)
            print(json.dumps(rows[-1]), flush=True)
    result = {"benchmark": "memory", "model": Path(args.model).name, "rows": rows, "versions": package_versions()}
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
