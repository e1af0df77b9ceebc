"""Decoding several models at once gives the bits of decoding them in turn."""

from __future__ import annotations

from importlib.resources import files

import pytest

from quantvane.corpora.text import WindowRule, peer_windows, read_corpus
from quantvane.displacement import token_metrics
from quantvane.engines.fake import open_fake
from quantvane.engines.llamacpp import open_llamacpp
from quantvane.errors import EngineError
from quantvane.run.lockstep import measure_unit, units
from quantvane.run.pipeline import measure_units, workers_for

ASSETS = files("quantvane") / "assets"


def _measure(ref, cand, tokens):
    return token_metrics(ref, cand, tokens, backend="numpy")


def test_the_same_bits_from_real_models():
    model = str(ASSETS / "lm10m-f16.gguf")
    reference = open_llamacpp(model, {"n_threads": 2}, 64)
    candidates = [
        ("same", open_llamacpp(model, {"n_threads": 2}, 64)),
        ("flash", open_llamacpp(model, {"n_threads": 2, "flash_attn": "on"}, 64)),
        ("cache", open_llamacpp(model, {"n_threads": 2, "cache_type_k": "q8_0"}, 64)),
    ]
    todo = units(peer_windows(reference, read_corpus(str(ASSETS / "demo.txt")), WindowRule(64, 64, 24), 0), 512)
    assert len(todo) == 3
    assert workers_for(reference, [engine for _, engine in candidates], todo) == 2
    turn = [measure_unit(unit, reference, candidates, _measure) for unit in todo]
    once = list(measure_units(todo, reference, candidates, _measure, 2))
    assert [[b.to_pydict() for b in unit] for unit in once] == [[b.to_pydict() for b in unit] for unit in turn]
    assert max(once[0][0]["kld"].to_pylist()) == 0
    for _, engine in (("", reference), *candidates):
        engine.close()


def test_engines_that_cannot_share_go_in_turn():
    fake = open_fake("a", {})
    assert workers_for(fake, [fake], [[]]) == 1


@pytest.mark.parametrize("bad", ["reference", "candidate"])
def test_an_error_in_any_model_ends_the_run(bad):
    class Corpus:
        documents = ("abc" * 400,)

    good, broken = open_fake("a", {}), open_fake("b", {"nan_at": 5})
    todo = units(peer_windows(good, Corpus, WindowRule(64, 64, None), 0), 128)
    reference, candidate = (broken, good) if bad == "reference" else (good, broken)
    results = measure_units(todo, reference, [("x", good), ("c", candidate)], _measure, 3)
    with pytest.raises(EngineError, match="reference" if bad == "reference" else "'c'"):
        list(results)
