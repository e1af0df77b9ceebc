"""Cohorts: candidates made of a reference by llama.cpp's quantizer, kept and reused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quantvane.engines.gguf_file import check_gguf, read_weights, sha256_file
from quantvane.engines.quantize import check_type
from quantvane.errors import OutputError
from quantvane.run.local import OnEvent, run_worker
from quantvane.store.atomic import make_directory, read_json, write_json
from quantvane.store.manifest import package_versions

__all__ = ["make_cohort", "make_imatrix"]


def make_cohort(
    reference: str,
    types: Sequence[str],
    out: Path,
    imatrix: str | None = None,
    on_event: OnEvent = lambda event: None,
) -> list[dict[str, Any]]:
    """Make (or reuse) one file a type in ``out``; returns a record per file, in the order asked for.

    A file is reused when ``cohort.json`` says it came from the same reference bytes, type, importance matrix
    and llama.cpp build, and its own bytes are still the same.

    Raises:
        SpecError, ModelFileError, EngineError, EngineCrashError, OutputError.
    """
    kinds = list(dict.fromkeys(check_type(kind, imatrix is not None) for kind in types))
    check_gguf(reference)
    make_directory(out)
    book = out / "cohort.json"
    held: dict[str, Any] = read_json(book)["files"] if book.exists() else {}
    source: dict[str, Any] = {
        "reference": sha256_file(reference),
        "imatrix": sha256_file(imatrix) if imatrix and Path(imatrix).is_file() else imatrix,
        "build": package_versions().get("llama-cpp-python", ""),
    }
    stem = _stem(reference) + ("-imatrix" if imatrix else "")
    records = []
    for kind in kinds:
        target = out / f"{stem}-{kind}.gguf"
        origin = {**source, "type": kind}
        known = held.get(target.name)
        fresh = known is not None and known["origin"] == origin and target.is_file()
        if not (fresh and known and sha256_file(target) == known["sha256"]):
            if target.exists() and known is None:
                raise OutputError(
                    f"'{target}' was not made here",
                    expected="an empty place or a file noted in cohort.json",
                    got="a file of unknown origin",
                    remedy="move it away, or name it as a candidate instead of quantizing",
                )
            on_event({"event": "loading", "model": target.name})
            request = {
                "task": "quantize", "source": reference, "target": str(target), "type": kind, "imatrix": imatrix,
            }  # fmt: skip
            run_worker(request, on_event)
            held[target.name] = {"origin": origin, "sha256": sha256_file(target)}
            write_json(book, {"schema": 1, "files": held})
        weights = read_weights(target)
        records.append(
            {
                "path": str(target),
                "name": target.stem,
                "type": kind,
                "sha256": held[target.name]["sha256"],
                "file_bytes": weights.file_bytes,
                "bits_per_weight": weights.bits_per_weight,
                "tensor_types": weights.types,
            }
        )
    return records


def make_imatrix(
    reference: str,
    text: str,
    target: Path,
    *,
    context: int = 512,
    chunks: int | None = None,
    on_event: OnEvent = lambda event: None,
) -> Path:
    """Make an importance matrix of a GGUF reference from a text; a file that is there is kept.

    Args:
        context: window in tokens. chunks: most windows; all by default.

    Raises:
        ModelFileError, CapabilityError, CorpusError, EngineCrashError, OutputError.
    """
    if not target.exists():
        check_gguf(reference)
        on_event({"event": "loading", "model": f"{reference} for the importance matrix"})
        request = {
            "task": "imatrix", "source": reference, "text": text, "target": str(target), "context": context,
            "chunks": chunks,
        }  # fmt: skip
        run_worker(request, on_event)
    return target


def _stem(reference: str) -> str:
    """The reference's name without the precision it ends in: ``m-f16.gguf`` gives ``m``."""
    stem = Path(reference).stem
    head, dash, last = stem.rpartition("-")
    return head if dash and last.lower() in ("f32", "f16", "bf16", "fp16", "fp32") else stem
