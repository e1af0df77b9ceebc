"""Peak memory of `quantvane compare` against the length of the corpus and of the context.

    python benchmarks/memory.py --model m-f16.gguf --candidate m-Q4_K_M.gguf --text books.txt --out results.json

Each run is a process of its own; the peak is the larger of command and worker (the operating system's ru_maxrss).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from gguf import GGUFReader

from quantvane.store.manifest import package_versions

_CHILD = """
import json, resource, subprocess, sys
done = subprocess.run([sys.executable, "-m", "quantvane", *sys.argv[1:]], capture_output=True, text=True)
if done.returncode:
    sys.exit(done.stderr or done.stdout)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
"""


def peak(args: list[str]) -> float:
    """Peak MB of the largest process of one command."""
    done = subprocess.run([sys.executable, "-c", _CHILD, *args], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return float(done.stdout)


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
            mb = peak([*base, "--ctx", str(context), "--chunks", str(chunks), "--out", str(out)])
            summary = json.loads((out / "summary.json").read_text())
            cache = sum(cache_mb(path, context) for path in (args.model, args.candidate))
            row = {"context": context, "windows": summary["corpora"][0]["windows"]}
            tokens = summary["candidates"][0]["tokens"]
            rows.append({**row, "tokens": tokens, "peak_mb": round(mb, 1), "kv_cache_mb": round(cache, 1)})
            print(json.dumps(rows[-1]), flush=True)
    result = {"benchmark": "memory", "model": Path(args.model).name, "rows": rows, "versions": package_versions()}
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
