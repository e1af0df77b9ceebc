"""What goes wrong on either side ends in a clear state and a counted metric; secrets stay secret."""

from __future__ import annotations

import base64
import json
import logging
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from proxy_support import Served, ask, chat_request, get, raw_socket
from scripted_upstream import Upstream

from quantvane.errors import SpecError
from quantvane.monitor.proxy.settings import WatchSettings

SECRET = "sk-very-secret"


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    one = Upstream()
    yield one
    one.stop()


@pytest.fixture(scope="module")
def served(upstream: Upstream) -> Iterator[Served]:
    limits = {"idle_seconds": 1.5, "stream_seconds": 4.0, "request_bytes": 200_000, "answer_bytes": 1_000_000,
              "event_bytes": 100_000, "header_bytes": 16_384, "streams": 12}  # fmt: skip
    one = Served(upstream.url, limits=limits)
    yield one
    one.stop()


def _body(how: str = "scripted", **more: Any) -> dict[str, Any]:
    return {"model": how, "temperature": 0, "messages": [{"role": "user", "content": "private words"}], **more}


def _last(served: Served, before: int) -> dict[str, Any]:
    return served.streams(before + 1)[before]


def test_upstream_dies_in_the_middle(served):
    before, faults = len(served.streams(0)), served.faults("upstream_died", 0)
    data = ask(served.url, _body("dies", stream=True))[2]
    assert json.loads(data.rstrip().rpartition(b"data: ")[2])["error"]["type"] == "upstream_died"
    assert b"[DONE]" not in data
    one = _last(served, before)
    assert (one["outcome"], one["tokens"]) == ("upstream_died", 3)
    assert served.faults("upstream_died", int(faults) + 1) == faults + 1


def test_upstream_ends_its_stream_without_an_end(served):
    before = len(served.streams(0))
    assert b"upstream_died" in ask(served.url, _body("no-finish", stream=True))[2]
    assert _last(served, before)["outcome"] == "upstream_died"


@pytest.mark.parametrize(("how", "tokens"), [("silent", 0), ("stalls", 6)])
def test_upstream_falls_silent(served, how, tokens):
    before, faults = len(served.streams(0)), served.faults("upstream_timeout", 0)
    status, _, data = ask(served.url, _body(how, stream=True))
    assert status == (200 if tokens else 504)
    assert b"upstream_timeout" in data
    if tokens:
        assert _last(served, before)["outcome"] == "upstream_timeout"
    assert served.faults("upstream_timeout", int(faults) + 1) == faults + 1


def test_endless_stream_is_ended(served, upstream):
    before, closed = len(served.streams(0)), upstream.closed
    data = ask(served.url, _body("endless", stream=True))[2]
    assert b"stream_too_long" in data
    assert _last(served, before)["outcome"] == "stream_too_long"
    assert served.wait(lambda: [0] * (upstream.closed - closed), 1)
    assert served.faults("stream_too_long") == 1


def test_client_leaves(served, upstream):
    before, closed = len(served.streams(0)), upstream.closed
    sock = raw_socket(served.port, chat_request(_body("slow", stream=True, max_tokens=2000)))
    assert sock.recv(1000)
    sock.close()
    assert _last(served, before)["outcome"] == "client_gone"
    assert served.faults("client_gone") == 1
    assert served.wait(lambda: [0] * (upstream.closed - closed), 1)  # the upstream stops computing


def test_client_that_does_not_read_holds_the_upstream_back_and_is_let_go(upstream):
    served, written = Served(upstream.url, limits={"idle_seconds": 2.0}), upstream.written
    sock = raw_socket(served.port, chat_request(_body("scripted", stream=True, max_tokens=400_000)))
    assert served.streams(1, 40.0)[0]["outcome"] == "client_too_slow"
    # Back-pressure: of its 600 MB the upstream could get rid of what the sockets' buffers hold, a tenth of it once
    # the lists are taken out.
    assert upstream.written - written < 150_000_000
    assert served.faults("client_too_slow") == 1
    sock.close()
    served.stop()


