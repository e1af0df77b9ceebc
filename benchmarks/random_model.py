"""Write a Llama GGUF with random weights, in the shape of a 135M model by default, with a real tokenizer.

    python benchmarks/random_model.py --out shape135m-f16.gguf

The tokenizer is the bundled model's, filled up with tokens that no text holds. Weights are normal with the standard
deviation 1/√(inputs), so that activations keep their size; the head is the embedding, as in the models of that shape.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType

_KEPT = re.compile(r"tokenizer\.ggml\.(model|pre|merges|bos_token_id|eos_token_id|add_bos_token|add_eos_token)$")


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Llama; the default is that of SmolLM-135M."""

    layers: int = 30
    width: int = 576
    inner: int = 1536
    heads: int = 9
    kv_heads: int = 3
    vocabulary: int = 49152
    context: int = 2048


def write_random_model(out: Path, shape: Shape, seed: int = 0) -> None:
    """Write ``out``; the same shape and seed give the same bytes."""
    reader = GGUFReader(str(files("quantvane") / "assets" / "lm10m-f16.gguf"))
    writer = GGUFWriter(str(out), "llama")
    for name, field in reader.fields.items():
        if _KEPT.match(name):
            sub = field.types[1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], sub)
    tokens: list[Any] = reader.fields["tokenizer.ggml.tokens"].contents()
    types = reader.fields["tokenizer.ggml.token_type"].contents()
    extra = shape.vocabulary - len(tokens)
    writer.add_token_list([*tokens, *(f"<|unused{i}|>" for i in range(extra))])
    writer.add_token_types([*types, *([5] * extra)])  # 5: unused
    writer.add_name(out.stem)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    rng = np.random.default_rng(seed)

    def matrix(name: str, rows: int, columns: int, scale: float | None = None) -> None:
        values = rng.standard_normal((rows, columns), dtype=np.float32) * (scale or columns**-0.5)
        writer.add_tensor(f"{name}.weight", values.astype(np.float16))

    def ones(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(shape.width, np.float32))

    kv = shape.width // shape.heads * shape.kv_heads
    matrix("token_embd", shape.vocabulary, shape.width, 0.1)  # logits then have a standard deviation of 2.4
    ones("output_norm")
    for i in range(shape.layers):
        ones(f"blk.{i}.attn_norm")
        ones(f"blk.{i}.ffn_norm")
        matrix(f"blk.{i}.attn_q", shape.width, shape.width)
        matrix(f"blk.{i}.attn_k", kv, shape.width)
        matrix(f"blk.{i}.attn_v", kv, shape.width)
        matrix(f"blk.{i}.attn_output", shape.width, shape.width)
        matrix(f"blk.{i}.ffn_gate", shape.inner, shape.width)
        matrix(f"blk.{i}.ffn_up", shape.inner, shape.width)
        matrix(f"blk.{i}.ffn_down", shape.width, shape.inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write_random_model(args.out, Shape(), args.seed)


if __name__ == "__main__":
    main()
