"""The transformers engine against the plain model, on a tiny random Llama and on the shared models."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from quantvane.engines.base import Engine
from quantvane.engines.gguf_file import read_weights
from quantvane.engines.hf import HfEngine, open_hf
from quantvane.engines.hf_head import Head, candidates, recognise
from quantvane.errors import CapabilityError, DataError, EngineError, ModelFileError, SpecError
from support_hf import TEXT, make_tiny, window


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def engine(tiny: Path) -> HfEngine:
    return open_hf(str(tiny), {"batch_tokens": "40"})


def plain_logits(directory: Path, tokens: np.ndarray) -> np.ndarray:
    """What the library itself gives for one sequence."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(directory)).float().eval()
    with torch.no_grad():
        return model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0].numpy()


def test_is_an_engine(engine: HfEngine) -> None:
    assert isinstance(engine, Engine)
    assert engine.info.capabilities == {"logits", "hidden", "generate", "gradients"}
    assert engine.info.settings["dtype"] == "float32"
    assert "transformers" in engine.info.build
    assert "torch" in engine.info.build


def test_logits_are_the_models_own_in_order(engine: HfEngine, tiny: Path) -> None:
    rng = np.random.default_rng(1)
    # lengths that batch together (16+16 in 40 tokens), then ones that do not; one window scores nothing
    windows = [
        window(rng.integers(0, 300, n), rng.random(n) < 0.6, i) for i, n in enumerate([16, 16, 16, 7, 50])
    ]
    windows.append(window(rng.integers(0, 300, 9), np.zeros(9, bool), 5))
    got = np.concatenate(list(engine.logits(windows)))
    want = np.concatenate([plain_logits(tiny, w.tokens)[w.scored] for w in windows])
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * np.abs(want).max())


def test_company_does_not_matter(engine: HfEngine) -> None:
    rng = np.random.default_rng(2)
    windows = [window(rng.integers(0, 300, 20), np.ones(20, bool), i) for i in range(4)]
    together = np.concatenate(list(engine.logits(windows)))
    alone = np.concatenate([block for w in windows for block in engine.logits([w])])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)


def test_head_applied_to_hidden_gives_logits(engine: HfEngine) -> None:
    windows = [window(np.arange(30) % 300, np.ones(30, bool), 0)]
    weight, bias, scale, softcap = engine.head()
    assert bias is None
    assert softcap is None
    states = np.concatenate(list(engine.hidden(windows)))
    assert states.shape == (29, 64)
    twin = scale * (states.astype(np.float64) @ weight.astype(np.float64).T)
    np.testing.assert_allclose(np.concatenate(list(engine.logits(windows))), twin, atol=1e-5)


def test_chunked_head_equals_unchunked() -> None:
    gen = torch.Generator().manual_seed(3)
    head = Head(torch.randn(50, 8, generator=gen), torch.randn(50, generator=gen), 0.5, 3.0)
    states = torch.randn(23, 8, generator=gen)
    blocks = list(head.blocks(states, block_bytes=5 * 50 * 4))
    assert [len(block) for block in blocks] == [5, 5, 5, 5, 3]
    whole = head.apply(states).numpy()
    np.testing.assert_allclose(np.concatenate(blocks), whole, atol=1e-6)
    twin = 0.5 * (states.double() @ head.weight.double().T + head.bias.double())
    np.testing.assert_allclose(whole, (3.0 * torch.tanh(twin / 3.0)).numpy(), atol=1e-5)
    assert [len(block) for block in head.blocks(states, block_bytes=1)] == [1] * 23


def test_half_precision_keeps_a_float32_head(tiny: Path) -> None:
    half = open_hf(str(tiny), {"dtype": "bfloat16"})
    windows = [window(np.arange(40), np.ones(40, bool), 0)]
    got = np.concatenate(list(half.logits(windows)))
    # a logit rounded to bfloat16 has 16 low bits of zero; those of a float32 head have not
    assert np.count_nonzero(got.view(np.uint32) & 0xFFFF) > 0.9 * got.size
    assert got.shape == (39, 300)


