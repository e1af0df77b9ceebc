"""Check and time the GPU displacement kernels against float64, memory bandwidth and plain PyTorch.

    python benchmarks/gpu_kernels.py --out benchmarks/results [--skip-checks]

Prints one table and writes gpu_kernels-DEVICE.json. Claims measured here: how close one read of two logit matrices
comes to the time memory needs to deliver them; how close head-plus-divergence comes to two bare bf16 matrix
products.
Times are medians over repeated launches that rotate among input sets larger than the cache.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import triton
from gpu_exact import exact_rows

from quantvane.displacement.ops import triton_head, triton_rows
from quantvane.displacement.ops._triton_read import Done, Shape, first_read
from quantvane.spec import slug

GiB = 2.0**30
HEAD_SHAPES = [
    Shape(*x)
    for x in ((128, 4, 16, 8, 16), (128, 4, 16, 8, 16, True), (64, 4, 32, 4, 16, True), (64, 4, 32, 8, 32, True))
]


def logits(T: int, V: int, kind: str, noise: float, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Rows like a language model's (a normal bulk and 40 exponential peaks) or plain normal; noisy twins."""
    a = torch.empty((T, V), device="cuda").normal_(0.0, 2.0 if kind == "lm" else 1.0)
    if kind == "lm":
        where = torch.randint(0, V, (T, 40), device="cuda")
        a.scatter_(1, where, 8.0 + torch.empty((T, 40), device="cuda").exponential_(1 / 3.0))
    if kind == "zipf":
        order = torch.randperm(V, device="cuda").float()
        a = a * 0.5 - torch.empty((T, 1), device="cuda").uniform_(1.0, 2.0) * torch.log1p(order)
    b = a + noise * torch.randn_like(a)
    tokens = torch.multinomial(torch.softmax(a[:, : min(V, 1 << 17)], dim=1), 1).squeeze(1)
    return a.to(dtype), b.to(dtype), tokens


