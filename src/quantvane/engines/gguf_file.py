"""Reading what a GGUF file holds, without an engine: tensor types, sizes, metadata."""

from __future__ import annotations

import hashlib
import os
import struct
from collections import Counter
from pathlib import Path

from quantvane.engines.base import Weights
from quantvane.engines.gguf_table import read_table
from quantvane.errors import ModelFileError

__all__ = ["check_gguf", "gguf_shards", "read_weights", "sha256_file"]

_MAGIC = b"GGUF"


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, streamed; hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_gguf(path: str | os.PathLike[str]) -> None:
    """Refuse a file that is missing or plainly no GGUF file before any library reads it.

    Raises:
        ModelFileError: missing, a directory, unreadable, too short, wrong magic or version.
    """
    place = Path(path)
    remedy = "give the path of a complete GGUF file"
    if not place.is_file():
        what = "a directory" if place.is_dir() else "nothing there"
        raise ModelFileError(f"no model file at '{path}'", expected="a GGUF file", got=what, remedy=remedy)
    try:
        with place.open("rb") as file:
            head = file.read(24)
    except OSError as problem:
        raise ModelFileError(
            f"cannot read '{path}'", expected="a readable GGUF file", got=str(problem), remedy=remedy
        ) from None
    if len(head) < 24 or head[:4] != _MAGIC:
        raise ModelFileError(
            f"'{path}' is not a GGUF file",
            expected="a file that begins with GGUF",
            got=f"{place.stat().st_size} bytes beginning with {head[:4]!r}",
            remedy=remedy,
        )
    version, tensors, keys = struct.unpack("<IQQ", head[4:])
    # Counts come from the file and are not to be trusted: each entry takes more than 8 bytes of it.
    if not 2 <= version <= 3 or (tensors + keys) * 8 > place.stat().st_size:
        raise ModelFileError(
            f"'{path}' has a GGUF header that cannot be right",
            expected="version 2 or 3 and counts that fit the file",
            got=f"version {version}, {tensors} tensors, {keys} keys in {place.stat().st_size} bytes",
            remedy=remedy,
        )


def gguf_shards(path: str | os.PathLike[str]) -> list[Path]:
    """The files of a model: the one given, or all of ``NAME-00001-of-000NN.gguf``."""
    place = Path(path)
    stem, dash, last = place.stem.rpartition("-of-")
    if not dash or not last.isdigit() or not stem[-5:].isdigit():
        return [place]
    return [place.with_name(f"{stem[:-5]}{i:05d}-of-{last}.gguf") for i in range(1, int(last) + 1)]


def read_weights(path: str | os.PathLike[str]) -> Weights:
    """Sizes and tensor types from the file's own tensor table.

    A type's label ("Q4_K_M") says what was asked for; rows that are no multiple of the block size fall back
    to other types silently, so the mix is counted here.

    Raises:
        ModelFileError: the table cannot be read or reaches beyond the end of the file.
    """
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    elements: Counter[str] = Counter()
    tensor_bytes = file_bytes = 0
    for shard in gguf_shards(path):
        check_gguf(shard)
        size = shard.stat().st_size
        try:
            table = read_table(shard)
            kinds = [GGMLQuantizationType(tensor.type_id) for tensor in table.tensors]
        except (OSError, ValueError) as problem:
            raise ModelFileError(
                f"'{shard}' is damaged",
                expected="a complete GGUF tensor table",
                got=str(problem),
                remedy="fetch or convert the file again",
            ) from None
        for tensor, kind in zip(table.tensors, kinds, strict=True):
            block, block_bytes = GGML_QUANT_SIZES[kind]
            held = tensor.elements // block * block_bytes
            end = table.data_start + tensor.offset + held
            if end > size:
                raise ModelFileError(
                    f"'{shard}' is truncated",
                    expected=f"at least {end} bytes",
                    got=f"{size} bytes",
                    remedy="fetch or convert the file again",
                )
            elements[kind.name] += tensor.elements
            tensor_bytes += held
        file_bytes += size
    total = sum(elements.values())
    return Weights(
        file_bytes=file_bytes,
        tensor_bytes=tensor_bytes,
        parameters=total,
        types={name: count / total for name, count in elements.most_common()},
    )
