"""Replay against plain generation, side by side on one machine.

    python benchmarks/replay.py --reference m-f16.gguf --cohort DIR --tasks items.jsonl --text book.txt

For every quant, on task items (short answers) and on open-ended continuations of a text (128 tokens): plain generation
one sequence at a time; replay one sequence at a time, stored answers verified many in one prefill, or one by one
("alone"); and both at every number of slots, of which each may use its best. The items are cut into parts, every way
runs on a part before the next part begins, and the seconds of the parts add up: a machine that slows down slows all.
Each part is timed several times in turn and the fastest counts, since other work on the machine only adds.
What is stored already is not measured again, so the work can be done in pieces: --types Q8_0 --modes tasks.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np

from quantvane.engines.llamacpp import LlamaCpp, build_string, open_llamacpp
from quantvane.store.atomic import read_json, write_json
from quantvane.store.manifest import package_versions
from quantvane.tasks.agreement import Agreement
from quantvane.tasks.cost import CallCost, measure_cost
from quantvane.tasks.generation import generate
from quantvane.tasks.greedy import Answer, Effort, Request, ambiguous, shape_noise

PAGE = Path(__file__).resolve().parent.parent / "docs" / "bench.md"
BEGIN, END = "<!-- table of replay: begin -->", "<!-- table of replay: end -->"
TYPES = "Q8_0,Q6_K,Q5_K_M,Q4_K_M,IQ4_NL,Q3_K_M,Q2_K"
MODES = ("tasks", "text")
PROMPT, ANSWER = 32, 128  # tokens of an open-ended prompt and of its continuation
Run = tuple[bool, int, bool]  # with drafts; slots; answers grow one at a time
Found = tuple[float, list[Answer], Effort]


def task_requests(engine: LlamaCpp, path: Path, items: int) -> list[Request]:
    """Requests as ``bench`` makes them of the same file, in its order: task by task."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    # evenly from the whole file, so that few items are of all tasks
    rows = [rows[i] for i in np.linspace(0, len(rows) - 1, min(items, len(rows))).astype(int)]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    rows.sort(key=lambda row: tasks.index(row["task"]))
    bos = engine.vocabulary.add_bos
    return [Request(engine.tokenize("\n" + row["prompt"], add_bos=bos), 64, (b"\n",)) for row in rows]


def text_requests(engine: LlamaCpp, path: Path, items: int) -> list[Request]:
    """Pieces of the text, evenly spaced, each to be continued."""
    tokens = engine.tokenize(path.read_text(encoding="utf-8"))
    starts = np.linspace(0, len(tokens) - PROMPT, items).astype(int)
    bos = [engine.vocabulary.bos] if engine.vocabulary.add_bos else []
    return [Request(np.array([*bos, *tokens[s : s + PROMPT]], np.int32), ANSWER) for s in starts]


def timed(engine: LlamaCpp, requests: list[Request], slots: int, serial: bool, fit: Agreement | None = None) -> Found:
    context = max(len(r.prompt) + r.max_tokens for r in requests)
    decoder = engine.decoder(context, slots)
    try:
        begun = time.perf_counter()
        answers, effort = generate(decoder, requests, engine.token_bytes, serial=serial, fit=fit)
        return time.perf_counter() - begun, answers, effort
    finally:
        decoder.close()