@pytest.mark.parametrize("data", [b"{not json", b"[1, 2]", b"\xff\xfe", b"[" * 100_000, b""])
def test_malformed_request(served, data):
    faults = served.faults("request_not_json", 0)
    status, _, answer = ask(served.url, data)
    assert status in (200, 400)  # the upstream's own word on it
    assert b"internal error" not in answer
    assert served.faults("request_not_json", int(faults) + 1) == faults + 1


def test_malformed_event(served):
    before, faults = len(served.streams(0)), served.faults("chunk_not_json", 0)
    data = ask(served.url, _body("garbage", stream=True, max_tokens=3))[2]
    assert b"data: {not json\n\n" in data
    one = _last(served, before)
    assert (one["label"], one["missing"], one["outcome"]) == ("INVALID", 1, "complete")
    assert served.faults("chunk_not_json", int(faults) + 1) == faults + 1


def test_malformed_answer(served):
    faults = served.faults("chunk_not_json", 0)
    status, _, data = ask(served.url, _body("garbage"))
    assert (status, data) == (200, b'{"choices": [{"text": "cut')
    assert served.faults("chunk_not_json", int(faults) + 1) == faults + 1


def test_caps(served):
    assert ask(served.url, b"x" * 300_000)[0] == 413
    assert served.faults("request_too_large") == 1
    status, _, data = ask(served.url, _body("huge"))
    assert (status, b"upstream_too_large" in data) == (502, True)
    assert b"event_too_large" in ask(served.url, _body("monster", stream=True))[2]
    assert ask(served.url, _body("huge-header"))[0] == 502


def test_a_body_that_never_says_its_size_is_capped_too(served):
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    sock = raw_socket(served.port, head)
    faults = served.faults("request_too_large", 0)
    try:
        for _ in range(80):
            sock.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")
    except OSError:
        pass
    assert served.faults("request_too_large", int(faults) + 1) == faults + 1
    sock.close()


