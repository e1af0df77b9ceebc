"""The weight files of a Hugging Face directory: which they are, what their headers say, their fingerprint.

Only headers are read here (8 bytes of length, then JSON), without torch or the safetensors library.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantvane.engines.base import Weights
from quantvane.engines.gguf_file import sha256_file
from quantvane.errors import ModelFileError

__all__ = ["TensorHeader", "fingerprint", "read_headers", "weight_files", "weights_of"]

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_HEADER_LIMIT = 100_000_000  # the format's own limit on a header
# What packed formats keep beside the weights: bytes that count, but no parameters.
_OVERHEAD = (".qzeros", ".scales", ".g_idx", "_scale", "_scale_inv", "_zero_point", "_shape")
_PACKED = (".qweight", ".weight_packed")


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """One tensor as its file declares it: name, type ("BF16" …), shape and bytes of data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int

    @property
    def elements(self) -> int:
        """Number of stored elements."""
        return math.prod(self.shape)


def weight_files(directory: Path) -> tuple[Path, ...]:
    """The safetensors files a model directory is loaded from, sorted by name.

    Raises:
        ModelFileError: no directory, no config.json, no safetensors weights (pickled ones are refused), an
            adapter in place of a model, or an index that is damaged or names files elsewhere.
    """
    remedy = "give a local directory as written by save_pretrained, with safetensors weights"
    if not directory.is_dir():
        what = "a file" if directory.exists() else "nothing there"
        raise ModelFileError(
            f"no model directory at '{directory}'", expected="a local directory", got=what, remedy=remedy
        )
    if (directory / "adapter_config.json").exists():
        raise ModelFileError(
            f"'{directory}' holds an adapter, whose base model lies elsewhere",
            expected="a complete model",
            got="adapter_config.json",
            remedy="merge the adapter into its base model and save that",
        )
    if not (directory / "config.json").is_file():
        raise ModelFileError(
            f"'{directory}' has no config.json", expected="config.json", got="no such file", remedy=remedy
        )
    single = directory / "model.safetensors"
    index = directory / "model.safetensors.index.json"
    if single.is_file():
        return (single,)
    if index.is_file():
        return _indexed(directory, index)
    pickled = sorted(path.name for pattern in _PICKLED for path in directory.glob(pattern))
    raise ModelFileError(
        f"'{directory}' has no model.safetensors",
        expected="model.safetensors, or its shards and model.safetensors.index.json",
        got=f"{pickled[0]}: pickled weights can run code when loaded" if pickled else "no weight file",
        remedy="convert the weights: load them where you trust them, then save_pretrained(DIR)"
        if pickled
        else remedy,
    )


def _indexed(directory: Path, index: Path) -> tuple[Path, ...]:
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        # The index is data: a name that leads out of the directory is not followed.
        inside = bool(names) and all(
            Path(name).name == name and name.endswith(".safetensors") for name in names
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        inside = False
    if not inside:
        raise ModelFileError(
            f"'{index}' is damaged",
            expected='an object "weight_map": tensor → name of a .safetensors file beside it',
            got="something else",
            remedy="fetch the file again",
        )
    files = tuple(directory / name for name in names)
    for file in files:
        if not file.is_file():
            raise ModelFileError(
                f"'{directory}' is incomplete",
                expected=file.name,
                got="no such file",
                remedy="fetch the missing shard",
            )
    return files


def read_headers(files: Sequence[Path]) -> list[TensorHeader]:
    """Every tensor of the files, in file order.

    Raises:
        ModelFileError: a header that cannot be read, or data that ends before the header says.
    """
    return [tensor for file in files for tensor in _read_header(file)]


def _read_header(file: Path) -> list[TensorHeader]:
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, _HEADER_LIMIT):
                raise ValueError(f"{size} bytes, header of {length}")
            table = json.loads(stream.read(length))
        tensors = []
        needed = 8 + length
        for name, entry in table.items():
            if name == "__metadata__":
                continue
            begin, end = (int(offset) for offset in entry["data_offsets"])
            if begin < 0 or end < begin:
                raise ValueError(f"offsets of {name}")
            needed = max(needed, 8 + length + end)
            shape = tuple(int(n) for n in entry["shape"])
            tensors.append(TensorHeader(str(name), str(entry["dtype"]), shape, end - begin))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise ModelFileError(
            f"'{file}' is not a safetensors file",
            expected="a length, a JSON header and the data it describes",
            got=f"{type(problem).__name__}: {problem}",
            remedy="fetch the file again (a Git LFS pointer is not the file)",
        ) from None
    if needed > size:
        raise ModelFileError(
            f"'{file}' is truncated",
            expected=f"{needed} bytes",
            got=f"{size} bytes",
            remedy="fetch the file again",
        )
    return tensors


def weights_of(
    files: Sequence[Path],
    headers: Sequence[TensorHeader],
    *,
    tied: Collection[str] = (),
    packed_bits: int | None = None,
) -> Weights:
    """Sizes and types as stored.

    Args:
        files: the weight files. headers: their tensors.
        tied: names of one and the same tensor (embedding and head); of those present one is counted.
        packed_bits: bits of a weight in packed integer tensors (AWQ, GPTQ), from the model's own config.
    """
    elements: Counter[str] = Counter()
    tensor_bytes = 0
    seen_tied = False
    for tensor in headers:
        if tensor.name in tied:
            if seen_tied:
                continue
            seen_tied = True
        tensor_bytes += tensor.nbytes
        if packed_bits and tensor.name.endswith(_PACKED):
            elements[f"{tensor.dtype}/{packed_bits}-bit"] += tensor.nbytes * 8 // packed_bits
        elif not tensor.name.endswith(_OVERHEAD):
            elements[tensor.dtype] += tensor.elements
    total = sum(elements.values())
    return Weights(
        file_bytes=sum(file.stat().st_size for file in files),
        tensor_bytes=tensor_bytes,
        parameters=total,
        types={name: count / total for name, count in elements.most_common()},
    )


def fingerprint(files: Sequence[Path]) -> str:
    """SHA-256 of the one file, or of the files' hexadecimal digests joined by newlines."""
    prints = [sha256_file(file) for file in files]
    return prints[0] if len(prints) == 1 else hashlib.sha256("\n".join(prints).encode()).hexdigest()