@pytest.mark.parametrize("architecture", ["gemma2", "granite", "cohere", "phi", "gpt2"])
def test_heads_of_other_architectures(tmp_path: Path, architecture: str) -> None:
    place = make_tiny(tmp_path, architecture)
    tokens = np.arange(12)
    if architecture == "gemma2":  # has no fused attention, and nothing is swapped silently
        with pytest.raises(SpecError, match="fused"):
            open_hf(str(place), {})
    opened = open_hf(str(place), {"attn": "eager"})
    got = np.concatenate(list(opened.logits([window(tokens, np.ones(12, bool), 0)])))
    want = plain_logits(place, tokens)[:11]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
    _, bias, scale, softcap = opened.head()
    assert (scale, softcap) == {"gemma2": (1.0, 2.0), "granite": (1 / 7.0, None), "cohere": (0.25, None)}.get(
        architecture, (1.0, None)
    )
    assert (bias is not None) == (architecture == "phi")


def test_candidates_read_both_ways() -> None:
    class Config:
        logits_scaling = 4.0
        final_logit_softcapping = None

    assert candidates(Config()) == [(0.25, None), (4.0, None), (1.0, None)]


def test_unknown_head_is_refused_with_the_difference(engine: HfEngine) -> None:
    states = torch.randn(3, 64)
    own = engine.model.lm_head(states).detach() ** 2
    with pytest.raises(EngineError, match="cannot be computed apart") as caught:
        recognise(engine.model, states, own)
    assert "scale 1" in caught.value.got


def test_generate_is_greedy(engine: HfEngine) -> None:
    prompt = engine.tokenize("the quick")
    made = engine.generate(prompt, 12)
    assert made.dtype == np.int32
    fed = prompt
    for token in made:  # the twin: no cache, the whole text every time
        row = np.concatenate(
            list(engine.logits([window(np.append(fed, 0), np.arange(len(fed) + 1) == len(fed) - 1, 0)]))
        )
        assert int(row[0].argmax()) == token
        fed = np.append(fed, token)
    assert len(made) == 12 or made[-1] == engine.vocabulary.eos
    assert (
        engine.generate(prompt, 12, stop=[int(made[1])]).tolist()
        == made[: made.tolist().index(made[1]) + 1].tolist()
    )
    with pytest.raises(DataError):
        engine.generate(np.array([], np.int32), 3)


def test_tokens_and_bytes(engine: HfEngine) -> None:
    text = "the quick brown fox — ünïcödé 🙂\n\tjumps"
    ids = engine.tokenize(text)
    assert b"".join(engine.token_bytes(int(i)) for i in ids) == text.encode()
    assert engine.vocabulary.bos == 0
    assert engine.vocabulary.add_bos
    assert engine.tokenize(text, add_bos=True).tolist() == [0, *ids.tolist()]
    marked = engine.tokenize("a<|mark|>b", special=True)
    mark = engine.vocabulary.pieces.index("<|mark|>")
    assert mark in marked
    assert engine.token_bytes(mark) == b"<|mark|>"
    literal = engine.tokenize("a<|mark|>b")
    assert mark not in literal
    assert b"".join(engine.token_bytes(int(i)) for i in literal) == b"a<|mark|>b"
    with pytest.raises(DataError):
        engine.token_bytes(300)


def test_padding_rows_have_no_piece(engine: HfEngine) -> None:
    assert len(engine.vocabulary) == 300
    assert engine.vocabulary.pieces[-1] is None
    assert engine.token_bytes(299) == b""


def test_weights_are_read_from_the_headers(engine: HfEngine, tiny: Path) -> None:
    weights = engine.info.weights
    held = sum(p.numel() for p in engine.model.parameters())
    assert weights.parameters == held
    assert weights.types == {"F32": 1.0}
    assert weights.bits_per_weight == 32
    assert weights.file_bytes == (tiny / "model.safetensors").stat().st_size
    assert engine.info.fingerprint == hashlib.sha256((tiny / "model.safetensors").read_bytes()).hexdigest()