def calibrated(engine: LlamaCpp, requests: list[Request], slots: int, serial: bool) -> CallCost:
    """Cost of the calls of a decoder, on 32 requests from all over, as ``bench`` measures it once per candidate."""
    context = max(len(r.prompt) + r.max_tokens for r in requests)
    decoder = engine.decoder(context, slots)
    try:
        return measure_cost(decoder, requests[:: max(1, len(requests) // 32)][:32], serial=serial)
    finally:
        decoder.close()


def with_drafts(requests: list[Request], drafts: list[Answer]) -> list[Request]:
    return [Request(r.prompt, r.max_tokens, r.stops, d.tokens) for r, d in zip(requests, drafts, strict=True)]


def measure(
    engine: LlamaCpp, plain: list[Request], drafts: list[Answer], slots: list[int], parts: int, args: argparse.Namespace
) -> dict[str, Any]:
    drafted = with_drafts(plain, drafts)
    runs: dict[str, Run] = {
        "replay_one": (True, 32, True), "plain_one": (False, 1, False), "replay_alone": (True, 1, False)
    }  # fmt: skip
    for count in slots:
        runs |= {f"plain_{count}": (False, count, False), f"replay_{count}": (True, count, False)}
    timed(engine, drafted[:64], max(slots), False)  # first use pays for page faults
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    costs = {name: calibrated(engine, drafted, run[1], run[2]) for name, run in runs.items() if run[0]}
    answers: dict[str, list[Answer]] = {name: [] for name in runs}
    effort = {name: Effort() for name in runs}
    fits: dict[str, Agreement | None] = {name: Agreement(cost) for name, cost in costs.items()}
    for number, part in enumerate(np.array_split(np.arange(len(plain)), parts)):
        time.sleep(args.rest if number else 0)
        taught: dict[str, Agreement | None] = {}
        fastest = dict.fromkeys(runs, float("inf"))
        for again in range(args.repeats):
            # in turns forwards and backwards, so that a slow drift does not favour one
            for name, (draft, count, serial) in list(runs.items())[:: -1 if (number + again) % 2 else 1]:
                source = drafted if draft else plain
                wanted = [source[i] for i in part]
                fit = deepcopy(fits.get(name))  # what the parts before taught
                spent, found, cost = timed(engine, wanted, count, serial, fit)
                fastest[name] = min(fastest[name], spent)
                if not again:
                    answers[name] += found
                    effort[name] += cost
                    taught[name] = fit
        fits |= taught
        for name, spent in fastest.items():
            seconds[name].append(spent)
    calls = {name: cost.to_dict() for name, cost in costs.items()}
    how = {"parts": parts, "repeats": args.repeats, "call_cost": calls}
    return report(seconds, answers, effort, drafts, slots) | how


def report(
    seconds: dict[str, list[float]],
    answers: dict[str, list[Answer]],
    effort: dict[str, Effort],
    drafts: list[Answer],
    slots: list[int],
) -> dict[str, Any]:
    total = {name: sum(values) for name, values in seconds.items()}
    best = {kind: min(slots, key=lambda s: total[f"{kind}_{s}"]) for kind in ("plain", "replay")}
    names = {"plain": f"plain_{best['plain']}", "replay": f"replay_{best['replay']}"}
    plain, one = answers["plain_one"], answers["replay_one"]
    # Plain generation alone gives the noise, so that it can be held against what replay does.
    noise = max(shape_noise(plain, answers[f"plain_{s}"]) for s in slots)
    lengths = [len(a.tokens) for a in plain]
    before = [a.divergence if a.divergence is not None else len(a.tokens) for a in one]
    ways = ("replay_one", "replay_alone", names["replay"])
    return {
        "items": len(plain),
        "answer_tokens_mean": float(np.mean(lengths)),
        "answers_as_reference": same(plain, drafts),
        "tokens_before_first_divergence_mean": float(np.mean(before)),
        "tokens_from_draft": sum(a.agreed for a in one) / sum(len(a.tokens) for a in one),
        "speedup": {
            "one_at_a_time": ratio(seconds, "plain_one", "replay_one"),
            "one_at_a_time_verified_alone": ratio(seconds, "plain_one", "replay_alone"),
            "best_batch": ratio(seconds, names["plain"], names["replay"]),
        },
        "best_slots": best,
        "sequential_steps": {"plain": effort["plain_one"].steps, "replay": effort["replay_one"].steps},
        "steps_ratio": effort["replay_one"].steps / max(1, effort["plain_one"].steps),
        "calls": {"plain": effort["plain_one"].calls, "replay": effort["replay_one"].calls},
        "batch_shape_noise": noise,
        "answers_as_plain": {way: same(plain, answers[way]) for way in (*ways, names["plain"])},
        "positions_within_noise": sum(len(ambiguous(a, noise)) for a in one),
        "first_differences": {way: differences(plain, answers[way], noise) for way in ways},
        "seconds": seconds,
        "tokens": {name: cost.tokens for name, cost in effort.items()},
        "fed_ahead": {name: cost.ahead for name, cost in effort.items() if name.startswith("replay")},
        "fed_in_vain": {name: cost.vain for name, cost in effort.items() if name.startswith("replay")},
    }


def ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> dict[str, float]:
    """Of all seconds, and the lowest and highest of one part."""
    parts = np.array(seconds[slow]) / np.array(seconds[fast])
    return {"value": sum(seconds[slow]) / sum(seconds[fast]), "lowest": parts.min(), "highest": parts.max()}


def same(a: list[Answer], b: list[Answer]) -> int:
    return sum(np.array_equal(x.tokens, y.tokens) for x, y in zip(a, b, strict=True))


def differences(plain: list[Answer], found: list[Answer], noise: float) -> list[dict[str, Any]]:
    """First differing position of each answer that is not plain generation's, and whether the noise explains it."""
    out = []
    for item, (a, b) in enumerate(zip(plain, found, strict=True)):
        n = min(len(a.tokens), len(b.tokens))
        at = np.flatnonzero(a.tokens[:n] != b.tokens[:n])
        if len(at):
            margin = float(b.margins[at[0]])
            out.append({"item": item, "position": int(at[0]), "margin": margin, "within_noise": margin <= noise})
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", help="the reference's GGUF file")
    parser.add_argument("--cohort", type=Path, help="directory of its quants, named NAME-TYPE.gguf")
    parser.add_argument("--tasks", type=Path, help='JSONL of {"prompt", "answer"}')
    parser.add_argument("--text", type=Path, help="text file to take open-ended prompts from")
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--types", default=TYPES)
    parser.add_argument("--items", type=int, default=2600, help="task items")
    parser.add_argument("--continuations", type=int, default=200)
    parser.add_argument("--slots", default="16,32", type=numbers, help="sequences at once on tasks")
    parser.add_argument("--text-slots", default="4", type=numbers, help="likewise on text, where they are longer")
    parser.add_argument("--parts", type=int, default=5, help="of the task items")
    parser.add_argument("--text-parts", type=int, default=25, help="of the continuations, which take longer")
    parser.add_argument("--repeats", type=int, default=2, help="times that each part is timed")
    parser.add_argument("--rest", type=float, default=0.0, help="seconds to wait between parts, for a shared machine")
    parser.add_argument("--threads", default="", help="threads of llama.cpp; its default otherwise")
    parser.add_argument("--again", action="store_true", help="also what is stored already")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "replay.json")
    parser.add_argument("--table", action="store_true", help="only rewrite the table in docs/bench.md")
    args = parser.parse_args()
    if args.table:
        page, text = PAGE.read_text(encoding="utf-8"), table(read_json(args.out)["results"])
        head, rest = page.split(BEGIN)
        PAGE.write_text(f"{head}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}", encoding="utf-8")
        return
    settings = {"n_threads": args.threads} if args.threads else {}
    held = read_json(args.out) if args.out.exists() else {"results": {mode: {} for mode in MODES}}
    for mode in args.modes.split(","):
        wanted = [kind for kind in args.types.split(",") if args.again or kind not in held["results"][mode]]
        if not wanted:
            continue
        reference = open_llamacpp(args.reference, settings)
        if mode == "tasks":
            requests = task_requests(reference, args.tasks, args.items)
            slots, parts = args.slots, args.parts
        else:
            requests = text_requests(reference, args.text, args.continuations)
            slots, parts = args.text_slots, args.text_parts
        _, drafts, _ = timed(reference, requests, 8, False)
        reference.close()
        for kind in wanted:
            (model,) = args.cohort.glob(f"*-{kind}.gguf")
            engine = open_llamacpp(str(model), settings)
            held["results"][mode][kind] = found = measure(engine, requests, drafts, slots, parts, args)
            engine.close()
            speed = {name: round(value["value"], 2) for name, value in found["speedup"].items()}
            print(f"{mode} {kind}: {speed}, steps {found['sequential_steps']}, {found['answers_as_plain']}", flush=True)
            write_json(args.out, header(args) | {"results": held["results"]})


def table(results: dict[str, Any]) -> str:
    lines = [
        "| items | quant | one at a time | alone | best batch | decode steps, of plain | tokens verified | "
        "fed ahead, in vain | tokens before the first divergence | answers as plain's |",
        "|---" * 10 + "|",
    ]
    for mode in MODES:
        for kind in [kind for kind in TYPES.split(",") if kind in results[mode]]:
            found = results[mode][kind]
            one, alone, best = (speed["value"] for speed in found["speedup"].values())
            ahead, vain = found["fed_ahead"], found["fed_in_vain"]  # of answers that grow one at a time
            # Not one token was fed ahead: the very calls of plain generation, timed twice.
            same = "" if ahead[f"replay_{found['best_slots']['replay']}"] else " ="
            lines.append(
                f"| {found['items']} {mode} | {kind} | {one:.2f} | {alone:.2f} | {best:.2f}{same} | "
                f"{found['steps_ratio']:.3f} | {found['tokens_from_draft']:.1%} | "
                f"{ahead['replay_one']}, {vain['replay_one']} | "
                f"{found['tokens_before_first_divergence_mean']:.1f} of "
                f"{found['answer_tokens_mean']:.1f} | {found['answers_as_plain']['replay_one']} |"
            )
    return "\n".join(lines)


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def header(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "schema": 3,
        "command": f"--items {args.items} --continuations {args.continuations}",
        "slots": {"tasks": args.slots, "text": args.text_slots},
        "threads": args.threads or "default",
        "engine": build_string(),
        "versions": package_versions(),
        "machine": {"processor": processor(), "system": platform.system()},
    }


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{found[0]}, {len(found)} processors" if found else "unknown"


if __name__ == "__main__":
    main()
