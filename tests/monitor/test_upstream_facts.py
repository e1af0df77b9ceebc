"""What servers say about themselves, and whether a calibration fits."""

from __future__ import annotations

import pytest
from proxy_support import PRINT, calibration

from quantvane.errors import EngineError, ProtocolMismatchError, SpecError
from quantvane.monitor.upstream import Facts, Generation, collect, compare, fit, quantization_of, read_facts

PAGES = {
    "llama_cpp.server": {
        "/v1/models": {"data": [{"id": "/m/x-Q4_K_M.gguf", "owned_by": "me"}]},
        "/openapi.json": {"info": {"title": "🦙 llama.cpp Python API", "version": "0.3.36"}},
    },
    "llama-server": {
        "/v1/models": {"data": [{"id": "x", "owned_by": "llamacpp"}]},
        "/props": {"default_generation_settings": {"params": {"temperature": 0.6}}, "model_path": "/m/x-Q8_0.gguf",
                   "build_info": "b8681-x"},
    },
    "vllm": {"/v1/models": {"data": [{"id": "org/model", "owned_by": "vllm"}]}, "/version": {"version": "0.15.0"}},
    "sglang": {
        "/v1/models": {"data": [{"id": "org/model", "owned_by": "sglang"}]},
        "/get_model_info": {"model_path": "org/model"},
    },
    "ollama": {
        "/v1/models": {"data": [{"id": "x:8b-q4_K_M", "owned_by": "library"}]},
        "/api/version": {"version": "0.40"},
    },
    "": {"/v1/models": None},
}  # fmt: skip


@pytest.mark.parametrize("server", PAGES)
def test_who_is_who(server):
    facts = read_facts(PAGES[server])
    assert facts.server == server
    assert facts.leaves_out(chat=True) == (server in ("llama-server", "ollama"))
    assert facts.keeps_chosen == (server == "llama_cpp.server")


def test_what_they_say():
    python, cpp, vllm = (read_facts(PAGES[name]) for name in ("llama_cpp.server", "llama-server", "vllm"))
    assert (python.temperature, python.path, python.version) == (0.8, "/m/x-Q4_K_M.gguf", "0.3.36")
    assert (cpp.temperature, cpp.path, cpp.version, cpp.stage) == (0.6, "/m/x-Q8_0.gguf", "b8681-x", "raw")
    assert (vllm.temperature, vllm.version, vllm.models) == (None, "0.15.0", ("org/model",))


@pytest.mark.parametrize("junk", [None, 3, [], "x", {"data": 3}, {"data": [3, {"id": 4}]}])
def test_junk_says_nothing(junk):
    assert read_facts(dict.fromkeys(("/v1/models", "/props", "/version", "/openapi.json"), junk)) == Facts()


def _differing(facts: Facts, k: int = 20, digest: str = "", **print_changes: object) -> str:
    from dataclasses import replace

    cal = calibration(fingerprint=replace(PRINT, **print_changes))
    try:
        compare(cal, facts, k, digest)
    except ProtocolMismatchError as problem:
        return problem.message.partition(": ")[2]
    return ""


FITS = Facts("vllm", ("scripted",), "", "9.9")


def test_a_calibration_that_fits():
    assert _differing(FITS) == ""
    assert fit(PRINT, FITS, 20)[1] == ("quantization", "hardware", "stage")


@pytest.mark.parametrize(
    ("facts", "more", "differ"),
    [
        (Facts("vllm", ("other",), "", "9.9"), {}, "model differ"),
        (Facts("vllm", ("scripted",), "", "10.0"), {}, "engine_version differ"),
        (Facts("sglang", ("scripted",)), {}, "engine differ"),
        (FITS, {"k": 5}, "top_k differ"),
        (Facts("llama-server", ("m-Q2_K.gguf",), stage="raw"), {"engine": "llamacpp", "model": "m-Q2_K.gguf",
         "quantization": "Q8_0"}, "quantization differ"),
        (Facts("llama-server", ("m",), stage="raw"), {"engine": "llamacpp", "model": "m", "stage": "sampled"},
         "stage differ"),
        (Facts("llama-server", ("m",)), {"engine": "llamacpp", "model": "a" * 64, "digest": "b" * 64}, "model differ"),
    ],
)  # fmt: skip
def test_what_differs_is_named(facts, more, differ):
    assert _differing(facts, **more) == differ


def test_the_same_engine_in_process_and_behind_a_server():
    facts = Facts("llama_cpp.server", ("m",), "/m", "0.3.36", stage="raw")
    more = {"engine": "llamacpp", "model": "a" * 64, "engine_version": "anything", "quantization": "F16+F32"}
    assert _differing(facts, digest="a" * 64, **more) == ""
    assert _differing(facts, **more) == ""  # a hash that cannot be had is not compared, and said so
    assert "model" in fit(calibration().fingerprint.__class__("a" * 64, *[""] * 5, 0.0, 20, 64), facts, 20)[1]


@pytest.mark.parametrize(
    ("name", "label"),
    [("m-Q4_K_M.gguf", "Q4_K_M"), ("x:8b-q4_K_M", "Q4_K_M"), ("org/Model-7B", ""), ("m.IQ2_XXS.gguf", "IQ2_XXS"),
     ("lm10m-f16.gguf", "F16"), ("Qwen3-8B-FP8", "FP8"), ("QwQ2-32B", "")],
)  # fmt: skip
def test_labels(name, label):
    assert quantization_of(name) == label


def test_collect_needs_a_server():
    with pytest.raises(SpecError):
        next(collect("nowhere", ["a"], Generation()))
    with pytest.raises(EngineError):
        next(collect("http://127.0.0.1:9", ["a"], Generation()))
