"""llama.cpp's own quantizer, through its library; importance matrices in both of its formats.

A type is one of llama.cpp's mixes, with other types for some tensors where wanted: ``Q4_K_M+output=Q8_0``,
``Q8_0+attn_k=Q4_0+blk.0.ffn_down=Q3_K``. A tensor is named as in the file, without ``.weight``; without ``blk.N.``
it is meant in every block. Tensors whose shape a type does not fit fall back as llama.cpp decides.
"""

from __future__ import annotations

import ctypes
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np

from quantvane.engines.gguf_file import check_gguf
from quantvane.engines.llamacpp import start_backend
from quantvane.errors import DataError, EngineError, ModelFileError, SpecError
from quantvane.store.atomic import atomic_path

__all__ = ["TENSOR_TYPES", "TYPES", "check_type", "quantize_file", "read_imatrix"]

# llama.cpp's names for whole-file mixes and its numbers for them (enum llama_ftype in llama.h).
TYPES: dict[str, int] = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_S": 11,
    "Q3_K_M": 12, "Q3_K_L": 13, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18,
    "IQ2_XXS": 19, "IQ2_XS": 20, "Q2_K_S": 21, "IQ3_XS": 22, "IQ3_XXS": 23, "IQ1_S": 24, "IQ4_NL": 25,
    "IQ3_S": 26, "IQ3_M": 27, "IQ2_S": 28, "IQ2_M": 29, "IQ4_XS": 30, "IQ1_M": 31, "BF16": 32, "TQ1_0": 36,
    "TQ2_0": 37, "MXFP4_MOE": 38,
}  # fmt: skip
# Types of one tensor and their numbers (enum ggml_type in ggml.h).
TENSOR_TYPES: dict[str, int] = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12,
    "Q5_K": 13, "Q6_K": 14, "IQ4_NL": 20, "IQ3_S": 21, "IQ4_XS": 23, "BF16": 30,
}  # fmt: skip
_NEEDS_IMATRIX = {"IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_S", "IQ1_M", "Q2_K_S"}


def check_type(name: str, has_imatrix: bool) -> str:
    """The type's canonical name, other types of single tensors included.

    Raises:
        SpecError: unknown, or one llama.cpp makes only with an importance matrix.
    """
    base, *others = name.strip().split("+")
    canonical = base.strip().upper()
    if canonical not in TYPES:
        raise SpecError(
            f"no quantization type is called '{name}'",
            expected="one of " + ", ".join(TYPES),
            got=name,
            remedy="correct --types or --quantize",
        )
    if canonical in _NEEDS_IMATRIX and not has_imatrix:
        raise SpecError(
            f"{canonical} needs an importance matrix",
            expected="--imatrix FILE",
            got="none",
            remedy="make one with llama.cpp's llama-imatrix, or leave the type out",
        )
    if others and canonical in ("F32", "F16", "BF16"):
        raise SpecError(
            f"{canonical} takes no other types for single tensors",
            expected="a quantized type before the first +",
            got=name,
            remedy="llama.cpp copies all tensors for this type",
        )
    return "+".join([canonical, *(_check_tensor(other, name) for other in others)])


def _check_tensor(text: str, whole: str) -> str:
    tensor, _, kind = text.strip().partition("=")
    kind = kind.upper()
    if not re.fullmatch(r"[A-Za-z0-9_.]+", tensor) or kind not in TENSOR_TYPES:
        raise SpecError(
            f"'{text}' in '{whole}' names no type for a tensor",
            expected="TENSOR=TYPE with a type of " + ", ".join(TENSOR_TYPES),
            got=text,
            remedy="write for example Q4_K_M+output=Q8_0+ffn_down=Q5_K",
        )
    return f"{tensor.removesuffix('.weight')}={kind}"


