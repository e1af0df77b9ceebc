"""An OpenAI-compatible server that does what a test says, by the request's ``model``. Tests only."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import Callable
from typing import Any

WORDS = ["The", " cat", " sat", " é", " on", " a", " mat", "."]


def top_list(i: int, k: int, flat: bool = False) -> list[tuple[str, float]]:
    """k (token, ln p) of token i: geometric, or nearly uniform over 1000 tokens."""
    if flat:
        return [(f" w{j}", math.log(0.001) - 1e-6 * j) for j in range(k)]
    ratio = 0.45 + 0.02 * (i % 5)
    return [((WORDS[i % len(WORDS)] if j == 0 else f" x{(i + j) % 97}"), math.log((1 - ratio) * ratio**j))
            for j in range(k)]  # fmt: skip


def chat_logprobs(i: int, k: int, flat: bool = False) -> dict[str, Any]:
    top = [{"token": t, "logprob": v, "bytes": list(t.encode())} for t, v in top_list(i, max(k, 1), flat)]
    head = {"token": WORDS[i % len(WORDS)], "logprob": top[0]["logprob"], "bytes": None}
    return {"content": [{**head, "top_logprobs": top[:k]}]}


def text_logprobs(i: int, k: int, flat: bool = False) -> dict[str, Any]:
    top = dict(top_list(i, max(k, 1), flat))
    return {"tokens": [WORDS[i % len(WORDS)]], "token_logprobs": [next(iter(top.values()))], "top_logprobs": [top],
            "text_offset": [i]}  # fmt: skip


class Upstream:
    """Serves on loopback from a thread of its own.

    Attributes:
        requests: (method, target, headers, body) as they came. closed: connections the other side closed while an
            answer was being sent. written: bytes of the stream that is being sent.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.closed = 0
        self.written = 0
        self.models = [{"id": "scripted", "object": "model", "owned_by": "vllm"}]
        self.pages: dict[str, Any] = {"/version": {"version": "9.9"}}
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait(10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(5)

    def _run(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 24)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stopping.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError):
            self.closed += 1
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        except asyncio.IncompleteReadError:
            return False
        method, target, _ = head[0].split(" ")
        headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        self.requests.append((method, target, headers, body))
        path = target.partition("?")[0]
        if path == "/v1/models":
            return await self._json(writer, {"object": "list", "data": self.models})
        if path in self.pages:
            return await self._json(writer, self.pages[path])
        if path == "/elsewhere":
            return await self._raw(writer, 302, b"", [("Location", "http://192.0.2.1/x")])
        if path == "/slash":
            return await self._raw(writer, 307, b"", [("Location", f"{self.url}/slash/?a=1")])
        if path == "/bytes":
            return await self._raw(writer, 200, bytes(range(256)) * 8, [("X-Own", "kept"), ("Content-Type", "x/y")])
        if path in ("/v1/chat/completions", "/v1/completions"):
            return await self._complete(path == "/v1/chat/completions", body, reader, writer)
        if path == "/echo":
            return await self._raw(writer, 200, body, [("X-Seen", headers.get("authorization", ""))])
        return await self._json(writer, {"error": "no such place"}, 404)

    async def _complete(
        self, chat: bool, raw: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            return await self._json(writer, {"error": {"message": "not JSON"}}, 400)
        how = body.get("model", "")
        k = (body.get("top_logprobs", 0) if body.get("logprobs") else None) if chat else body.get("logprobs")
        if how == "nologprobs":
            k = None
        if how == "refuses" and k is not None:
            return await self._json(writer, {"error": {"message": "no logprobs here"}}, 400)
        if how == "refuses-late" and k is not None:
            await self._start(writer)
            return False
        if how == "huge-header":
            return await self._raw(writer, 200, b"{}", [("X-Big", "x" * 200_000)])
        if how == "silent":
            await asyncio.sleep(60)
        if body.get("stream"):
            return await self._stream(chat, how, body, k, writer)
        return await self._json(writer, whole(chat, how, body, k))

    async def _stream(self, chat: bool, how: str, body: dict[str, Any], k: int | None, writer: Any) -> bool:
        await self._start(writer)
        pause = 0.02 if how in ("slow", "flat-slow", "endless") else 0.0
        for event in events(chat, how, body, k):
            if event is None:
                writer.transport.abort()
                return False
            writer.write(b"%x\r\n%s\r\n" % (len(event), event))
            self.written += len(event)
            await writer.drain()
            await asyncio.sleep(pause)
        if how == "stalls":
            await asyncio.sleep(60)
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    async def _start(self, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nX-Own: kept\r\n"
                     b"Transfer-Encoding: chunked\r\n\r\n")  # fmt: skip
        await writer.drain()

    async def _json(self, writer: asyncio.StreamWriter, document: Any, status: int = 200) -> bool:
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        return await self._raw(writer, status, data, [("Content-Type", "application/json"), ("X-Own", "kept")])

    async def _raw(self, writer: Any, status: int, data: bytes, headers: list[tuple[str, str]]) -> bool:
        lines = "".join(f"{n}: {v}\r\n" for n, v in headers)
        writer.write(f"HTTP/1.1 {status} X\r\n{lines}Content-Length: {len(data)}\r\n\r\n".encode("latin-1") + data)
        await writer.drain()
        return True


def _base(chat: bool, how: str, streamed: bool) -> dict[str, Any]:
    kind = ("chat.completion.chunk" if streamed else "chat.completion") if chat else "text_completion"
    return {"id": "cmpl-1", "object": kind, "created": 1, "model": how or "scripted"}


def whole(chat: bool, how: str, body: dict[str, Any], k: int | None) -> bytes:
    """A whole answer of ``max_tokens`` tokens."""
    if how == "garbage":
        return b'{"choices": [{"text": "cut'
    if how == "huge":
        return b'{"choices": [], "pad": "' + b"x" * 3_000_000 + b'"}'
    count = body.get("max_tokens", 6)
    flat = how.startswith("flat")
    choices = []
    for index in range(body.get("n", 1)):
        text = "".join(WORDS[i % len(WORDS)] for i in range(count))
        if chat:
            lists = None if k is None else {"content": [chat_logprobs(i, k, flat)["content"][0] for i in range(count)]}
            message: dict[str, Any] = {"role": "assistant", "content": text}
            if body.get("tools"):
                call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"logprobs": 1}'}}
                message = {"role": "assistant", "content": None, "tool_calls": [call]}
            choices.append({"index": index, "message": message, "logprobs": lists, "finish_reason": "length"})
        else:
            pieces = [text_logprobs(i, k, flat) for i in range(count)] if k is not None else []
            lists = None if k is None else {n: [p[n][0] for p in pieces] for n in pieces[0]}
            choices.append({"text": text, "index": index, "logprobs": lists, "finish_reason": "length"})
    usage = {"prompt_tokens": 3, "completion_tokens": count, "total_tokens": 3 + count}
    return json.dumps(_base(chat, how, False) | {"choices": choices, "usage": usage}).encode()


