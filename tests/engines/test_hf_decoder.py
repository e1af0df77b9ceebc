"""The decoder with caches gives what computing everything again gives."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed (quantvane[hf])")
pytest.importorskip("transformers", reason="transformers is not installed (quantvane[hf])")

from quantvane.engines.decoding import Feed, RecomputingDecoder, open_decoder
from quantvane.engines.hf import open_hf
from quantvane.engines.hf_decoder import HfDecoder
from quantvane.tasks.generation import generate
from quantvane.tasks.greedy import Request
from support_hf import VOCAB, make_tiny


@pytest.fixture(scope="module", params=["llama", "gemma2", "gpt2"])
def engine(request, tmp_path_factory):
    """gemma2 has a sliding window in every other layer, shorter than the sequences here: its cache cannot be cut."""
    folder = make_tiny(tmp_path_factory.mktemp("m"), request.param)
    settings = {"n_threads": "1"}
    if request.param == "gemma2":
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"sliding_window": 12}))
        settings["attn"] = "eager"
    found = open_hf(str(folder), settings)
    yield found
    found.close()


def test_any_order_of_feeding_and_cutting_gives_the_same_logits(engine):
    rng = np.random.default_rng(4)
    ours, slow = open_decoder(engine, 64, 3), RecomputingDecoder(engine, 64, 3)
    assert isinstance(ours, HfDecoder)
    held = [0, 0, 0]
    for _ in range(60):
        feeds = []
        for slot in rng.permutation(3)[: rng.integers(1, 4)]:
            if held[slot] > 40 or (held[slot] and rng.random() < 0.3):
                held[slot] = int(rng.integers(0, held[slot]))
                for decoder in (ours, slow):
                    decoder.drop(slot, held[slot])
            n = int(rng.integers(1, 9))
            tokens, rows = rng.integers(3, VOCAB - 20, n).astype(np.int32), int(rng.integers(0, n + 1))
            feeds.append(Feed(int(slot), held[slot], tokens, rows))
            held[slot] += n
        found, expected = ours.decode(feeds), slow.decode(feeds)
        assert found.shape == expected.shape == (sum(feed.rows for feed in feeds), VOCAB)
        np.testing.assert_allclose(found, expected, atol=2e-4)


def test_answers_and_replayed_answers_are_those_of_recomputing(engine):
    rng = np.random.default_rng(6)
    prompts = [rng.integers(3, VOCAB - 20, n).astype(np.int32) for n in (3, 5, 5, 9, 14)]
    plain, _ = generate(RecomputingDecoder(engine, 64, 2), [Request(p, 24) for p in prompts], engine.token_bytes)
    drafts = [a.tokens.copy() for a in plain]
    for draft in drafts:
        draft[len(draft) // 2] = 5
    requests = [Request(p, 24, (), d) for p, d in zip(prompts, drafts, strict=True)]
    decoder = engine.decoder(64, 2)
    for asked in ([Request(p, 24) for p in prompts], requests):
        found, _ = generate(decoder, asked, engine.token_bytes)
        assert [a.tokens.tolist() for a in found] == [a.tokens.tolist() for a in plain]
    assert engine.generate(prompts[0], 24).tolist() == plain[0].tokens.tolist()
    decoder.close()


def test_a_step_computes_only_its_own_tokens(engine, monkeypatch):
    read = []
    whole = engine.extend
    monkeypatch.setattr(engine, "extend", lambda t, c, r: (read.append(len(t)), whole(t, c, r))[1])
    request = Request(np.arange(3, 23, dtype=np.int32), 16)
    generate(engine.decoder(64, 1), [request], engine.token_bytes)
    assert read[0] == 21  # the prompt once more, for its cache
    assert set(read[1:]) == {1}
