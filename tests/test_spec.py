"""Model specs and protocols."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantvane.errors import ProtocolMismatchError, SpecError
from quantvane.run.plan import candidate_names
from quantvane.spec import CorpusId, ModelSpec, Protocol, canonical_hash, same_protocol, slug

_NAME = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\x00"), min_size=1, max_size=20)


def test_the_examples_of_the_grammar():
    assert ModelSpec.parse("m-Q4_K_M.gguf") == ModelSpec("m-Q4_K_M.gguf")
    assert ModelSpec.parse("./hf-dir@hf?dtype=float32") == ModelSpec("./hf-dir", "hf", (("dtype", "float32"),))
    spec = ModelSpec.parse("m-f16.gguf?n_gpu_layers=0&cache_type_k=q8_0")
    assert spec.settings == (("n_gpu_layers", "0"), ("cache_type_k", "q8_0"))
    assert spec.stem == "m-f16"
    assert spec.name == "m-f16?n_gpu_layers=0&cache_type_k=q8_0"


@pytest.mark.parametrize(
    ("text", "path", "engine"),
    [
        ("http://user@host:8080/v1", "http://user@host:8080/v1", "host"),
        ("dir@1/model.gguf", "dir@1/model.gguf", ""),
        ("model%40home.gguf", "model@home.gguf", ""),
    ],
)
def test_at_signs(text, path, engine):
    spec = ModelSpec.parse(text)
    if "://" in text:
        assert spec.path == path
        assert spec.engine == ""
    else:
        assert (spec.path, spec.engine) == (path, engine)


@given(_NAME, st.sampled_from(["", "hf", "llamacpp"]), st.dictionaries(_NAME, _NAME, max_size=3))
def test_text_round_trips(path, engine, settings):
    spec = ModelSpec(path, engine, tuple(settings.items()))
    if "://" not in path:
        assert ModelSpec.parse(spec.text) == spec


@pytest.mark.parametrize("text", ["", "?a=1", "m.gguf?a", "m.gguf?=1", "m.gguf?a=1&a=2"])
def test_bad_specs_say_what_was_expected(text):
    with pytest.raises(SpecError) as caught:
        ModelSpec.parse(text)
    assert caught.value.expected
    assert caught.value.remedy


def test_defaults_go_under_what_was_given():
    spec = ModelSpec.parse("m.gguf?a=1").with_defaults({"a": "9", "b": "2"})
    assert spec.settings == (("a", "1"), ("b", "2"))


def test_candidate_names_are_unique():
    ref = ModelSpec.parse("m-f16.gguf")
    cands = [ModelSpec.parse(t) for t in ("a/m-Q4.gguf", "b/m-Q4.gguf", "m-f16.gguf?n_ubatch=32", "m-Q8.gguf")]
    names = candidate_names(ref, cands)
    assert names == ("m-Q4", "m-Q4 #2", "m-f16?n_ubatch=32", "m-Q8")
    assert len({slug(name) for name in names}) == len(names)


def _protocol(**changes):
    usual = Protocol(
        name="llama-perplexity", corpora=(CorpusId("a.txt", "00"),), tokenizer="t", context=512, stride=512,
        chunks=None, bos="replace-first", scored="second half",
    )  # fmt: skip
    return replace(usual, **changes)


def test_protocols_differ_by_hash_and_are_refused_by_field():
    a, b = _protocol(), _protocol(context=256, chunks=8)
    assert a.hash == _protocol().hash
    assert a.hash != b.hash
    assert Protocol.from_dict(a.to_dict()) == a
    same_protocol(a, _protocol(), "two runs")
    with pytest.raises(ProtocolMismatchError) as caught:
        same_protocol(a, b, "two runs")
    assert "context = 512" in caught.value.expected
    assert "chunks = 8" in caught.value.got


def test_the_canonical_hash_ignores_key_order():
    assert canonical_hash({"a": 1, "b": [2]}) == canonical_hash({"b": [2], "a": 1})
    with pytest.raises(ValueError, match="Out of range"):
        canonical_hash(float("nan"))
