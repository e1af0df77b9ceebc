"""Log-probabilities in each server's shape, read as observations."""

from __future__ import annotations

import math

import pytest

from quantvane.monitor.shapes import observations, token_texts


def _entry(token: str, values: list[tuple[str, float]], chosen: float | None = None, **more: object) -> dict:
    top = [{"token": t, "logprob": v, "bytes": list(t.encode())} for t, v in values]
    return {"token": token, "logprob": dict(values).get(token, chosen), "bytes": None, "top_logprobs": top, **more}


LIST = [(" a", -0.5), (" b", -1.5), (" c", -3.0)]
LLAMA_SERVER = {"content": [{
    "id": 264, "token": " a", "bytes": [32, 97], "logprob": -0.5,
    "top_logprobs": [
        {"id": 264 + i, "token": t, "bytes": list(t.encode()), "logprob": v} for i, (t, v) in enumerate(LIST)
    ],
}]}  # fmt: skip
LLAMA_CPP_PYTHON_CHAT = {"content": [_entry(" a", LIST)], "refusal": None}
LLAMA_CPP_PYTHON_TEXT = {"tokens": [" a"], "text_offset": [5], "token_logprobs": [-0.5], "top_logprobs": [dict(LIST)]}
VLLM_CHAT = {"content": [_entry(" a", LIST)]}
SGLANG_CHAT = {"content": [_entry(" a", LIST)]}
SGLANG_TEXT = {"text_offset": [], "token_logprobs": [-0.5], "tokens": [" a"], "top_logprobs": [dict(LIST)]}
OLLAMA = {"content": [{"token": " a", "logprob": -0.5, "bytes": [32, 97],
                       "top_logprobs": [{"token": t, "logprob": v} for t, v in LIST]}]}  # fmt: skip


@pytest.mark.parametrize(
    "value", [LLAMA_SERVER, LLAMA_CPP_PYTHON_CHAT, LLAMA_CPP_PYTHON_TEXT, VLLM_CHAT, SGLANG_CHAT, SGLANG_TEXT, OLLAMA]
)
def test_every_servers_shape(value):
    (one,) = observations(value, 3)
    assert one.logprobs == (-0.5, -1.5, -3.0)
    assert one.keys == (" a", " b", " c")
    assert one.chosen == -0.5
    assert not one.complete
    assert token_texts(value) == [" a"]


def test_vllm_puts_the_generated_token_in_the_place_of_the_last():
    """Its chat list begins with the generated token and is cut at k."""
    (one,) = observations({"content": [_entry(" z", [(" z", -9.0), (" a", -0.5), (" b", -1.5)])]}, 3)
    assert (one.keys, one.logprobs, one.chosen) == ((" a", " b"), (-0.5, -1.5), -9.0)


def test_llama_cpp_python_appends_the_generated_token():
    value = {
        **LLAMA_CPP_PYTHON_TEXT,
        "tokens": [" z"],
        "token_logprobs": [-9.0],
        "top_logprobs": [{**dict(LIST), " z": -9.0}],
    }
    (one,) = observations(value, 3)
    assert (one.keys, one.chosen) == ((" a", " b", " c"), -9.0)


def test_texts_that_collide_leave_a_hole_and_are_no_observation():
    """Two tokens without a text of their own are one key of a map: the list misses an entry from its middle."""
    (one,) = observations({"tokens": [" a"], "token_logprobs": [-0.5], "top_logprobs": [{" a": -0.5, "": -3.0}]}, 3)
    assert one is None
    small = {" a": math.log(0.7), " b": math.log(0.3)}  # a whole distribution of two tokens misses nothing
    (one,) = observations({"tokens": [" a"], "token_logprobs": [math.log(0.7)], "top_logprobs": [small]}, 3)
    assert one is not None


def test_tokens_that_only_their_bytes_tell_apart():
    top = [{"token": "\ufffd", "logprob": -0.5, "bytes": [195]}, {"token": "\ufffd", "logprob": -1.5, "bytes": [226]},
           {"token": "\ufffd", "logprob": -2.0, "bytes": None, "id": 7}, {"token": "", "logprob": -2.5, "bytes": None},
           {"token": "", "logprob": -2.6, "bytes": None}]  # fmt: skip
    (one,) = observations({"content": [{"token": "x", "logprob": -8.0, "top_logprobs": top}]}, 5)
    assert one.keys == ((195,), (226,), 7, "", ("", 1))


def test_more_entries_than_asked_for_are_cut():
    (one,) = observations(VLLM_CHAT, 2)
    assert one.keys == (" a", " b")


@pytest.mark.parametrize("value", [None, 3, [], "x", {}, {"content": None}, {"top_logprobs": None, "tokens": None}])
def test_nothing_is_nothing(value):
    assert observations(value, 3) == []


def test_the_generated_token_alone_is_a_token_that_was_not_seen():
    assert observations({"tokens": [" a"], "token_logprobs": [-0.5], "top_logprobs": None}, 3) == [None]
    assert observations({"content": [{"token": " a", "logprob": -0.5, "top_logprobs": []}]}, 3) == [None]


@pytest.mark.parametrize("bad", [None, float("nan"), "x", 2.0, float("inf")])
def test_values_that_are_no_log_probabilities(bad):
    top = [{"token": " a", "logprob": bad, "bytes": None}, *VLLM_CHAT["content"][0]["top_logprobs"][1:]]
    assert observations({"content": [{"token": " a", "logprob": -1.0, "top_logprobs": top}]}, 3) == [None]
    top[1] = "no object"
    assert observations({"content": [{"token": " a", "logprob": -1.0, "top_logprobs": top}]}, 3) == [None]


def test_first_token_of_an_echo_has_no_list():
    value = {"tokens": ["The", " a"], "token_logprobs": [None, -0.5], "top_logprobs": [None, dict(LIST)]}
    first, second = observations(value, 3)
    assert first is None
    assert second.chosen == -0.5
