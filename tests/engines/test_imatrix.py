"""Importance matrices made from llama.cpp's own graph, and the types of single tensors."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import pytest

from quantvane.engines.gguf_file import read_weights, sha256_file
from quantvane.engines.imatrix import collect_imatrix, write_imatrix
from quantvane.engines.quantize import check_type, quantize_file, read_imatrix
from quantvane.errors import CorpusError, SpecError
from quantvane.run.cohort import make_cohort, make_imatrix

MODEL = str(files("quantvane") / "assets" / "lm10m-f16.gguf")
TEXT = (files("quantvane") / "assets" / "demo.txt").read_text("utf-8")


def test_sums_are_of_every_block_product_and_survive_the_file(tmp_path):
    found = collect_imatrix(MODEL, TEXT, context=128, chunks=2)
    assert len(found) == 70  # seven products in each of ten blocks
    assert {count for _, count in found.values()} == {256}
    assert all((total >= 0).all() and total.any() for total, _ in found.values())
    q, k = found["blk.0.attn_q.weight"][0], found["blk.0.attn_k.weight"][0]
    assert np.array_equal(q, k)  # they read the same input
    write_imatrix(tmp_path / "m.gguf", found, "demo.txt", 128)
    read = read_imatrix(str(tmp_path / "m.gguf"))
    assert np.allclose(read["blk.3.ffn_down.weight"], found["blk.3.ffn_down.weight"][0] / 256, rtol=1e-6)


def test_the_first_products_input_is_the_normed_embedding():
    """What block 0's attention reads can be computed from the file alone."""
    from gguf import GGUFReader

    tensors = {t.name: t.data for t in GGUFReader(MODEL).tensors}
    found = collect_imatrix(MODEL, TEXT, context=64, chunks=1)["blk.0.attn_q.weight"][0]
    from quantvane.engines.llamacpp import open_llamacpp

    engine = open_llamacpp(MODEL, {}, 64)
    ids = engine.tokenize(TEXT, add_bos=engine.vocabulary.add_bos)[:64].copy()
    if engine.vocabulary.add_bos:
        ids[0] = engine.vocabulary.bos
    engine.close()
    x = np.asarray(tensors["token_embd.weight"], np.float64)[ids]
    normed = x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-5) * np.asarray(tensors["blk.0.attn_norm.weight"])
    assert np.allclose(found, (normed**2).sum(0), rtol=1e-3)


def test_it_changes_the_quant_and_is_made_once(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(TEXT[:20000], "utf-8")
    matrix = make_imatrix(MODEL, str(text), tmp_path / "m.gguf", context=128, chunks=4)
    before = matrix.stat().st_mtime_ns
    make_imatrix(MODEL, str(text), tmp_path / "m.gguf")
    assert matrix.stat().st_mtime_ns == before
    (plain,) = make_cohort(MODEL, ["Q4_K_M"], tmp_path / "c")
    (weighted,) = make_cohort(MODEL, ["Q4_K_M"], tmp_path / "c", str(matrix))
    assert plain["sha256"] != weighted["sha256"]
    assert plain["file_bytes"] == weighted["file_bytes"]


def test_too_little_text_is_refused():
    with pytest.raises(CorpusError):
        collect_imatrix(MODEL, "a few words", context=128)


def test_tensors_get_the_types_they_were_named_for(tmp_path):
    quantize_file(MODEL, tmp_path / "m.gguf", "q8_0+ffn_down=q4_0+blk.3.attn_q=Q5_1+output=Q6_K")
    from gguf import GGUFReader

    types = {t.name: t.tensor_type.name for t in GGUFReader(str(tmp_path / "m.gguf")).tensors}
    assert {v for k, v in types.items() if k.endswith("ffn_down.weight")} == {"Q4_0"}
    assert types["blk.3.attn_q.weight"] == "Q5_1"
    assert types["blk.4.attn_q.weight"] == "Q8_0"
    assert types["output.weight"] == "Q6_K"
    assert types["blk.0.attn_output.weight"] == "Q8_0"  # 'output' is that tensor, not every name that ends so
    quantize_file(MODEL, tmp_path / "plain.gguf", "Q8_0")
    assert read_weights(tmp_path / "m.gguf").bits_per_weight < read_weights(tmp_path / "plain.gguf").bits_per_weight
    assert sha256_file(tmp_path / "m.gguf") != sha256_file(tmp_path / "plain.gguf")


BAD = ["Q8_0+ffn_down", "Q8_0+ffn_down=Q9", "Q8_0+a b=Q4_0", "F16+output=Q8_0", "Q9+output=Q8_0"]


@pytest.mark.parametrize("text", BAD)
def test_types_that_cannot_be_read_are_refused(text):
    with pytest.raises(SpecError):
        check_type(text, False)
    assert check_type("q8_0+Output.weight=q4_0".lower(), False) == "Q8_0+output=Q4_0"