def median_ms(call: Callable[[int], object], sets: int, budget_ms: float = 120.0) -> float:
    """Median device time of call(i), rotating i over the input sets; CUDA events around each launch."""
    for i in range(max(3, sets)):
        call(i % sets)
    torch.cuda.synchronize()
    start, end = torch.cuda.Event(True), torch.cuda.Event(True)
    start.record()
    call(0)
    end.record()
    torch.cuda.synchronize()
    n = max(10, min(100, int(budget_ms / max(start.elapsed_time(end), 1e-3))))
    events = [(torch.cuda.Event(True), torch.cuda.Event(True)) for _ in range(n)]
    for i, (a, b) in enumerate(events):
        a.record()
        call(i % sets)
        b.record()
    torch.cuda.synchronize()
    times = sorted(a.elapsed_time(b) for a, b in events)
    return times[n // 2]


def calm_ms(call: Callable[[int], object], sets: int, rounds: int = 5) -> float:
    """The median of several medians with pauses between them: a slow second of the machine does not decide."""
    times = []
    for _ in range(rounds):
        time.sleep(0.4)
        times.append(median_ms(call, sets))
    return sorted(times)[rounds // 2]


def extra_memory(call: Callable[[], object]) -> float:
    """Peak bytes allocated above what was held before the call."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def worst(out: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> dict[str, float]:
    """Largest error per field: relative for λ, over max(1, |value|) for the rest (infinities must agree)."""
    result = {}
    for name, value in out.items():
        x, e = value.double(), exact[name].double()
        same = (x == e) | (torch.isnan(x) & torch.isnan(e))
        scale = e.abs().clamp_min(1e-300 if name.startswith("lambda") else 1.0)
        result[name] = float(torch.where(same, 0.0, (x - e).abs() / scale).max())
    return result


def in_blocks(
    f: Callable[..., dict[str, torch.Tensor]], a: torch.Tensor, b: torch.Tensor, y: torch.Tensor
) -> Any:
    parts = [f(a[i : i + 16], b[i : i + 16], y[i : i + 16], 10) for i in range(0, len(y), 16)]
    return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}


def check_rows() -> dict[str, Any]:
    """Errors against float64 on fresh inputs of many shapes, and exact zeros for equal inputs."""
    report: dict[str, Any] = {}
    T = 48
    for V in (2, 101, 4099, 151936):
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            if dtype != torch.bfloat16 and V != 4099:
                continue  # every new pair compiles all kernels again
            for kind, noise in (("lm", 0.05), ("lm", 1.5), ("zipf", 0.3), ("normal", 0.3)):
                a, b, y = logits(T, V, kind, noise, dtype)
                y = y.clamp_max(V - 1)
                if V > 100:
                    a[1, 7:9] = -torch.inf
                    b[1, 7:9] = -torch.inf
                    b[2, 5] = -torch.inf
                    a[3, 3] = torch.nan
                    a[4, 11:13] = a[4].max() + 1
                    a[5] = 0.5
                    a[6, 1] = 90.0
                    b[6, 1] = 91.0
                exact = in_blocks(exact_rows, a, b, y)
                label = f"V={V} {str(dtype)[6:]} {kind} {noise}"
                report[label] = {
                    "rows_peer": worst(triton_rows.rows_peer(a, b, y), exact),
                    "rows_all": worst(triton_rows.rows_all(a, b, y), exact),
                }
                zero = triton_rows.rows_all(b, b, y)
                ok = torch.isfinite(zero["nll_ref"])
                names = ("kld", "kld_rev", "jsd", "tv", "hellinger", "fisher_rao", "delta_p")
                report[label]["equal"] = max(float(zero[n][ok].abs().max()) for n in names)
    return report


def check_head() -> dict[str, Any]:
    report = {}
    for d, V, dtype in (
        (2048, 32003, torch.bfloat16),
        (512, 151936, torch.bfloat16),
        (512, 4099, torch.float32),
    ):
        h, g, W, y = hidden(64, d, V, dtype)
        parts: list[torch.Tensor] = []
        product = triton_head._logits

        def recorded(
            x: torch.Tensor, w: torch.Tensor, out: torch.Tensor, parts: Any = parts, product: Any = product
        ) -> None:
            product(x, w, out)
            parts.append(out.clone())

        triton_head._logits = recorded
        out = triton_head.head_peer(h, g, triton_head.Heads(W, W), y, chunk=8192)
        triton_head._logits = product
        parts = parts[: 2 * -(-V // triton_head._chunk_width(V, 8192))]  # not those of rows computed again
        work = torch.cat(parts[0::2], dim=1), torch.cat(parts[1::2], dim=1)
        x = h.double() @ W.double().t()
        z = g.double() @ W.double().t()
        err = worst(out, in_blocks(exact_rows, x, z, y))
        report[f"d={d} V={V} {str(dtype)[6:]}"] = {
            "against float64 logits": err,
            "against float64 on the same float32 logits": worst(
                out, in_blocks(exact_rows, work[0], work[1], y)
            ),
            "logits": float((work[0] - x).abs().max()),
        }
    return report


def hidden(T: int, d: int, V: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    h = torch.randn((T, d), device="cuda")
    g = h + 0.05 * torch.randn_like(h)
    W = torch.empty((V, d), device="cuda").normal_(0.0, 3.0 / d**0.5)
    y = torch.randint(0, V, (T,), device="cuda")
    return h.to(dtype), g.to(dtype), W.to(dtype), y


def plain_kld(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    la = torch.log_softmax(a.float(), dim=-1)
    lb = torch.log_softmax(b.float(), dim=-1)
    return (la.exp() * (la - lb)).sum(-1)


def line(
    table: list[dict[str, Any]], name: str, ms: float, floor: float, memory: float | None = None
) -> None:
    row = {"name": name, "ms": ms, "floor_ms": floor, "ratio": ms / floor, "extra_MiB": None}
    if memory is not None:
        row["extra_MiB"] = memory / 2**20
    table.append(row)
    extra = "" if memory is None else f"{memory / 2**20:8.1f} MiB"
    print(f"{name:90s} {ms:9.3f} ms   {ms / floor:7.3f}x   {extra}", flush=True)


def again(a: torch.Tensor, b: torch.Tensor, y: torch.Tensor, shape: Shape, entropies: bool) -> list[int]:
    """(rows that the first read by this shape leaves to be computed again, rows of which λ_max alone is)."""
    done = Done.allocate(len(y), a.device, False)
    triton_rows.finish(first_read(a, b, y, done.ready[0], shape, entropies), done, a, b, a.shape[1])
    return [int(done.queue[0]), int(done.unsure[0])]


def pair_lambda(
    table: list[dict[str, Any]], name: str, with_it: Callable[[int], object], without: Callable[[int], object],
    sets: int, rounds: int = 7,
) -> None:  # fmt: skip
    """What λ_max adds: medians of either kernel in turn, several times, and the median of their quotients."""
    times = []
    for _ in range(rounds):
        time.sleep(0.2)
        times.append((median_ms(with_it, sets, 60.0), median_ms(without, sets, 60.0)))
    quotients = sorted(a / b for a, b in times)
    entry = {
        "name": f"{name}: with and without λ_max",
        "ms": sorted(a for a, _ in times)[rounds // 2],
        "without_ms": sorted(b for _, b in times)[rounds // 2],
        "share": quotients[rounds // 2] - 1.0,
        "share_range": [quotients[0] - 1.0, quotients[-1] - 1.0],
    }
    table.append(entry)
    print(f"   {entry}", flush=True)


def time_rows(T: int, V: int, table: list[dict[str, Any]], bandwidth: float) -> None:
    floor = 2 * T * V * 2 / bandwidth * 1e3
    line(table, f"floor: read both once, T={T} V={V} bf16", floor, floor)
    sets = [logits(T, V, "lm", 0.2, torch.bfloat16) for _ in range(2 if T >= 1024 else 6)]
    n = len(sets)
    shape = Shape.of_rows(V)
    done = [Done.allocate(T, torch.device("cuda"), True) for _ in sets]
    few = Shape.of_peer(V)
    stores = [first_read(*s, d.ready[0], shape, True) for s, d in zip(sets, done, strict=True)]
    light = [first_read(*s, d.ready[0], few, False) for s, d in zip(sets, done, strict=True)]
    ms = median_ms(lambda i: light[i].read(*sets[i], done[i].ready[0]), n)
    line(table, f"  read of rows_peer T={T}", ms, floor)
    ms = median_ms(lambda i: triton_rows.finish(light[i], done[i], sets[i][0], sets[i][1], V), n)
    line(table, f"  finish of rows_peer T={T}", ms, floor)
    ms = median_ms(lambda i: stores[i].read_sides(*sets[i], done[i].ready[0]), n)
    line(table, f"  first read of rows_all T={T}", ms, floor)
    ms = median_ms(lambda i: triton_rows.finish(stores[i], done[i], sets[i][0], sets[i][1], V), n)
    line(table, f"  finish of rows_all T={T}", ms, floor)
    ms = median_ms(lambda i: triton_rows.second_read(done[i], *sets[i][:2]), n)
    line(table, f"  second read T={T}", ms, floor)
    ms = median_ms(lambda i: triton_rows.overlap(stores[i], done[i], *sets[i][:2], 10), n)
    line(table, f"  overlap, k=10 T={T}", ms, floor)
    for name, call in (
        ("rows_peer", lambda i: triton_rows.rows_peer(*sets[i])),
        ("rows_all", lambda i: triton_rows.rows_all(*sets[i])),
    ):
        ms = calm_ms(call, n)
        line(table, f"{name} T={T}", ms, floor, extra_memory(lambda call=call: call(0)))
        line(table, f"{name} T={T}, as a CUDA graph", replayed_ms(call), floor)
    bare = replace(few, lambdas=False)
    pair_lambda(
        table, f"rows_peer T={T}",
        lambda i: triton_rows.peer_of(*sets[i], few), lambda i: triton_rows.peer_of(*sets[i], bare), n,
    )  # fmt: skip
    bf16, f32 = torch.bfloat16, torch.float32
    cases = [(kind, noise, bf16) for kind, noise in (("lm", 0.05), ("lm", 1.0), ("zipf", 0.2), ("normal", 0.2))]
    for kind, noise, dtype in [*cases, ("lm", 0.2, f32), ("normal", 0.2, f32)]:
        a, b, y = logits(T, V, kind, noise, dtype)
        count, fewer = again(a, b, y, shape, True), again(a, b, y, few, False)
        peer = median_ms(lambda i, a=a, b=b, y=y: triton_rows.rows_peer(a, b, y), 1)
        ms = median_ms(lambda i, a=a, b=b, y=y: triton_rows.rows_all(a, b, y), 1)
        what = f"{kind} {noise} {str(dtype)[6:]}"
        print(f"   {what}: rows_peer computes {fewer} of {T} rows, or their λ, again, rows_all {count}; "
              f"rows_peer {peer:.3f} ms, rows_all {ms:.3f} ms", flush=True)  # fmt: skip
        table.append({"name": f"computed again {what} T={T}", "rows": count, "of": T, "rows_of_peer": fewer,
                      "rows_peer_ms": peer, "rows_all_ms": ms})  # fmt: skip
    if T >= 4096:
        a, b, _ = sets[0]
        ms = median_ms(lambda i: plain_kld(sets[i][0], sets[i][1]), n)
        line(table, "plain PyTorch KLD only", ms, floor, extra_memory(lambda: plain_kld(a, b)))


def replayed_ms(call: Callable[[int], object]) -> float:
    """Median time of a captured call: without the host's share."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call(0)
    return calm_ms(lambda i: graph.replay(), 1)


def time_head(table: list[dict[str, Any]], T: int = 4096, d: int = 2048, V: int = 151936) -> None:
    h, g, W, y = hidden(T, d, V, torch.bfloat16)
    W2 = (W.float() + 0.01 * W.float().std() * torch.randn((V, d), device="cuda")).to(torch.bfloat16)
    out = torch.empty((T, V), device="cuda", dtype=torch.bfloat16)

    def bare() -> None:
        torch.mm(h, W.t(), out=out)
        torch.mm(g, W2.t(), out=out)

    floor = median_ms(lambda i: bare(), 1)
    line(table, f"two bare bf16 matrix products T={T} d={d}", floor, floor)
    for rows, chunk in ((4096, 8192),):
        width = triton_head._chunk_width(V, chunk)
        work = torch.empty((2, rows, width), device="cuda")

        def products(rows: int = rows, width: int = width, work: torch.Tensor = work) -> None:
            for row in range(0, T, rows):
                for low in range(0, V - width + 1, width):
                    triton_head._logits(h[row : row + rows], W[low : low + width], work[0])
                    triton_head._logits(g[row : row + rows], W2[low : low + width], work[1])

        line(
            table,
            "  its matrix products alone (whole chunks)",
            median_ms(lambda i, c=products: c(), 1),
            floor,
        )

        def call(rows: int = rows, chunk: int = chunk) -> object:
            return triton_head.head_peer(h, g, triton_head.Heads(W, W2), y, row_block=rows, chunk=chunk)

        ms = calm_ms(lambda i, call=call: call(), 1)
        line(table, f"head_peer rows={rows} chunk={chunk}", ms, floor, extra_memory(call))
        kept, repair = triton_head.SHAPE, triton_head.rows_peer

        def bare_call(kept: Shape = kept, call: Any = call) -> object:
            triton_head.SHAPE = replace(kept, lambdas=False)
            out = call()
            triton_head.SHAPE = kept
            return out

        pair_lambda(table, "head_peer", lambda i, c=call: c(), lambda i, c=bare_call: c(), 1)
        again: list[int] = []

        def counted(*logits: torch.Tensor, again: Any = again, repair: Any = repair) -> Any:
            again.append(len(logits[2]))
            return repair(*logits)

        for shape in HEAD_SHAPES:
            triton_head.SHAPE = shape
            ms = calm_ms(lambda i, call=call: call(), 1, 3)
            again.clear()
            triton_head.rows_peer = counted
            memory = extra_memory(call)
            triton_head.rows_peer = repair
            line(table, f"  {shape}, {sum(again)} rows computed again", ms, floor, memory)
        triton_head.SHAPE = kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default=os.environ.get("OUT", "benchmarks/results"))
    parser.add_argument("--skip-checks", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(20260101)
    device = torch.cuda.get_device_properties(0)
    result: dict[str, Any] = {
        "device": device.name,
        "multiprocessors": device.multi_processor_count,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "note": "rows: bf16 logits; floor = bytes of both matrices over the measured copy bandwidth",
    }
    x = torch.empty(1 << 30, dtype=torch.float32, device="cuda").normal_()
    z = torch.empty_like(x)
    ms = median_ms(lambda i: z.copy_(x), 1)
    bandwidth = 2 * x.numel() * 4 / ms * 1e3
    result["copy_GB_per_s"] = bandwidth / 1e9
    print({k: v for k, v in result.items() if k != "note"}, flush=True)
    table: list[dict[str, Any]] = []
    result["table"] = table
    checks: list[tuple[str, Callable[[], Any]]] = [("check rows", check_rows), ("check head", check_head)]
    steps: list[tuple[str, Callable[[], Any]]] = [
        *([] if args.skip_checks else checks),
        ("rows 4096", lambda: time_rows(4096, 151936, table, bandwidth)),
        ("head", lambda: time_head(table)),
        ("rows 256", lambda: time_rows(256, 151936, table, bandwidth)),
    ]
    place = Path(args.out)
    place.mkdir(parents=True, exist_ok=True)
    for name, step in steps:
        started = time.perf_counter()
        try:
            value = step()
        except Exception:
            value = traceback.format_exc()
            print(name, "failed:", value[-1500:], flush=True)
        if value is not None:
            result[name] = value
            if isinstance(value, dict):
                summarise(name, value)
        print(f"   ({name}: {time.perf_counter() - started:.0f} s)", flush=True)
        torch.cuda.empty_cache()
        (place / f"gpu_kernels-{slug(device.name)}.json").write_text(json.dumps(result, indent=1) + "\n")


def summarise(name: str, value: dict[str, Any]) -> None:
    """The largest error per entry point, field by field."""
    top: dict[str, dict[str, tuple[float, str]]] = {}
    for label, entry in value.items():
        for kind, errors in entry.items():
            fields = errors if isinstance(errors, dict) else {"": float(errors)}
            for field, error in fields.items():
                old = top.setdefault(kind, {}).get(field, (-1.0, ""))
                if not error <= old[0]:
                    top[kind][field] = (error, label)
    print(f"--- {name}: largest error, λ relative, others absolute")
    for kind, fields in top.items():
        print(" ", kind)
        for field, (error, label) in fields.items():
            print(f"    {field:14s} {error:.2e}  at {label}")


if __name__ == "__main__":
    main()
