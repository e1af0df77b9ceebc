"""Importance matrices: how large each column's input is where a weight is multiplied, from llama.cpp's own graph.

For a weight W (out, in) multiplied with inputs x_t (in,), t = 1…n, the importance of column j is Σ_t x_tj² / n. The
quantizer weighs its rounding errors with it. llama.cpp calls back before and after each node of its graph; the
inputs of the blocks' matrix products are read there and only their sums are kept. The file has the layout of
llama.cpp's ``llama-imatrix`` (GGUF tensors ``NAME.in_sum2`` and ``NAME.counts``).

Experts' products are refused: their rows would have to be sorted by expert.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quantvane.engines.gguf_file import check_gguf, read_weights
from quantvane.engines.llamacpp import LlamaCpp, resolve_settings
from quantvane.errors import CapabilityError, CorpusError, EngineError
from quantvane.store.atomic import atomic_path
from quantvane.types import FloatArray, Window

__all__ = ["collect_imatrix", "write_imatrix"]


class _Tensor(ctypes.Structure):
    """``struct ggml_tensor`` of ggml.h, up to its name; `_check` proves that the loaded library agrees."""

    _fields_ = (
        ("type", ctypes.c_int), ("buffer", ctypes.c_void_p), ("ne", ctypes.c_int64 * 4), ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int), ("op_params", ctypes.c_int32 * 16), ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10), ("view_src", ctypes.c_void_p), ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p), ("name", ctypes.c_char * 64),
    )  # fmt: skip


_F32 = 0
_ROWS = 16  # a product with fewer rows is no text being read; llama-imatrix has the same bound


class _Sums:
    """The callback and what it has summed: name → (Σ x², rows)."""

    def __init__(self, lib: Any) -> None:
        from llama_cpp._ggml import libggml as ggml

        for name in ("ggml_get_name", "ggml_get_data", "ggml_op_name"):
            getattr(ggml, name).restype = ctypes.c_char_p if name == "ggml_op_name" else ctypes.c_void_p
        ggml.ggml_get_name.argtypes = ggml.ggml_get_data.argtypes = [ctypes.c_void_p]
        self._ggml = ggml
        self._ops: dict[int, bytes] = {}
        self._checked = False
        self.problem: Exception | None = None
        self.found: dict[str, tuple[FloatArray, int]] = {}
        self.callback = lib.ggml_backend_sched_eval_callback(self._called)

    def _called(self, address: int, ask: bool, _: Any) -> bool:
        # An exception cannot cross the C frames: it is kept, and asking for nothing more lets the call end.
        try:
            if self.problem is not None:
                return not ask
            return self._look(address, ask)
        except Exception as problem:
            self.problem = problem
            return not ask

    def _look(self, address: int, ask: bool) -> bool:
        node = _Tensor.from_address(address)
        if not self._checked:
            self._check(address, node)
        if node.op not in self._ops:
            self._ops[node.op] = self._ggml.ggml_op_name(node.op)
        op = self._ops[node.op]
        if not op.startswith(b"MUL_MAT") or not node.src[0]:
            return not ask
        weight = _Tensor.from_address(node.src[0])
        if not weight.name.startswith(b"blk."):
            return not ask
        if op != b"MUL_MAT":
            raise CapabilityError(
                "an importance matrix of a model with experts cannot be made here",
                expected="a dense model",
                got=f"{op.decode()} with {weight.name.decode()}",
                remedy="make it with llama.cpp's llama-imatrix and pass it as a file",
            )
        inputs = _Tensor.from_address(node.src[1])
        if inputs.type != _F32 or inputs.ne[1] < _ROWS:
            return not ask
        if not ask:
            self._add(weight.name.decode(), inputs)
        return True

    def _check(self, address: int, node: _Tensor) -> None:
        """The library's own accessors must find what the struct says."""
        name, data = self._ggml.ggml_get_name(address), self._ggml.ggml_get_data(address)
        if name != address + _Tensor.name.offset or data != node.data:
            raise CapabilityError(
                "this llama.cpp build keeps its tensors in another layout",
                expected="the ggml_tensor of llama-cpp-python 0.3.36",
                got="another struct",
                remedy="make the importance matrix with llama.cpp's llama-imatrix",
            )
        self._checked = True

    def _add(self, name: str, inputs: _Tensor) -> None:
        width, rows, stride = inputs.ne[0], inputs.ne[1] * inputs.ne[2] * inputs.ne[3], inputs.nb[1]
        if inputs.nb[0] != 4 or inputs.nb[2] != stride * inputs.ne[1]:
            raise EngineError(f"the inputs of '{name}' are not contiguous rows", expected="stride 4", got="another")
        raw = (ctypes.c_char * (stride * rows)).from_address(inputs.data)
        values = np.frombuffer(raw, np.float32).reshape(rows, stride // 4)[:, :width]
        total, count = self.found.get(name, (np.zeros(width), 0))
        self.found[name] = total + np.einsum("ij,ij->j", values, values, dtype=np.float64), count + rows


class _Watched(LlamaCpp):
    """A model whose graph is watched while it decodes."""

    sums: _Sums | None = None

    def _parameters(self) -> Any:
        params = super()._parameters()
        self.sums = _Sums(self._lib)
        params.cb_eval = self.sums.callback
        return params


def collect_imatrix(
    source: str, text: str, *, context: int = 512, chunks: int | None = None
) -> dict[str, tuple[FloatArray, int]]:
    """Σ x² (in,) float64 and the number of rows behind it, by weight, over a text read in whole windows.

    Args:
        source: a GGUF file of a dense model. text: what is read; where the model wants BOS, it
            replaces a window's first token. context: window in tokens.
        chunks: most windows; all by default.

    Raises:
        CorpusError: less text than one window. CapabilityError: experts, or an unknown build of llama.cpp.
    """
    check_gguf(source)
    settings = resolve_settings({"n_gpu_layers": "0"})
    engine = _Watched(source, settings, context, read_weights(source))
    try:
        ids = engine.tokenize(text, add_bos=engine.vocabulary.add_bos)
        windows = [
            _window(ids[at : at + context].copy(), at // context) for at in range(0, len(ids) - context + 1, context)
        ]
        if not windows:
            raise CorpusError(
                "the calibration text is shorter than one window",
                expected=f"{context} tokens or more",
                got=f"{len(ids)} tokens",
                remedy="give more text",
            )
        if engine.vocabulary.add_bos:
            for window in windows:
                window.tokens[0] = engine.vocabulary.bos  # as llama-imatrix reads
        for _ in engine.logits(windows[:chunks]):
            pass
        sums = engine.sums
        if sums is None or not sums.found or sums.problem is not None:
            raise (sums and sums.problem) or EngineError("no matrix product was seen", expected="at least one", got="0")
        return sums.found
    finally:
        engine.close()


def _window(tokens: npt.NDArray[np.int32], index: int) -> Window:
    # Every position is wanted: llama.cpp drops the rows of the last block that give no output.
    return Window(tokens, np.zeros_like(tokens), np.ones(len(tokens), bool), index, 0, 0)


def write_imatrix(path: Path, found: dict[str, tuple[FloatArray, int]], dataset: str, context: int = 512) -> None:
    """Write the sums as llama-imatrix does, atomically; ``dataset`` names the text."""
    from gguf import GGUFWriter

    with atomic_path(path) as temporary:
        writer = GGUFWriter(temporary, "")
        writer.add_string("general.type", "imatrix")
        writer.add_array("imatrix.datasets", [dataset])
        writer.add_uint32("imatrix.chunk_count", max(count for _, count in found.values()) // context)
        writer.add_uint32("imatrix.chunk_size", context)
        for name, (total, count) in sorted(found.items()):
            writer.add_tensor(f"{name}.in_sum2", total.astype(np.float32)[None, :])
            writer.add_tensor(f"{name}.counts", np.array([[count]], np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
