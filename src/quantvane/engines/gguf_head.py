"""The output head of a GGUF model, from its file: matrix, bias, scale, soft cap."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from quantvane.engines.ggml_rounding import rounding_of
from quantvane.engines.gguf_file import gguf_shards
from quantvane.engines.output_head import OutputHead
from quantvane.errors import CapabilityError

__all__ = ["read_gguf_head"]

# Source: llama.cpp src/models. These divide by `logit_scale`, every other architecture multiplies.
_DIVIDE = ("granite", "minicpm")


def _dequantized(tensor: Any, rows: int) -> npt.NDArray[np.float32]:
    from gguf.quants import dequantize

    values = np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
    return np.ascontiguousarray(values.reshape(rows, -1) if rows > 1 else values.reshape(-1))


def _scale(architecture: str, metadata: dict[str, Any], width: int) -> float:
    """The factor on W h; an architecture's default where the file is silent."""
    value = metadata.get(f"{architecture}.logit_scale")
    if value is None and architecture == "grok":
        value = 0.5773502691896257
    if value is None and architecture == "minicpm":
        value = 256.0 / width
    if not value:  # absent, or 0, which llama.cpp reads as none
        return 1.0
    return 1.0 / float(value) if architecture.startswith(_DIVIDE) else float(value)


def read_gguf_head(path: str, vocabulary: int) -> OutputHead:
    """The head of a model file: ``output.weight``, or ``token_embd.weight`` where the two are tied.

    Args:
        path: the file, or the first of its shards. vocabulary: entries the head must have.

    Returns:
        the head in float32, with the rounding that ggml's CPU kernels apply for its type.

    Raises:
        CapabilityError: no such tensor, a shape that does not fit, or a type that cannot be computed with here.
    """
    from gguf import GGUFReader

    tensors: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    for number, shard in enumerate(gguf_shards(path)):
        reader = GGUFReader(str(shard))
        if number == 0:
            # Only short values: the token table is in there too.
            metadata = {
                name: field.contents()
                for name, field in reader.fields.items()
                if name == "general.architecture" or name.endswith(("logit_scale", "logit_softcapping"))
            }
        tensors.update({t.name: t for t in reader.tensors if t.name.startswith(("output.", "token_embd."))})
    matrix = tensors.get("output.weight", tensors.get("token_embd.weight"))
    if matrix is None or len(matrix.shape) != 2 or int(matrix.shape[1]) != vocabulary:
        shape = "no such tensor" if matrix is None else f"shape {[int(n) for n in matrix.shape]}"
        raise _unknown(path, f"output.weight or token_embd.weight with {vocabulary} rows", shape)
    kind = matrix.tensor_type.name
    rounding = rounding_of(kind)
    if rounding is None:
        raise _unknown(path, "a head whose products are known here", f"type {kind}")
    try:
        weight = _dequantized(matrix, vocabulary)
        bias = _dequantized(tensors["output.bias"], 1) if "output.bias" in tensors else None
    except NotImplementedError as problem:
        raise _unknown(path, "a type that the package gguf can read", f"{kind}: {problem}") from None
    architecture = str(metadata.get("general.architecture", ""))
    softcap = metadata.get(f"{architecture}.final_logit_softcapping") or None
    return OutputHead(
        weight=weight,
        bias=bias,
        scale=_scale(architecture, metadata, int(matrix.shape[0])),
        softcap=None if softcap is None else float(softcap),
        rounding=rounding,
        tensor_type=kind,
    )


def _unknown(path: str, expected: str, got: str) -> CapabilityError:
    return CapabilityError(
        f"the output head of '{path}' cannot be computed apart from the model",
        expected=expected,
        got=got,
        remedy="record its logits instead (--store logits)",
    )
