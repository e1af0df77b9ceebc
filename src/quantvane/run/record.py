"""Recording a reference: the spec, the command's own side, and what it hands back."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantvane.engines.registry import RECORDED, check_model, engine_name
from quantvane.errors import OutputError, QuantvaneError, SpecError
from quantvane.run.local import OnEvent, run_worker
from quantvane.run.plan import CompareSpec, check_fields
from quantvane.spec import ModelSpec, canonical_hash
from quantvane.store.atomic import make_directory, read_json, to_json
from quantvane.store.frames import last_unit
from quantvane.store.trace_manifest import ROWS, read_manifest

__all__ = ["FILES", "STORES", "RecordSpec", "Recording", "record"]

STORES = ("hidden", "logits", "kld")
FILES = (
    "manifest.json", "windows.parquet", "vocabulary.parquet", "samples.json", "head.npy", "bias.npy", ROWS,
    "journal", "tokens",
)  # fmt: skip
"""Everything a recording puts into its directory; journal and tokens only while the noise floor is measured."""


@dataclass(frozen=True, slots=True)
class RecordSpec:
    """Everything that decides a trace's content.

    Attributes:
        reference: the model. texts, protocol, context, stride, chunks, template: see `CompareSpec`.
        store: one of `STORES`. dtype: type of stored logits, "f32" or "f16".
        floor_windows: windows spent on the standing noise floor; 0 for none.
    """

    reference: ModelSpec
    texts: tuple[str, ...]
    protocol: str = "llama-perplexity"
    context: int = 512
    stride: int = 256
    chunks: int | None = None
    template: str | None = None
    store: str = "hidden"
    dtype: str = "f32"
    floor_windows: int = 4

    def __post_init__(self) -> None:
        self.as_compare()  # it checks what the two have in common
        checks = (
            (self.store in STORES, "unknown kind of recording", "one of " + ", ".join(STORES), self.store),
            (self.dtype in ("f32", "f16"), "unknown type of logits", "f32 or f16", self.dtype),
            (
                self.store != "kld" or (self.protocol == "llama-perplexity" and len(self.texts) == 1),
                "llama.cpp's base file holds one text cut as its own tool cuts it",
                "--protocol llama-perplexity and one --text",
                f"{self.protocol}, {len(self.texts)} texts",
            ),
        )
        check_fields(checks, "record")

    def as_compare(self) -> CompareSpec:
        """The spec that cuts the same windows and measures the same noise floor."""
        return CompareSpec(
            reference=self.reference, candidates=(self.reference,), names=(self.reference.stem,), texts=self.texts,
            protocol=self.protocol, context=self.context, stride=self.stride, chunks=self.chunks,
            template=self.template, floor_windows=self.floor_windows,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "reference": self.reference.text}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RecordSpec:
        return cls(**{**data, "reference": ModelSpec.parse(data["reference"]), "texts": tuple(data["texts"])})

    @property
    def hash(self) -> str:
        return canonical_hash(self.to_dict())


@dataclass(frozen=True, slots=True)
class Recording:
    """A finished recording.

    Attributes:
        path: the trace's directory, or the base file. summary: the JSON document of ``record --json``.
    """

    path: Path
    summary: dict[str, Any]

    def to_json(self) -> str:
        """The JSON document as text."""
        return to_json(self.summary)


def record(
    ref: str,
    *,
    text: Sequence[str] | str,
    out: str | Path,
    store: str = "hidden",
    context: int = 512,
    settings: dict[str, str] | None = None,
    on_event: OnEvent = lambda event: None,
    **options: Any,
) -> Recording:
    """Record a reference's pass over a corpus, to measure candidates later without it.

    Args:
        ref: model spec. text: one path or several. context: window length in tokens.
        out: directory of the trace, or the file to write with ``store="kld"``. An interrupted recording continues.
        store: "hidden" keeps hidden states and the head (logits, where those cannot reproduce the model's own),
            "logits" keeps logits, "kld" writes llama.cpp's ``--kl-divergence-base`` file, bit for bit.
        settings: engine settings the spec does not set itself.
        options: further fields of `RecordSpec`: protocol, stride, chunks, template, dtype, floor_windows.

    Raises:
        QuantvaneError: see `quantvane.errors`.
    """
    reference = ModelSpec.parse(str(ref)).with_defaults(settings or {})
    if engine_name(reference) in RECORDED:
        raise SpecError(
            "a recording cannot be recorded again", expected="a model", got=reference.text, remedy="use it as it is"
        )
    check_model(reference)
    texts = (text,) if isinstance(text, str) else tuple(text)
    spec = RecordSpec(reference, texts, context=context, store=store, **{"stride": context // 2, **options})
    place = Path(out)
    request = {"task": "record", "spec": spec.to_dict(), "out": str(place)}
    if store == "kld":
        return Recording(place, _record_base_file(place, request, on_event))
    _check_place(place)
    make_directory(place)
    try:
        run_worker(request, on_event)
    except QuantvaneError:
        _discard_if_empty(place)
        raise
    return Recording(place, _summary(place, read_manifest(place)))


def _record_base_file(
    place: Path, request: dict[str, Any], on_event: OnEvent
) -> dict[str, Any]:
    if place.is_dir():
        raise OutputError(
            f"'{place}' is a directory",
            expected="the path of the file to write",
            got="a directory",
            remedy="give --out a file name such as base.kld",
        )
    if place.exists():
        with place.open("rb") as file:
            if file.read(8) != b"_logits_":
                raise OutputError(
                    f"'{place}' exists and is no base file",
                    expected="a free path, or a base file to replace",
                    got=f"{place.stat().st_size} other bytes",
                    remedy="choose another --out",
                )
    make_directory(place.parent)
    result: dict[str, Any] = {}

    def watch(event: dict[str, Any]) -> None:
        if event["event"] == "recorded":
            result.update(event["summary"])
        on_event(event)

    run_worker(request, watch)
    return {**result, "path": str(place), "bytes": {"file": place.stat().st_size}}


def _summary(place: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    sizes = {name.partition(".")[0]: entry["bytes"] for name, entry in manifest["files"].items()}
    sizes["rows"] = (place / ROWS).stat().st_size
    keys = ("schema", "protocol", "requested", "kind", "reason", "stored", "tokens", "verification", "noise_floor")
    return {"path": str(place), **{k: manifest[k] for k in keys}, "reference": manifest["reference"], "bytes": sizes}


def _check_place(place: Path) -> None:
    if not place.is_dir():
        return
    # Hidden names are half-written temporaries.
    foreign = sorted(p.name for p in place.iterdir() if p.name not in FILES and not p.name.startswith("."))
    path = place / "manifest.json"
    other = path.exists() and read_json(path).get("command") != "record"
    if foreign or other:
        raise OutputError(
            f"'{place}' holds files of something else",
            expected="an empty directory, or a trace",
            got=", ".join(foreign[:5]) or "another command's manifest",
            remedy="choose another --out",
        )


def _discard_if_empty(place: Path) -> None:
    """After a failure in the first unit there is nothing to continue: leave nothing behind."""
    if last_unit(place / ROWS) > 0:
        return
    for name in FILES:
        shutil.rmtree(place / name, ignore_errors=True)
        with suppress(OSError):
            (place / name).unlink()
    with suppress(OSError):
        place.rmdir()