def test_shards_and_stored_twice_tied_head(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    place = make_tiny(tmp_path, tie=True)
    tensors = load_file(place / "model.safetensors")
    once = open_hf(str(place), {}).info.weights
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({n: tensors[n].to(torch.bfloat16) for n in part}, place / file, metadata={"format": "pt"})
    (place / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {n: f for f, part in parts.items() for n in part}}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    info = open_hf(str(place), {}).info
    assert info.weights.parameters == once.parameters
    assert info.weights.types == {"BF16": 1.0}
    assert info.weights.bits_per_weight == 16
    digests = [hashlib.sha256((place / f).read_bytes()).hexdigest() for f in sorted(parts)]
    assert info.fingerprint == hashlib.sha256("\n".join(digests).encode()).hexdigest()
    (place / "b.safetensors").unlink()
    with pytest.raises(ModelFileError, match="incomplete"):
        open_hf(str(place), {})
    index["weight_map"][names[0]] = "../a.safetensors"
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelFileError, match="damaged"):
        open_hf(str(place), {})


class TestBadDirectories:
    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(ModelFileError, match="no model directory"):
            open_hf(str(tmp_path / "none"), {})
        with pytest.raises(ModelFileError, match=r"config\.json"):
            open_hf(str(tmp_path), {})

    def test_pickle_is_refused(self, tmp_path: Path) -> None:
        place = make_tiny(tmp_path)
        (place / "model.safetensors").rename(place / "pytorch_model.bin")
        with pytest.raises(ModelFileError) as caught:
            open_hf(str(place), {})
        assert "run code" in caught.value.got
        assert "convert" in caught.value.remedy

    def test_truncated_and_garbage(self, tmp_path: Path) -> None:
        place = make_tiny(tmp_path)
        file = place / "model.safetensors"
        data = file.read_bytes()
        file.write_bytes(data[:-5])
        with pytest.raises(ModelFileError, match="truncated"):
            open_hf(str(place), {})
        for bad in (
            b"",
            b"version https://git-lfs.github.com/spec/v1\n",
            (2**60).to_bytes(8, "little") + data[8:],
        ):
            file.write_bytes(bad)
            with pytest.raises(ModelFileError, match="not a safetensors file"):
                open_hf(str(place), {})

    def test_missing_weights_are_not_made_up(self, tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        place = make_tiny(tmp_path)
        tensors = load_file(place / "model.safetensors")
        del tensors["model.layers.1.mlp.up_proj.weight"]
        save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelFileError, match="lacks weights") as caught:
            open_hf(str(place), {})
        assert "layers.1.mlp.up_proj" in caught.value.expected

    def test_code_of_its_own_is_not_run(self, tmp_path: Path) -> None:
        place = make_tiny(tmp_path)
        config = json.loads((place / "config.json").read_text())
        config |= {"model_type": "homemade", "auto_map": {"AutoConfig": "c.C", "AutoModelForCausalLM": "m.M"}}
        (place / "config.json").write_text(json.dumps(config))
        (place / "c.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
        with pytest.raises(ModelFileError, match="cannot load"):
            open_hf(str(place), {})
        assert not (tmp_path / "ran").exists()

    def test_no_tokenizer(self, tmp_path: Path) -> None:
        place = make_tiny(tmp_path)
        for file in place.glob("tokenizer*"):
            file.unlink()
        with pytest.raises(ModelFileError, match="tokenizer"):
            open_hf(str(place), {})

    @pytest.mark.parametrize(
        "settings", [{"dtype": "int4"}, {"attn": "magic"}, {"speed": 1}, {"device": "warp"}]
    )
    def test_settings(self, tiny: Path, settings: dict[str, object]) -> None:
        with pytest.raises(SpecError):
            open_hf(str(tiny), settings)


def test_bad_tokens_and_nan(tiny: Path) -> None:
    opened = open_hf(str(tiny), {})
    with pytest.raises(DataError, match="outside the vocabulary"):
        list(opened.logits([window(np.array([1, 300]), np.array([True, False]), 0)]))
    with torch.no_grad():
        opened.model.model.norm.weight[0] = float("nan")
    with pytest.raises(EngineError, match="NaN"):
        list(opened.logits([window(np.array([1, 2]), np.array([True, False]), 0)]))


def test_without_torch_the_module_imports_and_says_what_to_install(tiny: Path) -> None:
    code = f"""
import sys
sys.modules["torch"] = sys.modules["transformers"] = None
from quantvane.engines.hf import open_hf
from quantvane.errors import CapabilityError
try:
    open_hf({str(tiny)!r}, {{}})
except CapabilityError as problem:
    print(problem.remedy)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "quantvane[hf]" in done.stdout


def test_gradients_reach_every_parameter(tiny: Path) -> None:
    opened = open_hf(str(tiny), {})
    opened.model(torch.arange(9)[None]).logits.logsumexp(-1).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in opened.model.parameters())


def test_bos_asked_of_a_tokenizer_without(tmp_path: Path) -> None:
    opened = open_hf(str(make_tiny(tmp_path, bos=False)), {})
    assert (opened.vocabulary.bos, opened.vocabulary.add_bos) == (-1, False)
    with pytest.raises(CapabilityError):
        opened.tokenize(TEXT, add_bos=True)


@pytest.mark.parametrize("name", ["lm10m", "stories260K", "babyllama"])
def test_shared_models(shared: Path, name: str) -> None:
    place = shared / "models" / name / "hf"
    opened = open_hf(str(place), {})
    text = (shared / "text" / "books-a.txt").read_text()[:1500]
    ids = opened.tokenize(text)[:100]
    got = np.concatenate(list(opened.logits([window(ids, np.ones(100, bool), 0)])))
    want = plain_logits(place, ids)[:-1]
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * np.abs(want).max())
    gguf = next((shared / "models" / name).glob("*.gguf"))
    assert opened.info.weights.parameters == read_weights(gguf).parameters
    assert opened.info.weights.types == {"BF16" if name == "lm10m" else "F32": 1.0}


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("name", ["lm10m", "stories260K", "babyllama"])
def test_tokens_equal_llama_cpps(shared: Path, name: str, special: bool) -> None:
    """Equal on everything for the byte-level tokenizer.

    The two SentencePiece ones strip and collapse blanks by their own normalizer, which llama.cpp skips; and
    llama.cpp puts a blank before the text after a special token. Those two cases are left out for them.
    """
    from quantvane.engines.llamacpp import open_llamacpp

    other = open_llamacpp(str(next((shared / "models" / name).glob("*.gguf"))), {})
    opened = open_hf(str(shared / "models" / name / "hf"), {})
    rng = np.random.default_rng(5)
    cases = [(shared / "text" / file).read_text()[:60_000] for file in ("books-a.txt", "wikitext-2-test.txt")]
    cases += ["", " ", "\n", "\n\n a", "a  b  ", "it's  don't 123456 ...---", "é日本語🙂 x\t\ty\r\nz"]
    cases += ["".join(rng.choice(list("ab c\n\té🙂0.<s>/|"), size=rng.integers(1, 30))) for _ in range(500)]
    cases += ["hi </s><|endoftext|> a <s>b"]
    if name != "lm10m":
        cases = [re.sub(" {2,}", " ", case.strip(" ")) for case in cases]
        cases = [case for case in cases if case and not (special and re.search("<s>|</s>|<unk>", case))]
    for case in cases:
        assert (
            opened.tokenize(case, special=special).tolist() == other.tokenize(case, special=special).tolist()
        )
    for token in range(len(opened.vocabulary)):
        assert opened.token_bytes(token) == other.token_bytes(token)
    assert opened.vocabulary.pieces == other.vocabulary.pieces
    assert (opened.vocabulary.bos, opened.vocabulary.eos) == (other.vocabulary.bos, other.vocabulary.eos)
