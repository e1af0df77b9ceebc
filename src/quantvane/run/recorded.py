"""A recorded reference decides the protocol: what the command gave may repeat it and not contradict it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from quantvane.corpora.text import read_corpus
from quantvane.errors import CorpusError, ProtocolMismatchError, SpecError
from quantvane.spec import ModelSpec, Protocol
from quantvane.store.kld_file import KldFile
from quantvane.store.trace_manifest import read_manifest

__all__ = ["PROTOCOL_OPTIONS", "adopt"]

PROTOCOL_OPTIONS = ("protocol", "context", "stride", "chunks", "template")


def adopt(
    engine: str, reference: ModelSpec, candidates: Sequence[ModelSpec], texts: Sequence[str], given: Mapping[str, Any]
) -> tuple[ModelSpec, dict[str, Any]]:
    """The reference's full spec, and the protocol options it was recorded under.

    Args:
        engine: "trace" or "kld". given: `PROTOCOL_OPTIONS` as the command gave them; None where it did not.

    Raises:
        ProtocolMismatchError: an option or a text that contradicts the recording.
        TraceError: a recording that is damaged or unfinished.
    """
    if engine == "trace":
        options, shown = _of_trace(reference, texts, given.get("template"))
        full = replace(reference, engine=engine)
    else:
        options, shown = _of_base_file(reference, candidates, given.get("chunks"))
        full = replace(reference, engine=engine, settings=(("vocabulary", candidates[0].text),))
        if len(texts) > 1:
            raise SpecError(
                "a base file holds one text", expected="at most one --text", got=str(len(texts)), remedy="leave it out"
            )
    differing = [k for k in PROTOCOL_OPTIONS if k in shown and given.get(k) not in (None, shown[k])]
    if differing:
        raise ProtocolMismatchError(
            f"the reference '{reference.path}' was recorded under another protocol",
            expected="; ".join(f"{k} = {shown[k]}" for k in differing),
            got="; ".join(f"{k} = {given[k]}" for k in differing),
            remedy="leave these options out, or record the reference again with them",
        )
    return full, options


def _of_trace(
    reference: ModelSpec, texts: Sequence[str], template: str | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    manifest = read_manifest(reference.path)
    protocol = Protocol.from_dict(manifest["protocol"])
    spec = manifest["spec"]
    options = {k: spec[k] for k in ("protocol", "context", "stride", "chunks")}
    recorded = {c.sha256: c.name for c in protocol.corpora}
    for path in texts:
        identity = read_corpus(path).id
        if identity.sha256 not in recorded:
            raise ProtocolMismatchError(
                f"'{path}' is not a text the reference was recorded on",
                expected="; ".join(f"{name} (SHA-256 {sha[:16]}…)" for sha, name in recorded.items()),
                got=f"{identity.name} (SHA-256 {identity.sha256[:16]}…)",
                remedy="leave --text out: the trace holds its windows",
            )
    if template is not None:
        try:
            sha = hashlib.sha256(Path(template).read_bytes()).hexdigest()
        except OSError as problem:
            raise CorpusError(
                f"cannot read the chat template '{template}'",
                expected="a Jinja template",
                got=str(problem),
                remedy="check the path given to --chat-template",
            ) from None
        if sha != protocol.template:
            raise ProtocolMismatchError(
                "the reference was recorded under another chat template",
                expected=f"SHA-256 {protocol.template[:16] or 'none'}",
                got=f"SHA-256 {sha[:16]}",
                remedy="leave --chat-template out",
            )
    return options, options


def _of_base_file(
    reference: ModelSpec, candidates: Sequence[ModelSpec], chunks: int | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    if not candidates:
        raise SpecError("there is nothing to compare", expected="at least one candidate", got="0")
    if reference.settings:
        raise SpecError("a base file has no settings", expected="a path alone", got=reference.text)
    with KldFile.open(reference.path) as file:
        context, held = file.header.n_ctx, file.header.n_chunk
    options = {"protocol": "llama-perplexity", "context": context, "stride": context // 2, "chunks": chunks}
    return options, {"protocol": "llama-perplexity", "context": context, "chunks": held, "template": None}
