"""Engines by name, opened lazily: naming one imports no model library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from quantvane.engines.base import Engine
from quantvane.engines.gguf_file import check_gguf, gguf_shards
from quantvane.errors import ModelFileError, SpecError
from quantvane.spec import ModelSpec
from quantvane.store.trace_manifest import is_trace, read_manifest

__all__ = ["ENGINES", "RECORDED", "check_model", "engine_name", "floor_variation", "open_engine"]


def _llamacpp(path: str, settings: Mapping[str, Any], context: int) -> Engine:
    from quantvane.engines.llamacpp import open_llamacpp

    return open_llamacpp(path, settings, context)


def _hf(path: str, settings: Mapping[str, Any], context: int) -> Engine:
    from quantvane.engines.hf import open_hf

    return open_hf(path, settings)


def _trace(path: str, settings: Mapping[str, Any], context: int) -> Engine:
    from quantvane.engines.trace import open_trace

    return open_trace(path, settings)


def _kld(path: str, settings: Mapping[str, Any], context: int) -> Engine:
    from quantvane.engines.kld_base import open_kld

    return open_kld(path, settings, lambda spec: open_engine(ModelSpec.parse(spec), context))


def _fake(path: str, settings: Mapping[str, Any], context: int) -> Engine:
    from quantvane.engines.fake import open_fake

    return open_fake(path, settings)


ENGINES: dict[str, Callable[[str, Mapping[str, Any], int], Engine]] = {
    "llamacpp": _llamacpp,
    "hf": _hf,
    "fake": _fake,
    "kld": _kld,
    "trace": _trace,
}
RECORDED = frozenset({"kld", "trace"})
"""Engines that replay a recorded reference instead of computing."""


def engine_name(spec: ModelSpec) -> str:
    """The engine a spec names, or the one its path calls for.

    Raises:
        SpecError: an unknown engine, or a path that calls for none.
    """
    if spec.engine:
        if spec.engine not in ENGINES:
            raise SpecError(
                f"no engine is called '{spec.engine}'",
                expected="one of " + ", ".join(sorted(ENGINES)),
                got=spec.engine,
                remedy="correct the word after '@' in the model spec (a literal @ in a path is written %40)",
            )
        return spec.engine
    path = Path(spec.path)
    if path.suffix.lower() == ".gguf":
        return "llamacpp"
    if path.is_dir():
        return "trace" if is_trace(path) else "hf"
    if _is_base_file(path):
        return "kld"
    if not path.exists():
        raise ModelFileError(
            f"no model at '{spec.path}'",
            expected="a GGUF file or a Hugging Face model directory",
            got="nothing there",
            remedy="check the path",
        )
    raise SpecError(
        f"cannot tell which engine reads '{spec.path}'",
        expected="a name ending in .gguf, a model directory, or @ENGINE in the spec",
        got=spec.path,
        remedy="add @llamacpp or @hf to the spec",
    )


def _is_base_file(path: Path) -> bool:
    """A name that llama.cpp's users give such files, or the file's own first bytes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return path.suffix.lower() in (".kld", ".dat") or file.read(8) == b"_logits_"


def check_model(spec: ModelSpec) -> None:
    """Refuse a model that is plainly not there, before anything is loaded or written.

    Raises:
        SpecError: no such engine. ModelFileError: nothing there, or nothing of the kind the engine reads.
        TraceError: a recorded reference that is damaged or unfinished.
    """
    name = engine_name(spec)
    if name == "kld":
        from quantvane.store.kld_file import KldFile  # it brings numba

        KldFile.open(spec.path).close()
    elif name == "llamacpp":
        for shard in gguf_shards(spec.path):
            check_gguf(shard)
    elif name == "hf" and not (Path(spec.path) / "config.json").is_file():
        raise ModelFileError(
            f"no Hugging Face model in '{spec.path}'",
            expected="a directory with config.json and safetensors files",
            got="no config.json" if Path(spec.path).is_dir() else "no directory",
            remedy="check the path; models are read from disk only",
        )
    elif name == "hf" and (weights := dict(spec.settings).get("weights")):
        for shard in gguf_shards(weights):
            check_gguf(shard)
    elif name == "trace":
        read_manifest(spec.path)


def open_engine(spec: ModelSpec, context: int) -> Engine:
    """Load the model of a spec for windows of up to ``context`` tokens."""
    return ENGINES[engine_name(spec)](spec.path, dict(spec.settings), context)


def floor_variation(spec: ModelSpec) -> dict[str, str]:
    """The setting changed for the standing noise floor: one that ought to change nothing but rounding.

    On llama.cpp threads, batch and ubatch sizes often change not one bit (docs/engines.md), so a floor made of
    them would be a comforting 0. Another attention kernel computes the same thing in another order: that
    is the smallest change a deployment makes without a thought. For transformers it is the same.
    """
    given = dict(spec.settings)
    name = engine_name(spec)
    if name == "llamacpp":
        cache = {given.get("cache_type_k", "f32"), given.get("cache_type_v", "f32")}
        if not cache <= {"f32", "f16", "bf16"}:
            return {"n_ubatch": "32"}  # a quantized cache needs flash attention
        off = given.get("flash_attn", "off" if cache == {"f32"} else "auto") == "off"
        return {"flash_attn": "on" if off else "off"}
    if name == "hf":
        # Some architectures have no fused attention: one that was told to do without it keeps to that.
        return {"attn": "eager"} if given.get("attn", "sdpa") == "sdpa" else {"batch_tokens": "64"}
    return {"jitter": "1e-6"}
