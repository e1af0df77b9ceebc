"""The proxy against a scripted upstream: what passes, what is hidden, what is said, what is cut."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from proxy_support import PRINT, Served, ask, calibration, direct, get
from scripted_upstream import Upstream, whole

pytest.importorskip("uvicorn")
MESSAGES = [{"role": "user", "content": "a secret prompt"}]


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    one = Upstream()
    yield one
    one.stop()


@pytest.fixture(scope="module")
def watched(upstream: Upstream) -> Iterator[Served]:
    one = Served(upstream.url)
    yield one
    one.stop()


@pytest.fixture(scope="module")
def annotating(upstream: Upstream) -> Iterator[Served]:
    one = Served(upstream.url + "/v1", "annotate")
    yield one
    one.stop()


@pytest.fixture(scope="module")
def cutting(upstream: Upstream) -> Iterator[Served]:
    one = Served(upstream.url, "truncate")
    yield one
    one.stop()


def _body(chat: bool = True, how: str = "scripted", **more: Any) -> dict[str, Any]:
    what = {"messages": MESSAGES} if chat else {"prompt": "a secret prompt"}
    return {"model": how, "temperature": 0, **what, **more}


def _path(chat: bool) -> str:
    return "/v1/chat/completions" if chat else "/v1/completions"


def _documents(stream: bytes) -> list[dict[str, Any]]:
    pieces = [e[6:] for e in stream.decode().split("\n\n") if e.startswith("data: ")]
    return [json.loads(p) for p in pieces if p != "[DONE]"]


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("how", ["scripted", "compact", "absent", "comments"])
def test_a_stream_is_the_upstreams_byte_for_byte(watched, chat, how):
    if how == "absent":
        watched.watcher.proxy.facts = watched.watcher.proxy.facts.__class__(server="ollama", models=("scripted",))
    body = _body(chat, how, stream=True, n=2)
    before = len(watched.streams(0))
    status, headers, data = ask(watched.url, body, path=_path(chat))
    assert (status, headers["x-own"]) == (200, "kept")
    assert data == direct(chat, how, body, None)
    ours = watched.streams(before + 2)[before:]
    assert [(s["label"], s["tokens"], s["outcome"]) for s in ours] == [("NOMINAL", 6, "complete")] * 2
    if how == "absent":
        watched.watcher.proxy.facts = watched.watcher.proxy.facts.__class__(server="vllm", models=("scripted",))


@pytest.mark.parametrize("chat", [True, False])
def test_a_whole_answer_is_the_upstreams_byte_for_byte(watched, chat):
    body = _body(chat, n=3)
    before = len(watched.streams(0))
    status, headers, data = ask(watched.url, body, path=_path(chat))
    assert status == 200
    assert data == whole(chat, "scripted", body, None)
    assert int(headers["content-length"]) == len(data)
    assert {s["choice"] for s in watched.streams(before + 3)[before:]} == {0, 1, 2}


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("shown", [0, 3, 20, 25])
def test_who_asks_for_lists_gets_what_he_asked_for(watched, chat, shown):
    more = {"logprobs": True, "top_logprobs": shown} if chat else {"logprobs": shown}
    for stream in (True, False):
        body = _body(chat, stream=stream, **more)
        data = ask(watched.url, body, path=_path(chat))[2]
        wanted = direct(chat, "scripted", body, shown) if stream else whole(chat, "scripted", body, shown)
        if chat:
            assert data == wanted
        else:  # a legacy list always holds the generated token as well
            documents = _documents(data) if stream else [json.loads(data)]
            lists = [c["logprobs"] for d in documents for c in d["choices"] if c["logprobs"]]
            assert all(len(top) == max(shown, 1) for value in lists for top in value["top_logprobs"])


def test_what_the_upstream_is_asked_for(watched, upstream):
    ask(watched.url, _body(tools=[{"type": "function"}], seed=7, x_other={"a": [1.5]}), {"Authorization": "Bearer k"})
    method, _, headers, raw = upstream.requests[-1]
    body = json.loads(raw)
    assert (method, headers["authorization"], headers["accept-encoding"]) == ("POST", "Bearer k", "identity")
    assert body.pop("logprobs") is True
    assert body.pop("top_logprobs") == 20
    assert body == _body(tools=[{"type": "function"}], seed=7, x_other={"a": [1.5]})


def test_tool_calls_pass_though_an_argument_is_called_logprobs(watched):
    body = _body(tools=[{"type": "function"}])
    data = ask(watched.url, body)[2]
    assert data == whole(True, "scripted", body, None)
    assert json.loads(data)["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] == '{"logprobs": 1}'


def test_everything_else_passes(watched, upstream):
    status, headers, data = get(watched.url, "/bytes?x=%2F&y")
    assert (status, headers["x-own"], data) == (200, "kept", bytes(range(256)) * 8)
    assert upstream.requests[-1][1] == "/bytes?x=%2F&y"
    status, headers, data = ask(watched.url, b"\x00\x01", {"Authorization": "Bearer key"}, path="/echo")
    assert (status, headers["x-seen"], data) == (200, "Bearer key", b"\x00\x01")
    assert get(watched.url, "/nowhere")[0] == 404


def test_an_upstream_without_lists_is_invalid_never_nominal(watched):
    for stream in (True, False):
        before = len(watched.streams(0))
        body = _body(how="nologprobs", stream=stream)
        data = ask(watched.url, body)[2]
        assert data == (direct(True, "nologprobs", body, None) if stream else whole(True, "nologprobs", body, None))
        (one,) = watched.streams(before + 1)[before:]
        assert one["label"] == "INVALID"
        assert "no usable log-probabilities" in one["reason"]


@pytest.mark.parametrize("how", ["refuses", "refuses-late"])
def test_an_upstream_that_refuses_lists_still_answers(watched, how):
    before, faults = len(watched.streams(0)), watched.faults("upstream_refuses_logprobs", 0)
    body = _body(how=how, stream=how == "refuses-late")
    status, _, data = ask(watched.url, body)
    assert status == 200
    assert data == (direct if body["stream"] else whole)(True, how, body, None)
    (one,) = watched.streams(before + 1)[before:]
    assert (one["label"], one["reason"]) == ("INVALID", "the upstream refuses to give log-probabilities")
    assert watched.faults("upstream_refuses_logprobs") == faults + 1


def test_half_of_the_lists_missing_is_invalid(watched):
    before = len(watched.streams(0))
    ask(watched.url, _body(how="half", stream=True))
    (one,) = watched.streams(before + 1)[before:]
    assert (one["label"], one["missing"], one["tokens"]) == ("INVALID", 3, 6)


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"temperature": 0.7}, "temperature is 0.7, the calibration's 0"), ({"temperature": None}, "names no temperature"),
     ({"echo": True}, "echo")],
)  # fmt: skip
def test_another_temperature_is_invalid_and_raises_no_alarm(cutting, change, reason):
    before = len(cutting.streams(0))
    body = _body(False, "flat", max_tokens=20) | change
    status, headers, data = ask(cutting.url, {k: v for k, v in body.items() if v is not None}, path="/v1/completions")
    assert (status, headers["x-quantvane-label"]) == (200, "INVALID")
    assert data == whole(False, "flat", body, None)
    (one,) = cutting.streams(before + 1)[before:]
    assert one["label"] == "INVALID"
    assert reason in one["reason"]
    assert one["first_alarm"] is None
    assert not [e for e in cutting.events if e["event"] == "alarm" and e["stream"] == one["stream"]]


def test_observing_sees_an_alarm_and_changes_nothing(watched):
    before = len(watched.streams(0))
    body = _body(how="flat", stream=True, max_tokens=20)
    assert ask(watched.url, body)[2] == direct(True, "flat", body, None)
    (one,) = watched.streams(before + 1)[before:]
    assert one["label"] == "ALARM"
    assert one["alarms"][0] == "entropy_high"
    alarms = [e for e in watched.events if e["event"] == "alarm" and e["stream"] == one["stream"]]
    assert alarms[0]["index"] == one["first_alarm"]
    assert "secret" not in json.dumps(watched.events)


def test_annotations(annotating):
    status, headers, data = ask(annotating.url, _body(n=2))
    assert (status, headers["x-quantvane-label"]) == (200, "NOMINAL")
    assert data == whole(True, "scripted", _body(n=2), None)
    told = json.loads(headers["x-quantvane"])["choices"]
    assert set(told) == {"0", "1"}
    assert told["0"]["tokens"] == 6
    assert 0 < told["0"]["lambda"][0] <= told["0"]["lambda"][1] <= 0.5
    body = _body(stream=True)
    data = ask(annotating.url, body)[2]
    documents = _documents(data)
    assert [i for i, d in enumerate(documents) if "quantvane" in d] == [len(documents) - 1]
    told = documents[-1].pop("quantvane")["choices"]["0"]
    assert (told["label"], told["alpha"], told["first_alarm"]) == ("NOMINAL", 0.05, None)
    assert documents == _documents(direct(True, "scripted", body, None))


@pytest.mark.parametrize("chat", [True, False])
def test_a_stream_is_cut_at_the_first_passage(cutting, upstream, chat):
    before, closed = len(cutting.streams(0)), upstream.closed
    body = _body(chat, "flat-slow", stream=True, max_tokens=500)
    data = ask(cutting.url, body, path=_path(chat))[2]
    documents = _documents(data)
    (one,) = cutting.streams(before + 1)[before:]
    assert one["outcome"] == "truncated"
    assert data.endswith(b"data: [DONE]\n\n")
    last = documents[-1]
    assert last["choices"][0]["finish_reason"] == "content_filter"
    assert last["quantvane"]["choices"]["0"]["first_alarm"] == one["first_alarm"]
    # What came before the alarm is there, byte for byte; the token that raised it is not.
    whole_stream = direct(chat, "flat-slow", body, None)
    head = data[: data.rindex(b"data: {")]
    assert whole_stream.startswith(head)
    assert len(documents) == one["first_alarm"] + 1
    assert cutting.wait(lambda: [0] * (upstream.closed - closed), 1)  # the upstream was told to stop


def test_one_choice_is_cut_and_the_other_goes_on(cutting):
    body = _body(how="flat-one", stream=True, n=2, max_tokens=12)
    before = len(cutting.streams(0))
    documents = _documents(ask(cutting.url, body)[2])
    ours = {s["choice"]: s for s in cutting.streams(before + 2)[before:]}
    assert (ours[0]["outcome"], ours[1]["outcome"]) == ("truncated", "complete")
    pieces = {i: [d for d in documents if d["choices"][0]["index"] == i] for i in (0, 1)}
    assert len(pieces[0]) == ours[0]["first_alarm"] + 1
    assert len(pieces[1]) == 13
    assert pieces[0][-1]["choices"][0]["finish_reason"] == "content_filter"
    assert pieces[1][-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("chat", [True, False])
def test_a_whole_answer_is_cut_at_the_first_passage(cutting, chat):
    body = _body(chat, "flat", max_tokens=16)
    before = len(cutting.streams(0))
    status, headers, data = ask(cutting.url, body, path=_path(chat))
    (one,) = cutting.streams(before + 1)[before:]
    choice = json.loads(data)["choices"][0]
    text = choice["message"]["content"] if chat else choice["text"]
    whole_choice = json.loads(whole(chat, "flat", body, None))["choices"][0]
    full = whole_choice["message"]["content"] if chat else whole_choice["text"]
    assert (status, headers["x-quantvane-label"], choice["finish_reason"]) == (200, "ALARM", "content_filter")
    assert full.startswith(text)
    assert len(text) < len(full)
    assert one["outcome"] == "truncated"


def test_metrics_and_page_data(watched):
    ask(watched.url, _body(stream=True, max_tokens=9))
    text = get(watched.url, "/metrics")[2].decode()
    assert 'quantvane_streams_total{label="NOMINAL",outcome="complete"}' in text
    assert 'quantvane_alarms_total{statistic="entropy_high"}' in text
    assert "quantvane_calibration_fits 1.0" in text
    state = json.loads(get(watched.url, "/quantvane/state")[2])
    newest = state["streams"][0]
    assert newest["tokens"] == len(newest["sigma"]) == len(newest["entropy"]) == 9
    assert state["calibration"]["alpha"] == 0.05
    assert state["drift"]["streams"] > 0
    assert "secret" not in json.dumps(state) + text
    assert b"<script>" in get(watched.url, "/quantvane/")[2]
    # The gauge goes back to none once every stream has ended.
    assert "quantvane_active_streams 0.0" in text


def test_a_calibration_of_another_model_promises_nothing(upstream):
    other = calibration(fingerprint=replace(PRINT, model="another"))
    served = Served(upstream.url, calibration=other)
    try:
        assert "model differ" in served.desk.reason
        assert served.watcher.error is not None
        ask(served.url, _body(how="flat", max_tokens=20))
        (one,) = served.streams(1)
        assert one["label"] == "INVALID"
        assert "model" in one["reason"]
        assert "quantvane_calibration_fits 0.0" in get(served.url, "/metrics")[2].decode()
    finally:
        served.stop()
