"""The weights of a Llama GGUF under the names of transformers, dequantized.

A quant's weights can so stand beside the original's, parameter by parameter: the perturbation δ = dequantized −
original of a real quantization type. Only the architecture ``llama`` is known here: its layout is one fixed
renaming, and Q and K rows in another order (llama.cpp turns the pairs (2i, 2i+1) of a head together, transformers
(i, i + d/2)).
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt

from quantvane.engines.gguf_file import check_gguf, gguf_shards
from quantvane.errors import CapabilityError, ModelFileError

__all__ = ["llama_weights"]

_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_INNER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NOT_WEIGHTS = {"rope_freqs"}


def llama_weights(path: str) -> dict[str, npt.NDArray[np.float32]]:
    """transformers parameter name → float32 weights of a GGUF file (all of its shards).

    Raises:
        ModelFileError: no readable GGUF file.
        CapabilityError: another architecture, a tensor this layout does not know, or a type that the package gguf
            cannot dequantize.
    """
    from gguf import GGUFReader
    from gguf.quants import dequantize

    out: dict[str, npt.NDArray[np.float32]] = {}
    heads: dict[str, int] = {}
    for shard in gguf_shards(path):
        check_gguf(shard)
        try:
            reader = GGUFReader(str(shard))
        except (ValueError, OSError, IndexError) as problem:
            raise ModelFileError(
                f"'{shard}' is damaged",
                expected="a complete GGUF file",
                got=str(problem),
                remedy="fetch or convert the file again",
            ) from None
        if not heads:
            architecture = _field(reader, "general.architecture")
            if architecture != "llama":
                raise _unknown(path, "architecture 'llama'", f"'{architecture}'")
            count = int(_field(reader, "llama.attention.head_count"))
            heads = {"attn_q": count, "attn_k": int(_field(reader, "llama.attention.head_count_kv") or count)}
        for tensor in reader.tensors:
            stem, dot, part = tensor.name.rpartition(".")
            block = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
            kind = block[2] if block else stem
            if kind in _NOT_WEIGHTS:
                continue
            if not dot or part not in ("weight", "bias") or kind not in (_INNER if block else _OUTER):
                raise _unknown(path, "the tensors of a plain Llama", tensor.name)
            shape = tuple(int(n) for n in reversed(tensor.shape))
            try:
                values = np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32).reshape(shape)
            except NotImplementedError as problem:
                raise _unknown(path, "types that the package gguf can read", str(problem)) from None
            if block and kind in heads:
                values = _unpermute(values, heads[kind])
            name = f"model.layers.{block[1]}.{_INNER[kind]}" if block else _OUTER[kind]
            out[f"{name}.{part}"] = np.ascontiguousarray(values)
    return out


def _unpermute(values: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Rows (heads · d, …) from interleaved rotary pairs to half-split ones: row i + j·d/2 comes from 2i + j."""
    rows = values.shape[0]
    d = rows // heads
    return values.reshape(heads, d // 2, 2, -1).swapaxes(1, 2).reshape(values.shape)


def _field(reader: Any, name: str) -> Any:
    field = reader.fields.get(name)
    return None if field is None else field.contents()


def _unknown(path: str, expected: str, got: str) -> CapabilityError:
    return CapabilityError(
        f"the weights of '{path}' cannot be named after transformers' own",
        expected=expected,
        got=got,
        remedy="give the quantized model as a Hugging Face directory",
    )
