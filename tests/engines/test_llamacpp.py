"""The llama.cpp engine on the bundled model."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from quantvane.corpora.text import WindowRule, peer_windows, read_corpus, sliding_windows
from quantvane.engines.gguf_file import read_weights
from quantvane.engines.llamacpp import open_llamacpp
from quantvane.engines.quantize import quantize_file, read_imatrix
from quantvane.errors import DataError, EngineError, ModelFileError, SpecError
from support_cli import document, quantvane

MODEL = str(files("quantvane") / "assets" / "lm10m-f16.gguf")
TEXT = str(files("quantvane") / "assets" / "demo.txt")


@pytest.fixture(scope="module")
def engine():
    engine = open_llamacpp(MODEL, {}, 64)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def windows(engine):
    return peer_windows(engine, read_corpus(TEXT), WindowRule(64, 64, 12), 0)


def _logits(engine, windows):
    return np.concatenate([block.copy() for block in engine.logits(windows)])


def test_what_it_says_of_itself(engine):
    info = engine.info
    assert info.engine == "llamacpp"
    assert info.capabilities >= {"logits", "hidden"}
    assert info.settings["cache_type_k"] == "f32"
    assert info.settings["flash_attn"] == "off"
    assert info.weights.parameters == 9_966_848
    assert info.weights.bits_per_weight == pytest.approx(16.009, abs=1e-3)
    assert len(engine.vocabulary) == 4096
    assert engine.vocabulary.add_bos


def test_tokens_spell_the_text(engine):
    text = 'He said, "it\'s 12 o\'clock".\r\n\ttabs, é and 漢字 <|endoftext|>'
    ids = engine.tokenize(text)
    assert b"".join(engine.token_bytes(int(i)) for i in ids) == text.encode()
    assert engine.vocabulary.bos not in ids
    assert engine.tokenize("<|endoftext|>", special=True).tolist() == [engine.vocabulary.bos]
    assert engine.tokenize("a", add_bos=True)[0] == engine.vocabulary.bos


def test_windows_in_one_batch_equal_windows_alone(engine, windows):
    together = _logits(engine, windows)
    alone = np.concatenate([_logits(engine, [w]) for w in windows])
    assert together.shape == (12 * 31, 4096)
    np.testing.assert_array_equal(together, alone)


def test_a_window_longer_than_the_batch_is_cut_and_joined(engine, windows):
    long = sliding_windows(engine, read_corpus(TEXT), WindowRule(200, 100, 2), 0)
    whole = open_llamacpp(MODEL, {"n_batch": 512}, 200)
    cut = open_llamacpp(MODEL, {"n_batch": 64}, 200)
    a, b = _logits(whole, long), _logits(cut, long)
    whole.close()
    cut.close()
    assert a.shape == b.shape == (300, 4096)
    np.testing.assert_allclose(a, b, atol=0.2)  # another batch shape rounds otherwise, no more
    assert (a.argmax(1) == b.argmax(1)).mean() > 0.99
    with pytest.raises(EngineError, match="longer than the context"):
        next(engine.logits(long))


def test_sliding_scores_every_token_once(engine):
    corpus = read_corpus(TEXT)
    windows = sliding_windows(engine, corpus, WindowRule(128, 64, None), 0)
    tokens = engine.tokenize(corpus.raw, add_bos=True)
    scored = np.concatenate([w.targets[w.scored] for w in windows])
    np.testing.assert_array_equal(scored, tokens[1:])
    for window in windows[1:]:
        assert np.flatnonzero(window.scored)[0] >= 63 or len(window.tokens) < 128


@pytest.mark.parametrize(
    ("setting", "value"), [("n_thread", "2"), ("n_threads", "0"), ("cache_type_k", "f64"), ("flash_attn", "maybe")]
)
def test_settings_are_checked(setting, value):
    with pytest.raises(SpecError) as caught:
        open_llamacpp(MODEL, {setting: value}, 64)
    assert caught.value.expected


def _damaged(tmp_path, data: bytes) -> str:
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize("keep", [0, 3, 20, 24, 1000, 40_000, 120_000, 10_000_000, 20_077_279])
def test_a_truncated_file_is_one_clear_error(tmp_path, keep):
    with pytest.raises(ModelFileError) as caught:
        open_llamacpp(_damaged(tmp_path, Path(MODEL).read_bytes()[:keep]), {}, 64)
    assert caught.value.exit_status == 2
    assert caught.value.remedy


def test_flipped_bytes_in_the_header_never_hang_or_pass_unseen(tmp_path):
    """Damage either raises an error of ours or leaves a table that fits the file."""
    whole = bytearray(Path(MODEL).read_bytes())
    rng = np.random.default_rng(3)
    for at in rng.integers(4, 100_000, 150):
        data = bytearray(whole[:200_000])
        data[at] ^= int(rng.integers(1, 256))
        path = _damaged(tmp_path, bytes(data) + b"\0" * 10)
        with pytest.raises(ModelFileError):
            read_weights(path)  # cut at 200 kB, so it is at least truncated


def test_a_damaged_model_does_not_take_the_command_with_it(tmp_path):
    """The architecture's name is gone: whatever the library does with that, we answer."""
    data = Path(MODEL).read_bytes().replace(b"llama.block_count", b"llama.block_caunt")
    bad = _damaged(tmp_path, data)
    run = quantvane("compare", MODEL, bad, "--text", TEXT, "--ctx", 64, "--out", tmp_path / "r", "--json")
    assert run.returncode in (2, 3)
    error = document(run)["error"]
    assert "bad.gguf" in error["message"] or "bad" in error["message"]
    assert error["got"]
    assert not (tmp_path / "r").exists()


