"""A GGUF file's dequantized weights put into a transformers model of the same architecture.

llama.cpp's converter stores some tensors in another form: rows of the query and key projections interleaved for its
rotary embedding (llama and its kin), norm weights with 1 added (Gemma). Whether it did is not written in the file.
The reference's own tensor tells: of the forms a tensor may have, the one nearest to it is taken, and a tensor that
is near in none is refused as another model's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quantvane.engines.gguf_file import check_gguf, gguf_shards
from quantvane.errors import ModelFileError

__all__ = ["load_gguf_weights"]

Array = npt.NDArray[np.float32]
# Distance in units of the reference's own norm. Rounding to 2 bits stays below 0.5; unrelated weights lie near √2,
# rows in another order near 1.4 as well.
_FAR = 0.9


def _uninterleaved(values: Array, heads: int) -> Array:
    """Rows of each head from (a₀, b₀, a₁, b₁, …) to (a₀, a₁, …, b₀, b₁, …)."""
    shape = values.shape
    return values.reshape(heads, shape[0] // heads // 2, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def _forms(name: str, values: Array, heads: tuple[int, int]) -> Iterator[Array]:
    yield values
    for word, count in zip(("q_proj", "k_proj"), heads, strict=True):
        if f".{word}." in name and count and values.shape[0] % (2 * count) == 0:
            yield _uninterleaved(values, count)
    if values.ndim == 1 and "norm" in name:
        yield values - np.float32(1.0)


def load_gguf_weights(model: Any, path: str) -> dict[str, str]:
    """Replace every parameter of ``model`` by the file's, in place.

    Args:
        model: a transformers model that holds the unquantized weights.
        path: the GGUF file, or the first of its shards.

    Returns:
        parameter name → the tensor's type in the file.

    Raises:
        ModelFileError: a damaged file, an architecture or parameter without a counterpart, another shape, or
            weights that are not a rounding of the model's own.
    """
    import torch

    tensors, architecture = _read(path)
    config = model.config.get_text_config()
    names = _names(architecture, int(config.num_hidden_layers), path)
    heads = int(getattr(config, "num_attention_heads", 0) or 0)
    heads_of = (heads, int(getattr(config, "num_key_value_heads", None) or heads))
    types: dict[str, str] = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            tensor = _find(name, names, tensors, path)
            values = _values(tensor, tuple(parameter.shape), name, path)
            own = parameter.detach().float().cpu().numpy()
            found = min(_forms(name, values, heads_of), key=lambda v: float(np.linalg.norm(v - own)))
            size = float(np.linalg.norm(own))
            distance = float(np.linalg.norm(found - own)) / size if size else float(np.linalg.norm(found))
            if not distance <= _FAR:
                raise ModelFileError(
                    f"'{path}' does not hold a rounding of this model's weights",
                    expected=f"'{name}' within {_FAR} of the directory's own, relative to its size",
                    got=f"distance {distance:.3g}",
                    remedy="name the directory the GGUF file was converted from",
                )
            parameter.copy_(torch.from_numpy(found.copy()))
            types[name] = tensor.tensor_type.name
    return types


def _read(path: str) -> tuple[dict[str, Any], str]:
    from gguf import GGUFReader

    tensors: dict[str, Any] = {}
    architecture = ""
    for number, shard in enumerate(gguf_shards(path)):
        check_gguf(shard)
        try:
            reader = GGUFReader(str(Path(shard)))
        except (ValueError, OSError, IndexError) as problem:
            raise ModelFileError(
                f"'{shard}' is damaged", expected="a complete GGUF file", got=str(problem), remedy="fetch it again"
            ) from None
        if number == 0 and (field := reader.fields.get("general.architecture")) is not None:
            architecture = str(field.contents())
        tensors.update({tensor.name: tensor for tensor in reader.tensors})
    return tensors, architecture


def _names(architecture: str, layers: int, path: str) -> Any:
    from gguf.constants import MODEL_ARCH_NAMES
    from gguf.tensor_mapping import get_tensor_name_map

    kind = next((key for key, name in MODEL_ARCH_NAMES.items() if name == architecture), None)
    if kind is None:
        raise ModelFileError(
            f"'{path}' is of an unknown architecture",
            expected="one the package gguf knows",
            got=repr(architecture),
            remedy="update gguf",
        )
    return get_tensor_name_map(kind, layers)


def _find(name: str, names: Any, tensors: dict[str, Any], path: str) -> Any:
    wanted = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if wanted == "output.weight" and wanted not in tensors:
        wanted = "token_embd.weight"  # tied in the file
    if wanted is None or wanted not in tensors:
        raise ModelFileError(
            f"'{path}' has nothing for the parameter '{name}'",
            expected=wanted or "a tensor of that role in this architecture",
            got=f"{len(tensors)} tensors without it",
            remedy="measure this architecture through llama.cpp, in spaces without gradients",
        )
    return tensors[wanted]


def _values(tensor: Any, shape: tuple[int, ...], name: str, path: str) -> Array:
    from gguf.quants import dequantize

    try:
        values = np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
    except (NotImplementedError, ValueError) as problem:
        raise ModelFileError(
            f"'{path}' holds '{tensor.name}' in a type that cannot be read here",
            expected="a type the package gguf dequantizes",
            got=f"{tensor.tensor_type.name}: {problem}",
            remedy="update gguf, or quantize to another type",
        ) from None
    if values.size != int(np.prod(shape)) or tuple(reversed([int(n) for n in tensor.shape])) != shape:
        raise ModelFileError(
            f"'{path}' holds '{tensor.name}' in another shape",
            expected=f"{shape}, as '{name}'",
            got=str(tuple(reversed([int(n) for n in tensor.shape]))),
            remedy="name the directory the GGUF file was converted from",
        )
    return values.reshape(shape)
