"""What the watching proxy adds: latency per chunk, processor time per token, memory over many streams.

Three processes: a scripted upstream, the proxy, and this one, which reads the streams. The upstream sends a chunk of
every stream each ``--interval`` seconds; a chunk carries one token with its k most probable ones and the time of its
sending (one clock for all processes of a machine). Latency is measured at the reader, through the proxy and
straight, streams interleaved the same way; what the proxy adds is the difference of the quantiles, and the
quantile through the proxy is given as well, which includes the reader's own time. Processor time is the proxy
process's own, user and system, divided by the tokens that passed.

    python benchmarks/watch_overhead.py --out benchmarks/results/watch_overhead.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import multiprocessing
import os
import platform
import socket
import statistics
import sys
import time
import urllib.request
from importlib.metadata import version
from pathlib import Path
from typing import Any

K, PAUSE = 20, 0.0


def chunk_parts(k: int) -> list[tuple[bytes, bytes]]:
    """Chunks of 64 tokens, each cut where the time goes; log-probabilities only where they are asked for."""
    out = []
    for i in range(64):
        ratio = 0.35 + 0.4 * ((i * 7) % 64) / 64
        top = [
            {"id": 1000 + (i + j) % 300, "token": f" t{(i + j) % 300}", "bytes": list(f" t{(i + j) % 300}".encode()),
             "logprob": math.log((1 - ratio) * ratio**j)} for j in range(k)
        ]  # fmt: skip
        choice: dict[str, Any] = {"index": 0, "delta": {"content": " word"}, "logprobs": None, "finish_reason": None}
        if k:
            choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
        text = json.dumps(
            {"id": "c", "object": "chat.completion.chunk", "created": "@", "model": "m", "choices": [choice]},
            separators=(",", ":"),
        )
        head, _, tail = text.partition('"@"')
        out.append((b"data: " + head.encode(), tail.encode() + b"\n\n"))
    return out


def upstream(pipe: Any) -> None:
    """The scripted server; as lean as Python allows, so that its own time is small beside the proxy's."""
    parts = {0: chunk_parts(0), K: chunk_parts(K)}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = next((int(x.split(b":")[1]) for x in head.lower().split(b"\r\n") if b"content-length" in x), 0)
                raw = await reader.readexactly(size)
                if b"POST" not in head[:5]:
                    found = b'{"data":[{"id":"m","owned_by":"vllm"}]}' if b"/v1/models" in head else b"null"
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(found) + found)
                    continue
                body = json.loads(raw)
                mine = parts[K if body.get("logprobs") else 0]
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
                writer.write(b"Transfer-Encoding: chunked\r\n\r\n")
                pause = body.get("pause", 0.0)
                begun = asyncio.get_running_loop().time() + body.get("phase", 0.0)
                for i in range(body["max_tokens"]):
                    if pause:
                        await asyncio.sleep(max(0.0, begun + i * pause - asyncio.get_running_loop().time()))
                    a, b = mine[i % 64]
                    event = a + b"%d" % time.monotonic_ns() + b
                    writer.write(b"%x\r\n%s\r\n" % (len(event), event))
                    if not pause and i % 8 == 7:
                        await writer.drain()
                last = b'data: {"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}]}\n\n'
                last += b"data: [DONE]\n\n"
                writer.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(last), last))
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1024)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    _run(main())


def proxy(pipe: Any, base: str) -> None:
    """The proxy, as ``quantvane watch`` builds it."""
    from quantvane.monitor.averages import DEFAULT_STATISTICS
    from quantvane.monitor.calibration import Base, Calibration, Fingerprint
    from quantvane.monitor.proxy.app import Watcher, build_app
    from quantvane.monitor.proxy.server import listen, serve
    from quantvane.monitor.proxy.settings import WatchSettings

    fingerprint = Fingerprint("m", "F16", "vllm", "1", "cpu", "raw", 0.0, K, 256)
    limits = dict.fromkeys(DEFAULT_STATISTICS, 9.0)
    scores = {name: tuple(i / 100 for i in range(200)) for name in ("sigma", "entropy", "kl", "nll")}
    base_numbers = Base(0.2, 1.6, 2.0, 1.2)
    calibration = Calibration(
        fingerprint, base_numbers, 0.1, 0.05, None, "joint", 256, 200, DEFAULT_STATISTICS, limits,
        dict.fromkeys(DEFAULT_STATISTICS, 7.0), scores,
    )  # fmt: skip
    settings = WatchSettings(base, port=0)
    sock = listen(settings)
    serve(build_app(Watcher(settings, calibration)), sock, lambda: pipe.send(sock.getsockname()[1]))


def _run(main: Any) -> Any:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)


