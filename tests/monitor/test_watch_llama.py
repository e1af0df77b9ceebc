"""The proxy before a real llama_cpp.server with the bundled model, driven by the real openai client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from proxy_support import Served, calibration, raw_socket

from quantvane.monitor.calibration import Fingerprint
from quantvane.monitor.upstream import Generation, collect

openai = pytest.importorskip("openai")
pytest.importorskip("fastapi")
pytest.importorskip("sse_starlette")
MODEL = Path(__file__).resolve().parents[2] / "src" / "quantvane" / "assets" / "lm10m-f16.gguf"
SERVER = """
import sys, uvicorn
from llama_cpp.server.app import create_app
from llama_cpp.server.settings import ModelSettings, ServerSettings
model = ModelSettings(model=sys.argv[1], n_ctx=512, n_threads=2, logits_all=True, verbose=False)
app = create_app(server_settings=ServerSettings(), model_settings=[model])
uvicorn.run(app, port=int(sys.argv[2]), log_level="error")
"""
TEXT = "Once upon a time, in a small village by the sea,"
TOOLS = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]


@dataclass
class Real:
    url: str
    served: Served
    straight: Any
    through: Any


def _port() -> int:
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture(scope="module")
def real() -> Iterator[Real]:
    url = f"http://127.0.0.1:{(port := _port())}"
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(MODEL), str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(1200):
            try:
                urllib.request.urlopen(f"{url}/v1/models", timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        base = calibration()
        print_ = Fingerprint(MODEL.name, "F16", "llamacpp", "", "cpu", "raw", 0.0, 20, 64)
        limits = dict.fromkeys(base.statistics, 1000.0)
        served = Served(url, calibration=replace(base, fingerprint=print_, thresholds=limits, lower=limits))
        clients = [openai.OpenAI(base_url=f"{u}/v1", api_key="none", max_retries=0) for u in (url, served.url)]
        yield Real(url, served, *clients)
        served.stop()
    finally:
        process.terminate()
        process.wait(20)


def _same(a: Any, b: Any) -> None:
    """Equal but for what no two answers share."""
    left, right = a.model_dump(), b.model_dump()
    for one in (left, right):
        one["id"] = one["created"] = None
    assert left == right


def _read(answer: Any, stream: bool) -> Any:
    return list(answer) if stream else answer


def _newest(real: Real, before: int) -> dict[str, Any]:
    return real.served.streams(before + 1, 30.0)[before]


def test_the_calibration_fits(real):
    assert real.served.desk.reason == ""
    assert real.served.watcher.proxy.facts.server == "llama_cpp.server"
    assert real.served.watcher.proxy.facts.temperature == 0.8


@pytest.mark.parametrize("extra", [{}, {"tools": TOOLS}, {"logprobs": True, "top_logprobs": 3}, {"seed": 5}])
def test_chat(real, extra):
    before = len(real.served.streams(0))
    ask = {"model": "m", "messages": [{"role": "user", "content": TEXT}], "temperature": 0, "max_tokens": 24, **extra}
    a, b = (client.chat.completions.create(**ask) for client in (real.straight, real.through))
    if "logprobs" in extra:
        _without_values(a, b)
    _same(a, b)
    one = _newest(real, before)
    assert one["label"] in ("NOMINAL", "CONFIDENT", "WATCH", "DEGENERATE")
    assert one["tokens"] >= 20
    assert one["missing"] == 0


@pytest.mark.parametrize("extra", [{}, {"tools": TOOLS}])
def test_chat_stream(real, extra):
    before = len(real.served.streams(0))
    ask = {"model": "m", "messages": [{"role": "user", "content": TEXT}], "temperature": 0, "max_tokens": 24,
           "stream": True, **extra}  # fmt: skip
    a, b = (list(client.chat.completions.create(**ask)) for client in (real.straight, real.through))
    assert len(a) == len(b) > 20
    for x, y in zip(a, b, strict=True):
        _same(x, y)
    assert _newest(real, before)["missing"] == 0


@pytest.mark.parametrize("stream", [False, True])
def test_completions_at_a_fixed_seed(real, stream):
    before = len(real.served.streams(0))
    ask = {"model": "m", "prompt": TEXT, "temperature": 0.7, "seed": 11, "max_tokens": 24, "stream": stream}
    # One after the other to its end: this server breaks off a stream when another request comes.
    a, b = (_read(client.completions.create(**ask), stream) for client in (real.straight, real.through))
    if stream:
        assert "".join(x.choices[0].text for x in a) == "".join(y.choices[0].text for y in b) != ""
        for x, y in zip(a, b, strict=True):
            _same(x, y)
    else:
        _same(a, b)
    one = _newest(real, before)
    assert (one["label"], one["reason"]) == ("INVALID", "temperature is 0.7, the calibration's 0")


def test_several_choices_are_what_this_server_makes_of_them(real):
    """llama_cpp.server takes ``n`` and answers with one choice: so does the proxy."""
    ask = {"model": "m", "messages": [{"role": "user", "content": TEXT}], "temperature": 0, "max_tokens": 4, "n": 3}
    a, b = (client.chat.completions.create(**ask) for client in (real.straight, real.through))
    assert len(a.choices) == 1
    _same(a, b)


def test_bytes_of_a_stream(real):
    body = json.dumps({"prompt": TEXT, "temperature": 0, "max_tokens": 12, "stream": True}).encode()

    def read(url: str) -> list[bytes]:
        request = urllib.request.Request(url + "/v1/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return [line for line in answer.read().split(b"\n\n") if line]

    a, b = read(real.url), read(real.served.url)
    cut = [line.partition(b'"object"') for line in a], [line.partition(b'"object"') for line in b]
    for left, right in zip(*cut, strict=True):
        assert _no_time(left[2]) == _no_time(right[2])


def test_client_leaves_in_the_middle(real):
    before = len(real.served.streams(0))
    body = json.dumps({"prompt": TEXT, "temperature": 0, "max_tokens": 400, "stream": True}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    sock = raw_socket(real.served.port, head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    seen = b""
    while b"data:" not in seen:
        seen += sock.recv(500)
    sock.close()
    assert _newest(real, before)["outcome"] == "client_gone"
    # The server is free for the next one at once: it was told to stop.
    assert real.through.completions.create(model="m", prompt="a", max_tokens=1, temperature=0).choices


def test_an_error_of_the_servers_own(real):
    said = []
    for client in (real.straight, real.through):
        with pytest.raises(openai.APIStatusError) as problem:
            client.completions.create(model="m", prompt=TEXT, temperature="hot")
        said.append((problem.value.status_code, problem.value.message))
    assert said[0] == said[1]
    assert said[0][0] >= 400


def test_everything_else(real):
    assert real.straight.models.list().model_dump() == real.through.models.list().model_dump()


def test_trajectories_through_the_server(real):
    settings = Generation(k=5, max_tokens=8, temperature=0.0, chat=False, parallel=2)
    found = list(collect(real.url, [TEXT, "The"], settings))
    assert [len(t) for t in found] == [8, 8]
    for observation in (o for t in found for o in t):
        assert observation is not None
        assert 4 <= len(observation.logprobs) <= 5
        assert list(observation.logprobs) == sorted(observation.logprobs, reverse=True)


def _no_time(text: bytes) -> bytes:
    import re

    return re.sub(rb'"created": \d+', b"", text)


def _without_values(a: Any, b: Any) -> None:
    """Lists of equal tokens; the values of a second pass differ in the last bits where the prompt is cached."""
    for x, y in zip(a.choices[0].logprobs.content, b.choices[0].logprobs.content, strict=True):
        assert [t.token for t in x.top_logprobs] == [t.token for t in y.top_logprobs]
        assert x.logprob == pytest.approx(y.logprob, abs=0.05)
    a.choices[0].logprobs = b.choices[0].logprobs = None


os.environ.setdefault("OMP_WAIT_POLICY", "passive")