def test_quantizing_leaves_nothing_behind_when_it_fails(tmp_path):
    with pytest.raises(SpecError):
        quantize_file(MODEL, tmp_path / "q.gguf", "Q5_Z")
    with pytest.raises(SpecError, match="importance matrix"):
        quantize_file(MODEL, tmp_path / "q.gguf", "IQ2_XS")
    with pytest.raises(DataError):
        quantize_file(MODEL, tmp_path / "q.gguf", "Q4_K_M", str(tmp_path / "none.dat"))
    assert list(tmp_path.iterdir()) == []


def test_an_importance_matrix_changes_the_quant(tmp_path):
    """Both of llama.cpp's formats, written here by hand, give the same file; and not the plain one."""
    import struct

    from gguf import GGUFWriter

    rng = np.random.default_rng(0)
    entries = {f"blk.{i}.ffn_up.weight": rng.gamma(0.3, size=256).astype(np.float32) * 8 for i in range(10)}
    legacy = tmp_path / "i.dat"
    with legacy.open("wb") as file:
        file.write(struct.pack("<i", len(entries)))
        for name, values in entries.items():
            file.write(struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 8, len(values)))
            file.write(values.tobytes())
    writer = GGUFWriter(tmp_path / "i.gguf", "imatrix")
    for name, values in entries.items():
        writer.add_tensor(name + ".in_sum2", values)
        writer.add_tensor(name + ".counts", np.array([8], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = [read_imatrix(str(legacy)), read_imatrix(str(tmp_path / "i.gguf"))]
    for name, values in entries.items():
        np.testing.assert_array_equal(read[0][name], values / 8)
        np.testing.assert_array_equal(read[1][name], values / 8)
    made = []
    for number, matrix in enumerate((None, str(legacy), str(tmp_path / "i.gguf"))):
        quantize_file(MODEL, tmp_path / f"q{number}.gguf", "Q4_K_S", matrix)
        made.append((tmp_path / f"q{number}.gguf").read_bytes())
    assert made[1] == made[2]
    assert made[0] != made[1]
    legacy.write_bytes(legacy.read_bytes()[:100])
    with pytest.raises(DataError, match="no importance matrix"):
        read_imatrix(str(legacy))