def events(chat: bool, how: str, body: dict[str, Any], k: int | None) -> Any:
    """Events of a stream; None where the connection breaks."""
    n, count = body.get("n", 1), body.get("max_tokens", 6)
    flat = how.startswith("flat")
    compact = how == "compact"

    def event(document: Any) -> bytes:
        text = json.dumps(document, separators=(",", ":")) if compact else json.dumps(document)
        return f"data: {text}\n\n".encode()

    def piece(index: int, i: int | None, finish: str | None) -> bytes:
        choice: dict[str, Any] = {"index": index}
        if chat:
            choice["delta"] = {} if i is None else {"content": WORDS[i % len(WORDS)]}
        else:
            choice["text"] = "" if i is None else WORDS[i % len(WORDS)]
        lists = None
        if i is not None and k is not None and not (how == "half" and i % 2):
            lists = (chat_logprobs if chat else text_logprobs)(i, k, flat and (how != "flat-one" or index == 0))
        if how != "absent" or lists is not None:
            choice["logprobs"] = lists
        choice["finish_reason"] = finish
        return event(_base(chat, how, True) | {"choices": [choice]})

    if how == "comments":
        yield b": ping - now\r\n\r\n"
    if how == "garbage":
        yield piece(0, 0, None)
        yield b"data: {not json\n\n"
    if how == "monster":
        yield b"data: " + b"x" * 200_000
    i = 0
    while i < count or how == "endless":
        if how == "dies" and i == 3:
            yield None
            return
        for index in range(n):
            yield piece(index, i, None)
        i += 1
    if how in ("stalls", "no-finish"):
        return
    for index in range(n):
        yield piece(index, None, "stop")
    if (body.get("stream_options") or {}).get("include_usage"):
        yield event(_base(chat, how, True) | {"choices": [], "usage": {"total_tokens": 9}})
    yield b"data: [DONE]\n\n"


Behaviour = Callable[..., Any]
