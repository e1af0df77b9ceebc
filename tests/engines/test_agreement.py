"""Two engines on the same float32 weights give the same distributions, far below any quant's displacement."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax

pytest.importorskip("torch")
pytest.importorskip("transformers")

from quantvane.engines.hf import open_hf
from quantvane.engines.llamacpp import open_llamacpp
from support_gguf import permute_rope, write_f32_gguf
from support_hf import window


def mean_kld(reference: np.ndarray, candidate: np.ndarray) -> float:
    p, q = (log_softmax(x.astype(np.float64), axis=-1) for x in (reference, candidate))
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())


def test_permutation_pairs_the_halves() -> None:
    rows = np.arange(8)[:, None]  # two heads of four rows: halves (0, 1 | 2, 3)
    assert permute_rope(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize("name", ["lm10m", "stories260K"])
def test_llama_cpp_agrees_with_transformers(shared: Path, tmp_path: Path, name: str) -> None:
    """Flash attention is off: its kernel rounds K and V to half precision whatever the cache's type is."""
    model = shared / "models" / name
    gguf = write_f32_gguf(model / "hf", next(model.glob("*.gguf")), tmp_path / "f32.gguf")
    mine = open_hf(str(model / "hf"), {})
    ids = mine.tokenize((shared / "text" / "books-a.txt").read_text()[:4000])[:512].reshape(2, 256)
    ids[:, 0] = mine.vocabulary.bos
    windows = [window(row, np.ones(256, bool), i) for i, row in enumerate(ids)]
    settings = {"flash_attn": "off", "cache_type_k": "f32", "cache_type_v": "f32", "n_threads": 1}
    other = open_llamacpp(str(gguf), settings, 256)
    reference = np.concatenate(list(mine.logits(windows)))
    candidate = np.concatenate([block.copy() for block in other.logits(windows)])
    other.close()
    assert reference.shape == candidate.shape
    assert 0 <= mean_kld(reference, candidate) < 1e-8
