"""Replay against plain generation, side by side on one machine.

    python benchmarks/replay.py --reference m-f16.gguf --cohort DIR --tasks items.jsonl --items 2600

For every quant, on the same items: plain generation one sequence at a time; replay one sequence at a time, verifying
many drafts in one prefill, or one draft at a time ("alone"); and both at every number of slots, of which each may use
its best. Runs alternate and the median of ``--repeats`` counts, so that a machine that slows down slows both.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from quantvane.engines.llamacpp import LlamaCpp, build_string, open_llamacpp
from quantvane.store.atomic import write_json
from quantvane.store.manifest import package_versions
from quantvane.tasks.generation import NO_DRAFT, Answer, Effort, Request, generate, shape_noise

TYPES = "Q8_0,Q6_K,Q5_K_M,Q4_K_M,IQ4_NL,Q3_K_M,Q2_K"


def requests_of(engine: LlamaCpp, rows: list[dict[str, Any]], drafts: list[Answer] | None) -> list[Request]:
    bos = engine.vocabulary.add_bos
    return [
        Request(
            engine.tokenize("\n" + row["prompt"], add_bos=bos), 64, (b"\n",), drafts[i].tokens if drafts else NO_DRAFT
        )
        for i, row in enumerate(rows)
    ]


def timed(
    engine: LlamaCpp, requests: list[Request], slots: int, serial: bool
) -> tuple[float, list[Answer], Effort]:
    context = max(len(r.prompt) for r in requests) + 64
    decoder = engine.decoder(context, slots)
    try:
        begun = time.perf_counter()
        answers, effort = generate(decoder, requests, engine.token_bytes, serial=serial)
        return time.perf_counter() - begun, answers, effort
    finally:
        decoder.close()


def same(a: list[Answer], b: list[Answer]) -> int:
    return sum(np.array_equal(x.tokens, y.tokens) for x, y in zip(a, b, strict=True))


def measure(engine: LlamaCpp, rows: list[dict[str, Any]], drafts: list[Answer], args: Any) -> dict[str, Any]:
    plain, drafted = requests_of(engine, rows, None), requests_of(engine, rows, drafts)
    wide = max(args.slots)
    runs = {"plain_one": (plain, 1, False), "replay_one": (drafted, wide, True), "replay_alone": (drafted, 1, False)}
    for slots in args.slots:
        runs[f"plain_{slots}"] = (plain, slots, False)
        runs[f"replay_{slots}"] = (drafted, slots, False)
    for requests in (plain, drafted):  # first use pays for page faults
        timed(engine, requests[:64], wide, False)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    kept: dict[str, tuple[list[Answer], Effort]] = {}
    for _ in range(args.repeats):
        for name, run in runs.items():
            spent, answers, effort = timed(engine, *run)
            seconds[name].append(spent)
            kept[name] = (answers, effort)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    one, base = kept["replay_one"], kept["plain_one"]
    best_plain = min(median[f"plain_{s}"] for s in args.slots)
    best_replay = min(median[f"replay_{s}"] for s in args.slots)
    noise = shape_noise(base[0], one[0])
    return {
        "items": len(rows),
        "answers_as_reference": same(base[0], drafts),
        "answers_replay_as_plain": same(base[0], one[0]),
        "positions_within_noise": sum(int((a.margins <= noise).sum()) for a in one[0]) if noise else 0,
        "batch_shape_noise": noise,
        "speedup_one_at_a_time": median["plain_one"] / median["replay_one"],
        "speedup_one_at_a_time_verified_alone": median["plain_one"] / median["replay_alone"],
        "speedup_best_batch": best_plain / best_replay,
        "sequential_steps_plain": base[1].steps,
        "sequential_steps_replay": one[1].steps,
        "steps_ratio": one[1].steps / base[1].steps if base[1].steps else None,
        "seconds": dict(seconds),
        "tokens": {name: kept[name][1].tokens for name in runs},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", required=True, help="the reference's GGUF file")
    parser.add_argument("--cohort", required=True, type=Path, help="directory of its quants, named NAME-TYPE.gguf")
    parser.add_argument("--tasks", required=True, type=Path, help='JSONL of {"prompt", "answer"}')
    parser.add_argument("--types", default=TYPES)
    parser.add_argument("--items", type=int, default=2600)
    parser.add_argument("--slots", default="16,32,64", type=lambda t: [int(v) for v in t.split(",")])
    parser.add_argument("--threads", default="", help="threads of llama.cpp; its default otherwise")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "replay.json")
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.tasks.read_text().splitlines()]
    # evenly from the whole file, so that few items are of all tasks
    rows = [rows[i] for i in np.linspace(0, len(rows) - 1, min(args.items, len(rows))).astype(int)]
    settings = {"n_threads": args.threads} if args.threads else {}
    reference = open_llamacpp(args.reference, settings)
    _, drafts, _ = timed(reference, requests_of(reference, rows, None), max(args.slots), False)
    reference.close()
    results = {}
    for kind in args.types.split(","):
        (path,) = args.cohort.glob(f"*-{kind}.gguf")
        engine = open_llamacpp(str(path), settings)
        results[kind] = found = measure(engine, rows, drafts, args)
        engine.close()
        print(
            f"{kind}: one at a time x{found['speedup_one_at_a_time']:.2f} "
            f"(verified alone x{found['speedup_one_at_a_time_verified_alone']:.2f}), "
            f"best batch x{found['speedup_best_batch']:.2f}, steps {found['sequential_steps_replay']} of "
            f"{found['sequential_steps_plain']}, same answers {found['answers_replay_as_plain']}/{found['items']}",
            flush=True,
        )
        write_json(
            args.out,
            {
                "schema": 1,
                "command": f"--items {args.items} --types {args.types} --repeats {args.repeats}",
                "slots": args.slots,
                "threads": args.threads or "default",
                "engine": build_string(),
                "versions": package_versions(),
                "machine": {"processor": processor(), "system": platform.system()},
                "results": results,
            },
        )


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
