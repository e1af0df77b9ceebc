"""Taking lists out of answers, byte for byte elsewhere; requests and what is asked instead."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantvane.monitor.proxy.asked import read_request
from quantvane.monitor.proxy.wire import EventSplitter, add_field, payload_span, read_answer

TEXT = st.text(max_size=12) | st.sampled_from(
    ['"logprobs": {', '\\"logprobs":1', "logprobs", "\n\n", "}]", '"finish_reason"']
)
LISTS = st.none() | st.fixed_dictionaries(
    {"content": st.lists(st.fixed_dictionaries({"token": TEXT, "logprob": st.floats(-50, 0)}), max_size=3)}
)


@st.composite
def answers(draw: st.DrawFn) -> dict:
    choices = []
    for index in range(draw(st.integers(0, 3))):
        members = [
            ("index", index),
            ("delta", {"content": draw(TEXT)}),
            ("logprobs", draw(LISTS)),
            ("finish_reason", None),
        ]
        choices.append(dict(draw(st.permutations(members))))
    members = [("id", draw(TEXT)), ("choices", choices), ("usage", None), ("model", draw(TEXT))]
    return dict(draw(st.permutations(members)))


@given(answers(), st.booleans(), st.booleans())
@settings(max_examples=100, deadline=None)
def test_hiding_equals_what_the_server_prints_without_lists(document, spaced, ascii_only):
    style = {"separators": None if spaced else (",", ":"), "ensure_ascii": ascii_only}
    text = json.dumps(document, **style)
    bare = {**document, "choices": [{**c, "logprobs": None} for c in document["choices"]]}
    answer = read_answer(text, lambda value, spaced: "null")
    assert answer.text == json.dumps(bare, **style)
    assert answer.document == bare
    assert answer.logprobs == [c["logprobs"] for c in document["choices"]]
    assert read_answer(text, None).text is text


@given(answers(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_dropping_the_key(document, spaced):
    style = {"separators": None if spaced else (",", ":")}
    gone = [{k: v for k, v in c.items() if k != "logprobs" or v is None} for c in document["choices"]]
    answer = read_answer(json.dumps(document, **style), lambda value, spaced: None)
    assert answer.text == json.dumps({**document, "choices": gone}, **style)


@given(answers(), st.booleans())
@settings(max_examples=30, deadline=None)
def test_adding_a_field(document, spaced):
    text = json.dumps(document, separators=None if spaced else (",", ":"))
    assert json.loads(add_field(text, "quantvane", {"a": 1})) == {**document, "quantvane": {"a": 1}}


def test_another_member_of_that_name_is_left_alone():
    document = {"logprobs": {"x": 1}, "choices": [{"index": 0, "logprobs": {"content": []}}]}
    answer = read_answer(json.dumps(document), lambda value, spaced: "null")
    assert json.loads(answer.text) == {"logprobs": {"x": 1}, "choices": [{"index": 0, "logprobs": None}]}
    assert answer.logprobs == [{"content": []}]


@pytest.mark.parametrize("text", ["", "{", "[]", '"a"', '{"logprobs": }', '{"choices": [{"logprobs": {"content": [}]}'])
def test_what_is_no_answer(text):
    with pytest.raises(ValueError):
        read_answer(text, None)


def test_infinities_that_python_servers_print():
    text = '{"choices": [{"logprobs": {"content": [{"logprob": -Infinity}]}}]}'
    answer = read_answer(text, lambda value, spaced: "null")
    assert answer.logprobs[0]["content"][0]["logprob"] == float("-inf")
    assert answer.text == '{"choices": [{"logprobs": null}]}'


@given(st.lists(st.sampled_from(["data: {}", ": ping", "event: x\ndata: 1", "data: [DONE]"]), max_size=8),
       st.sampled_from(["\n\n", "\r\n\r\n"]), st.lists(st.integers(1, 9), max_size=40))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_events_come_out_whole_however_they_are_cut(events, end, cuts):
    whole = "".join(e + end for e in events).encode() + b"data: tail"
    splitter, out, at = EventSplitter(), [], 0
    for cut in [*cuts, len(whole)]:
        out += splitter.feed(whole[at : at + cut])
        at += cut
    assert out == [(e + end).encode() for e in events]
    assert splitter.held == len(b"data: tail")
    assert splitter.flush() == b"data: tail"


@pytest.mark.parametrize(
    ("event", "payload"),
    [(b"data: {}\n\n", b"{}"), (b"data:{}\r\n\r\n", b"{}"), (b"event: x\ndata: 1\n\n", b"1"), (b": ping\n\n", None)],
)
def test_payloads(event, payload):
    span = payload_span(event)
    assert (event[slice(*span)] if span else None) == payload


@pytest.mark.parametrize(
    ("chat", "body", "shown", "wanted"),
    [
        (True, {}, None, 20), (True, {"logprobs": False, "top_logprobs": 4}, None, 20),
        (True, {"logprobs": True}, 0, 20), (True, {"logprobs": True, "top_logprobs": 40}, 40, 40),
        (False, {}, None, 20), (False, {"logprobs": None}, None, 20), (False, {"logprobs": 0}, 0, 20),
        (False, {"logprobs": 3}, 3, 20), (False, {"logprobs": True}, 0, 20),
    ],
)  # fmt: skip
def test_what_is_asked(chat, body, shown, wanted):
    asked = read_request(json.dumps(body).encode(), chat=chat)
    assert asked.shown == shown
    sent = json.loads(asked.upstream_body(20))
    assert sent["top_logprobs" if chat else "logprobs"] == wanted
    assert asked.asks_more(20) == (shown is None or shown < 20)


@pytest.mark.parametrize(
    ("body", "count"), [({}, 1), ({"n": 3}, 3), ({"prompt": ["a", "b"], "n": 2}, 4), ({"prompt": [1, 2, 3]}, 1)]
)
def test_how_many_choices_to_expect(body, count):
    assert read_request(json.dumps(body).encode(), chat=False).choices == count


def test_big_integers_survive():
    body = {"seed": 2**70, "logit_bias": {"1": -100.5}}
    sent = json.loads(read_request(json.dumps(body).encode(), chat=True).upstream_body(5))
    assert {k: sent[k] for k in body} == body