def read_imatrix(path: str) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """Tensor name → importance of its columns (float32), from llama-imatrix's GGUF or older binary file.

    Raises:
        DataError: neither format, or damaged.
    """
    place = Path(path)
    if not place.is_file():
        raise DataError(
            f"no importance matrix at '{path}'",
            expected="a file made by llama-imatrix",
            got="nothing there",
            remedy="check --imatrix",
        )
    with place.open("rb") as file:
        magic = file.read(4)
    try:
        entries = _imatrix_gguf(path) if magic == b"GGUF" else _imatrix_legacy(place.read_bytes())
    except Exception as problem:  # damaged in a way the parser did not foresee
        raise DataError(
            f"'{path}' is no importance matrix",
            expected="a file made by llama-imatrix",
            got=f"{type(problem).__name__}: {problem}",
            remedy="make it again",
        ) from None
    if not entries:
        raise DataError(f"'{path}' holds no entries", expected="at least one tensor", got="0", remedy="make it again")
    return entries


def _imatrix_gguf(path: str) -> dict[str, Any]:
    from gguf import GGUFReader

    check_gguf(path)
    tensors = {t.name: np.array(t.data, np.float32) for t in GGUFReader(path).tensors}
    out = {}
    for name, sums in tensors.items():
        stem, dot, kind = name.rpartition(".")
        if dot and kind == "in_sum2":
            counts = tensors[f"{stem}.counts"].reshape(-1, 1)  # one row an expert
            rows = sums.reshape(len(counts), -1)
            # An expert no text reached has no sums; llama.cpp weighs its columns equally.
            out[stem] = np.where(counts > 0, rows / np.maximum(counts, 1), 1).astype(np.float32).ravel()
    return out


def _imatrix_legacy(data: bytes) -> dict[str, Any]:
    at = 0

    def number() -> int:
        nonlocal at
        (value,) = struct.unpack_from("<i", data, at)
        at += 4
        return int(value)

    out = {}
    for _ in range(number()):
        length = number()
        name = data[at : at + length].decode()
        at += length
        calls, values = number(), number()
        if not 0 < values <= (len(data) - at) // 4:
            raise ValueError(f"{values} values claimed")
        sums = np.frombuffer(data, np.float32, values, at)
        at += 4 * values
        out[name] = (sums / np.float32(calls) if calls > 0 else sums).astype(np.float32)
    return out


def quantize_file(source: str, target: Path, kind: str, imatrix: str | None = None) -> None:
    """Make ``target`` from ``source``; nothing is left behind when it fails.

    Raises:
        SpecError: the type. ModelFileError: the source. EngineError: the quantizer refused.
    """
    check_gguf(source)
    canonical = check_type(kind, imatrix is not None)
    lib, logged = start_backend()
    params = lib.llama_model_quantize_default_params()
    base, *others = canonical.split("+")
    params.ftype = TYPES[base]
    keep: list[Any] = []  # what the C side points to must outlive the call
    if others:
        overrides = (lib.llama_model_tensor_override * (len(others) + 1))()  # ends with an empty row
        for row, other in zip(overrides, others, strict=False):
            tensor, _, of_type = other.partition("=")
            row.pattern = rf"(^|\.){tensor.replace('.', chr(92) + '.')}\.weight$".encode()
            row.type = TENSOR_TYPES[of_type]
            keep.append(row.pattern)
        params.tt_overrides = ctypes.cast(overrides, ctypes.POINTER(lib.llama_model_tensor_override))
        keep.append(overrides)
    if imatrix is not None:
        entries = read_imatrix(imatrix)
        table = (lib.llama_model_imatrix_data * (len(entries) + 1))()
        for row, (name, values) in zip(table, entries.items(), strict=False):
            contiguous = np.ascontiguousarray(values)
            row.name = name.encode()
            row.data = contiguous.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            row.size = len(contiguous)
            keep += [contiguous, row.name]
        params.imatrix = ctypes.cast(table, ctypes.POINTER(lib.llama_model_imatrix_data))
        keep.append(table)
    with atomic_path(target) as temporary:
        status = lib.llama_model_quantize(str(source).encode(), str(temporary).encode(), ctypes.byref(params))
        if status != 0 or not temporary.exists():
            raise EngineError(
                f"llama.cpp could not make {canonical} of '{source}'",
                expected="status 0",
                got=f"status {status}: {logged.tail()}",
                remedy="quantize from F32, F16 or BF16; some types need --imatrix",
            )
        try:
            check_gguf(temporary)
        except ModelFileError as problem:
            raise EngineError(f"the quantizer wrote no GGUF file for {canonical}", got=problem.got) from None
