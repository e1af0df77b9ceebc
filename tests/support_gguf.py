"""The float32 GGUF of a Hugging Face Llama: the same weights for two engines, to the last bit.

Metadata (tokenizer included) is copied from a GGUF of the same model; tensors come from the safetensors file.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["permute_rope", "write_f32_gguf"]

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
_SKIPPED = re.compile(r"GGUF\.|general\.file_type$|general\.architecture$")


def permute_rope(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of Q or K (heads · d, n) reordered from half-split to interleaved rotary pairs.

    Hugging Face turns the pair (i, i + d/2) of a head together, llama.cpp's Llama the pair (2i, 2i + 1); so
    row 2i + j of a head is taken from row i + j·d/2.
    """
    rows, columns = weight.shape
    d = rows // heads
    return weight.reshape(heads, 2, d // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_f32_gguf(model_dir: Path, like: Path, out: Path) -> Path:
    """Write ``out``: metadata of the GGUF ``like``, every tensor of it in float32 from ``model_dir``."""
    import torch
    from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType
    from safetensors.torch import load_file

    stored = {
        name: t.to(torch.float32).numpy() for name, t in load_file(model_dir / "model.safetensors").items()
    }
    reader = GGUFReader(str(like))
    writer = GGUFWriter(str(out), "llama")
    for field in reader.fields.values():
        if not _SKIPPED.match(field.name):
            sub = field.types[1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub)
    writer.add_file_type(LlamaFileType.ALL_F32)
    heads = {
        "attn_q": int(_value(reader, "llama.attention.head_count")),
        "attn_k": int(_value(reader, "llama.attention.head_count_kv")),
    }
    for tensor in reader.tensors:
        stem = tensor.name.removesuffix(".weight")
        block = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
        kind = block[2] if block else stem
        name = f"model.layers.{block[1]}.{_INNER[kind]}" if block else _OUTER[stem]
        data = stored.pop(f"{name}.weight")
        if kind in heads:
            data = permute_rope(data, heads[kind])
        writer.add_tensor(tensor.name, np.ascontiguousarray(data), raw_dtype=GGMLQuantizationType.F32)
    if stored:
        raise ValueError(f"tensors without a place in the GGUF: {sorted(stored)}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def _value(reader: Any, key: str) -> Any:
    return reader.fields[key].contents()