def test_a_request_head_is_capped(served):
    sock = raw_socket(served.port, b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: ")
    try:
        for _ in range(40):
            sock.sendall(b"y" * 4096)
        got = sock.recv(100)
    except OSError:
        got = b""
    assert got == b"" or got.startswith(b"HTTP/1.1 400")
    sock.close()
    assert get(served.url, "/quantvane/health")[0] == 200


def test_too_many_at_once(served):
    socks = [raw_socket(served.port, chat_request(_body("slow", stream=True, max_tokens=50))) for _ in range(12)]
    Served.wait(lambda: list(served.watcher.sweeper.flows), 12)
    assert ask(served.url, _body())[0] == 503
    assert served.faults("too_many_streams") == 1
    for sock in socks:
        sock.close()
    Served.wait(lambda: [0] * (not served.watcher.sweeper.flows), 1)


def test_no_redirect_leads_elsewhere(served, upstream):
    status, headers, _ = get(served.url, "/elsewhere")
    assert (status, "location" in headers) == (502, False)
    assert served.faults("redirect_refused") == 1
    status, headers, _ = get(served.url, "/slash")
    assert (status, headers["location"]) == (307, "/slash/?a=1")


@pytest.mark.parametrize(
    "line", ["GET http://192.0.2.1/x HTTP/1.1", "GET //192.0.2.1/x HTTP/1.1", "GET /\\192.0.2.1 HTTP/1.1",
             "GET @192.0.2.1/ HTTP/1.1", "CONNECT 192.0.2.1:80 HTTP/1.1", "GET /a?http://192.0.2.1 HTTP/1.1"]
)  # fmt: skip
def test_no_open_relay(served, upstream, line):
    sock = raw_socket(served.port, f"{line}\r\nHost: 192.0.2.1\r\nConnection: close\r\n\r\n".encode())
    sock.settimeout(5)
    answer = b""
    while piece := sock.recv(4096):
        answer += piece
    status = int(answer.split(b" ")[1])
    assert status in (400, 404, 405)  # refused here, or the one upstream's own "no such place"
    if status == 404:
        assert upstream.requests[-1][2]["host"] == f"127.0.0.1:{upstream.port}"
    sock.close()


def test_upstream_that_is_not_there():
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    served = Served(f"http://127.0.0.1:{sock.getsockname()[1]}")
    try:
        status, _, data = ask(served.url, _body())
        assert (status, json.loads(data)["error"]["type"]) == (502, "upstream_unreachable")
        assert served.faults("upstream_unreachable") == 1
        assert "could not be reached" in served.desk.reason
        assert get(served.url, "/quantvane/")[0] == 200
    finally:
        served.stop()
        sock.close()


def test_an_upstream_that_comes_later_is_checked_then():
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    late = Upstream()
    served = Served(f"http://127.0.0.1:{sock.getsockname()[1]}", recheck_seconds=0.05)
    try:
        assert served.desk.reason
        object.__setattr__(served.watcher.settings, "upstream", late.url)
        assert Served.wait(lambda: [0] * (not served.desk.reason), 1) == [0]
        # A model swapped behind the proxy's back is noticed.
        late.models = [{"id": "another", "owned_by": "vllm"}]
        assert Served.wait(lambda: [0] * ("model differ" in served.desk.reason), 1) == [0]
    finally:
        served.stop()
        late.stop()
        sock.close()


def test_page_and_metrics_ask_for_the_token(upstream, caplog):
    served = Served(upstream.url, token=SECRET)
    try:
        for path in ("/metrics", "/quantvane/", "/quantvane/state"):
            assert get(served.url, path)[0] == 401
            assert get(served.url, path, {"Authorization": "Bearer wrong"})[0] == 401
            assert get(served.url, path, {"Authorization": "Basic !!"})[0] == 401
            assert get(served.url, path, {"Authorization": f"Bearer {SECRET}"})[0] == 200
            basic = base64.b64encode(f"anyone:{SECRET}".encode()).decode()
            assert get(served.url, path, {"Authorization": f"Basic {basic}"})[0] == 200
        assert "Basic" in get(served.url, "/metrics")[1]["www-authenticate"]
        assert ask(served.url, _body())[0] == 200  # the model's own routes are the upstream's to guard
        assert served.faults("unauthorized") >= 9
        assert SECRET not in repr(served.watcher.settings)
    finally:
        served.stop()


def test_without_a_token_only_local_names_are_answered(served):
    assert get(served.url, "/quantvane/state", {"Host": "attacker.example:80"})[0] == 403
    assert get(served.url, "/metrics", {"Host": f"localhost:{served.port}"})[0] == 200
    assert served.faults("bad_host") == 1


def test_secrets_are_in_no_log_and_no_metric(upstream, caplog):
    caplog.set_level(logging.DEBUG)
    served = Served(upstream.url)
    try:
        auth = {"Authorization": f"Bearer {SECRET}"}
        for how in ("scripted", "dies", "garbage", "refuses", "flat"):
            for stream in (True, False):
                ask(served.url, _body(how, stream=stream), auth)
        get(served.url, f"/elsewhere?key={SECRET}", auth)
        told = json.dumps(served.events) + get(served.url, "/metrics")[2].decode()
        told += get(served.url, "/quantvane/state")[2].decode()
        ours = "".join(r.getMessage() for r in caplog.records if not r.name.startswith("asyncio"))
        for secret in (SECRET, "private words"):
            assert secret not in told
            assert secret not in ours
    finally:
        served.stop()


@pytest.mark.parametrize(
    "url", ["ftp://x", "127.0.0.1:80", "http://", "http://u:p@x", "http://x?y", "http://x#y", "http://x:99999"]
)
def test_upstreams_that_cannot_be(url):
    with pytest.raises(SpecError) as problem:
        WatchSettings(url)
    assert "u:p" not in str(problem.value)


def test_loopback_unless_told_otherwise():
    assert WatchSettings("http://x").loopback
    assert not WatchSettings("http://x", host="0.0.0.0").loopback
    assert WatchSettings("http://x/v1/").base == "http://x"
