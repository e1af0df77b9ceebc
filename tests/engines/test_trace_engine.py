"""Hidden states times head against the engine's own logits, in llama.cpp and transformers."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from quantvane.corpora.text import Corpus, WindowRule, peer_windows, sliding_windows
from quantvane.engines.gguf_head import read_gguf_head
from quantvane.engines.llamacpp import open_llamacpp
from quantvane.engines.output_head import HiddenEngine, OutputHead, output_heads
from quantvane.errors import CapabilityError
from quantvane.run.fidelity import Fidelity, Unfaithful, prove_head, row_kld
from quantvane.spec import CorpusId

TEXT = "It was a dark night, and the old man at the door would not say what he had seen. " * 12
MODELS = {
    "F16": "models/lm10m/lm10m-f16.gguf",
    "F16 tied": "models/stories260K/stories260K-f16.gguf",
    "Q6_K": "golden/kld-lm10m-ctx128/lm10m-Q4_K_M.gguf",
    "Q8_0 tied": "golden/kld-stories260K-ctx256/stories260K-Q4_0.gguf",
}
BUNDLED = str(files("quantvane") / "assets" / "lm10m-f16.gguf")


def _windows(engine, cut=peer_windows):
    return cut(engine, Corpus(CorpusId("t", ""), (TEXT,), TEXT), WindowRule(32, 16, 4), 0)


def _rows(blocks) -> np.ndarray:
    return np.concatenate([block.copy() for block in blocks])


@pytest.fixture(params=MODELS)
def model(request, shared: Path):
    engine = open_llamacpp(str(shared / MODELS[request.param]), {"n_threads": 2}, 32)
    yield request.param, engine
    engine.close()


def test_the_head_gives_the_logits_back(model) -> None:
    """The head's type in the name decides how h is rounded; without that it is another model's output."""
    name, engine = model
    windows = _windows(engine)
    own, states = _rows(engine.logits(windows)), _rows(engine.hidden(windows))
    head, *others = engine.output_heads()
    assert head.tensor_type == name.split()[0]
    ours = head.logits(head.round(states))
    assert ours.shape == own.shape == (len(windows) * 15, len(engine.vocabulary))
    assert np.abs(ours - own).max() < 2e-6 * np.abs(own).max()
    assert row_kld(own, ours).max() < 1e-9
    unrounded = row_kld(own, others[0].logits(states)).mean()
    assert unrounded > (1e-5 if name.startswith("Q") else 3e-9)


def test_logits_and_hidden_are_those_of_a_plain_pass() -> None:
    engine = open_llamacpp(BUNDLED, {"n_threads": 2, "n_batch": 48}, 32)  # more windows than a batch holds
    assert isinstance(engine, HiddenEngine)
    for cut in (peer_windows, sliding_windows):
        windows = _windows(engine, cut)
        pairs = [(a.copy(), b.copy()) for a, b in engine.logits_and_hidden(windows)]
        np.testing.assert_allclose(
            np.concatenate([a for a, _ in pairs]), _rows(engine.logits(windows)), rtol=1e-5, atol=1e-4
        )
        np.testing.assert_array_equal(np.concatenate([b for _, b in pairs]), _rows(engine.hidden(windows)))
    weight, bias, scale, softcap = engine.head()
    assert weight.shape == (4096, 256)
    assert (bias, scale, softcap) == (None, 1.0, None)
    engine.close()


def test_a_window_cut_by_the_batch_gives_all_its_rows() -> None:
    engine = open_llamacpp(BUNDLED, {"n_threads": 2, "n_batch": 8}, 32)
    windows = _windows(engine)
    head = engine.output_heads()[0]
    own, states = _rows(engine.logits(windows)), _rows(engine.hidden(windows))
    assert row_kld(own, head.logits(head.round(states))).max() < 1e-9
    engine.close()


def _write_head(path: Path, architecture: str, *, extra=(), bias=None, rows: int = 5, kind=None) -> Path:
    from gguf import GGUFWriter

    writer = GGUFWriter(str(path), architecture)
    for key, value in extra:
        writer.add_float32(f"{architecture}.{key}", value)
    weight = np.arange(rows * 32, dtype=np.float32).reshape(rows, 32)
    if kind is not None:
        from gguf.quants import quantize

        writer.add_tensor("token_embd.weight", quantize(weight, kind), raw_dtype=kind)
    else:
        writer.add_tensor("token_embd.weight", weight)
    if bias is not None:
        writer.add_tensor("output.bias", bias)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("architecture", "extra", "scale", "softcap"),
    [
        ("llama", [], 1.0, None),
        ("command-r", [("logit_scale", 0.25)], 0.25, None),
        ("granite", [("logit_scale", 8.0)], 0.125, None),
        ("minicpm", [], 32 / 256, None),
        ("grok", [], 3**-0.5, None),
        ("gemma2", [("final_logit_softcapping", 30.0)], 1.0, 30.0),
        ("gemma3", [("final_logit_softcapping", 0.0)], 1.0, None),
    ],
)
def test_scale_and_cap_as_each_architecture_means_them(tmp_path, architecture, extra, scale, softcap) -> None:
    bias = np.arange(5, dtype=np.float32)
    head = read_gguf_head(str(_write_head(tmp_path / "m.gguf", architecture, extra=extra, bias=bias)), 5)
    assert head.scale == pytest.approx(scale, rel=1e-7)
    assert head.softcap == softcap
    np.testing.assert_array_equal(head.bias, bias)
    np.testing.assert_array_equal(head.weight, np.arange(160, dtype=np.float32).reshape(5, 32))


def test_heads_that_cannot_be_used_say_why(tmp_path) -> None:
    from gguf import GGMLQuantizationType

    with pytest.raises(CapabilityError, match="output head") as caught:
        read_gguf_head(str(_write_head(tmp_path / "a.gguf", "llama")), 6)
    assert "6 rows" in caught.value.expected
    with pytest.raises(CapabilityError) as caught:
        read_gguf_head(str(_write_head(tmp_path / "b.gguf", "llama", kind=GGMLQuantizationType.Q4_1)), 5)
    assert "Q4_1" in caught.value.got


def test_the_formula() -> None:
    weight, hidden = np.array([[1.0, 2.0], [3.0, -4.0]], np.float32), np.array([[1.0, 0.5]], np.float32)
    head = OutputHead(weight, np.array([1.0, 0.0], np.float32), 2.0, 5.0)
    expected = 5 * np.tanh(2 * (weight @ hidden[0] + [1, 0]) / 5)
    np.testing.assert_allclose(head.logits(hidden)[0], expected, rtol=1e-6)


def test_row_kld_is_exact_where_the_naive_sum_is_noise() -> None:
    rng = np.random.default_rng(0)
    p = rng.normal(size=(3, 50)).astype(np.float32)
    assert row_kld(p, p).tolist() == [0, 0, 0]
    mpmath = pytest.importorskip("mpmath")
    q = p.copy()
    q[:, 0] += np.float32(1e-6)
    mpmath.mp.dps = 50
    for got, a, b in zip(row_kld(p, q), p, q, strict=True):
        ea, eb = [mpmath.exp(float(v)) for v in a], [mpmath.exp(float(v)) for v in b]
        za, zb = sum(ea), sum(eb)
        exact = sum(x / za * (mpmath.log(x / za) - mpmath.log(y / zb)) for x, y in zip(ea, eb, strict=True))
        assert got == pytest.approx(float(exact), rel=1e-3)
    p[0, 1] = -np.inf
    assert row_kld(p, p)[0] == 0


def test_limits() -> None:
    rng = np.random.default_rng(0)
    own = rng.normal(size=(8, 40)).astype(np.float32)
    near, far = own + np.float32(1e-6) * (np.arange(40) == 3), own + np.float32(1e-3) * (np.arange(40) == 3)
    figures = Fidelity()
    figures.add(near, own)
    assert figures.rows == 8
    assert 0 < figures.kld_mean <= figures.kld_max < 1e-12
    with pytest.raises(Unfaithful, match="limit"):
        Fidelity().add(far, own)
    with pytest.raises(Unfaithful):
        Fidelity().add(own * np.float32(np.nan), own)
    assert Fidelity.from_dict(figures.to_dict()) == figures


def test_transformers_too(tmp_path) -> None:
    pytest.importorskip("torch")
    from quantvane.engines.hf import open_hf
    from support_hf import make_tiny

    for architecture in ("gemma2", "granite", "phi"):  # soft cap, scale, bias
        engine = open_hf(str(make_tiny(tmp_path, architecture)), {"n_threads": 2, "attn": "eager"})
        head, figures = prove_head(engine, _windows(engine)[:2])
        assert head.rounding == "f32"
        assert figures.rows == 30
        assert figures.kld_max < 1e-11
        assert output_heads(engine)[0].scale == head.scale