class Reader(asyncio.Protocol):
    """Reads one stream as fast as it comes; notes how old each chunk is."""

    def __init__(self, request: bytes, ages: list[int]) -> None:
        self.request, self.ages, self.rest = request, ages, b""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        data = self.rest + data
        *whole, self.rest = data.split(b"\n\n")
        for event in whole:
            at = event.find(b'"created":')
            if at >= 0:
                self.ages.append(now - int(event[at + 10 : event.index(b",", at + 10)]))
            elif b"[DONE]" in event and not self.done.done():
                self.done.set_result(None)
                self.transport.close()
            elif b'"error"' in event and not self.done.done():
                self.done.set_exception(ConnectionError(event.decode()))
                self.transport.close()

    def connection_lost(self, problem: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(problem or ConnectionError("the stream broke off"))


async def one(port: int, tokens: int, pause: float, phase: float, asked: bool, ages: list[int]) -> None:
    body = {"model": "m", "temperature": 0, "stream": True, "max_tokens": tokens, "pause": pause, "phase": phase,
            "messages": []}  # fmt: skip
    if asked:
        body |= {"logprobs": True, "top_logprobs": K}
    data = json.dumps(body).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data)
    _, reader = await asyncio.get_running_loop().create_connection(lambda: Reader(head + data, ages), "127.0.0.1", port)
    await reader.done


async def together(port: int, streams: int, tokens: int, pause: float, *, asked: bool = False) -> list[int]:
    """Ages of all chunks, in nanoseconds, of streams that run side by side."""
    ages: list[int] = []
    await asyncio.gather(*(one(port, tokens, pause, 0.2 + pause * i / streams, asked, ages) for i in range(streams)))
    return ages


async def one_after_another(port: int, streams: int, tokens: int, at_once: int) -> None:
    gate = asyncio.Semaphore(at_once)

    async def wait() -> None:
        async with gate:
            await one(port, tokens, 0.0, 0.0, False, [])

    await asyncio.gather(*(wait() for _ in range(streams)))


def used(pid: int) -> float:
    """Processor seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> float:
    """Resident memory of a process, MB."""
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def quantiles(ages: list[int]) -> dict[str, float]:
    cuts = statistics.quantiles(ages, n=1000, method="inclusive")
    return {name: round(cuts[i] / 1e6, 3) for name, i in (("p50", 499), ("p90", 899), ("p99", 989), ("p999", 998))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--interval", type=float, default=0.05, help="seconds between a stream's chunks")
    parser.add_argument("--memory-streams", type=int, default=10_000)
    parser.add_argument("--cores", default="0,1", help="processors that all processes share")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    os.sched_setaffinity(0, {int(c) for c in args.cores.split(",")})
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    first = context.Process(target=upstream, args=(theirs,), daemon=True)
    first.start()
    direct = ours.recv()
    second = context.Process(target=proxy, args=(theirs, f"http://127.0.0.1:{direct}"), daemon=True)
    second.start()
    through = ours.recv()
    try:
        result = measure(args, direct, through, second.pid or 0)
    finally:
        second.terminate()
        first.terminate()
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measure(args: argparse.Namespace, direct: int, through: int, pid: int) -> dict[str, Any]:
    run = (args.streams, args.tokens, args.interval)
    _run(together(through, args.streams, 20, args.interval))  # warm
    straight = _run(together(direct, *run, asked=True))
    before = used(pid)
    begun = time.monotonic()
    ages = _run(together(through, *run))
    seconds, spent = time.monotonic() - begun, used(pid) - before
    tokens = args.streams * args.tokens
    before = used(pid)
    _run(together(through, args.streams, 100, 0.0))
    flood = (used(pid) - before) / (args.streams * 100)
    memory = []
    tenth = max(args.memory_streams // 10, 1)
    for i in range(10 if args.memory_streams else 0):
        _run(one_after_another(through, tenth, 16, args.streams))
        memory.append({"streams": (i + 1) * tenth, "mb": round(resident(pid), 1)})
        print(f"{memory[-1]}", file=sys.stderr)
    faults = _faults(through)
    a, b = quantiles(straight), quantiles(ages)
    return {
        "what": "added latency and processor time of quantvane watch",
        "streams": args.streams, "tokens_a_stream": args.tokens, "interval_seconds": args.interval, "top_k": K,
        "chunks_a_second": round(tokens / seconds), "straight_ms": a, "through_ms": b,
        "added_ms": {name: round(b[name] - a[name], 3) for name in b},
        "cpu_ms_a_token": round(spent / tokens * 1000, 4), "cpu_ms_a_token_flood": round(flood * 1000, 4),
        "memory": memory, "faults": faults, "cores": len(os.sched_getaffinity(0)), "load_before": os.getloadavg()[0],
        "python": platform.python_version(), "machine": platform.machine(), "cpu": _cpu(),
        "versions": {n: _version(n) for n in ("uvicorn", "starlette", "aiohttp", "uvloop", "httptools", "orjson")},
    }  # fmt: skip


def _faults(port: int) -> dict[str, float]:
    """What the proxy counted as gone wrong; the readers close as soon as they have all, which may count as leaving."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        lines = [
            x.rpartition(" ") for x in answer.read().decode().splitlines() if x.startswith("quantvane_faults_total")
        ]
    return {name.partition('"')[2].rstrip('"}'): float(value) for name, _, value in lines if float(value)}


def _version(name: str) -> str:
    try:
        return version(name)
    except Exception:
        return "absent"


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
