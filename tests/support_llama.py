"""Logits as llama-perplexity computes them: the same context settings and batches, in llama.cpp itself.

Only for tests that compare with files and printouts of that tool.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

# With the tool's default of 2048 a chunk may be cut across micro-batches of 512 tokens; its tail then passes
# through another attention kernel, whose logits differ by about 1e-3. The golden files hold uncut chunks.
N_BATCH = 512


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def _silent(level: int, text: bytes, user: int | None) -> None:
    """Drops llama.cpp's own messages."""


def _fill(batch: Any, chunks: npt.NDArray[np.int32], bos: int | None) -> None:
    n_ctx = chunks.shape[1]
    batch.n_tokens = chunks.size
    for i in range(chunks.size):
        chunk, pos = divmod(i, n_ctx)
        batch.token[i] = bos if bos is not None and pos == 0 else int(chunks[chunk, pos])
        batch.pos[i] = pos
        batch.n_seq_id[i] = 1
        batch.seq_id[i][0] = chunk
        batch.logits[i] = pos >= n_ctx // 2


def chunk_logits(model_file: Path, tokens: npt.NDArray[np.int32]) -> Iterator[npt.NDArray[np.float32]]:
    """For every chunk of ``tokens`` (C, n_ctx), its scored logits (n_ctx − 1 − n_ctx//2, V) float32."""
    import llama_cpp as lib

    n_ctx = tokens.shape[1]
    n_seq = max(1, N_BATCH // n_ctx)
    assert n_ctx <= N_BATCH, "one batch holds whole chunks"
    lib.llama_log_set(_silent, ctypes.c_void_p(0))
    model = lib.llama_model_load_from_file(str(model_file).encode(), lib.llama_model_default_params())
    settings = lib.llama_context_default_params()
    settings.n_ctx = n_seq * n_ctx
    settings.n_batch = min(N_BATCH, settings.n_ctx)
    settings.n_ubatch = N_BATCH
    settings.n_seq_max = n_seq
    context = lib.llama_init_from_model(model, settings)
    batch = lib.llama_batch_init(settings.n_batch, 0, 1)
    vocab = lib.llama_model_get_vocab(model)
    size = lib.llama_vocab_n_tokens(vocab)
    bos = lib.llama_vocab_bos(vocab) if lib.llama_vocab_get_add_bos(vocab) else None
    try:
        for start in range(0, len(tokens), n_seq):
            part = tokens[start : start + n_seq]
            lib.llama_memory_clear(lib.llama_get_memory(context), True)
            _fill(batch, part, bos)
            status = lib.llama_decode(context, batch)
            assert status == 0, f"llama_decode returned {status}"
            rows = len(part) * (n_ctx - n_ctx // 2)
            flat = np.ctypeslib.as_array(lib.llama_get_logits(context), shape=(rows * size,))
            # The window's last position is decoded too but predicts a token outside the window.
            yield from flat.reshape(len(part), -1, size)[:, :-1].copy()
    finally:
        lib.llama_batch_free(batch)
        lib.llama_free(context)
        lib.llama_model_free(model)


def skip_unless_golden_kernels() -> None:
    """Skip where llama.cpp lacks the golden files' AVX-512 kernels: others round differently."""
    lib = pytest.importorskip("llama_cpp")
    if b"AVX512 = 1" not in lib.llama_print_system_info():
        pytest.skip("golden files were computed with AVX-512 kernels; this build or machine has none")
