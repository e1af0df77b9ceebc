"""From a spec to windows: corpora tokenized once by the reference, candidates checked against it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantvane.corpora.text import CUTTERS, Corpus, WindowRule, read_corpus, renumber
from quantvane.engines.base import Engine
from quantvane.errors import CorpusError, TokenizerMismatchError
from quantvane.run.plan import CompareSpec
from quantvane.spec import Protocol
from quantvane.types import Window

__all__ = ["Prepared", "check_vocabulary", "prepare"]

_SCORED = {
    "llama-perplexity": "second half of each window, context/2 to context-2",
    "sliding": "every token once, with at least context-stride tokens before it",
    "chat": "assistant tokens and the token that closes the turn",
}
_SAMPLE = 20_000  # characters of each corpus on which two tokenizers are compared


@dataclass(frozen=True, slots=True)
class Prepared:
    """Windows of all corpora, numbered through, and the protocol they follow.

    Attributes:
        corpora: per corpus its name, number of windows and of scored tokens, and what was left out.
        samples: text and reference token ids on which a candidate's tokenizer is compared.
    """

    protocol: Protocol
    windows: tuple[Window, ...]
    corpora: tuple[dict[str, Any], ...]
    samples: tuple[str, ...]


def _tokenizer_hash(engine: Engine, windows: Sequence[Window]) -> str:
    digest = hashlib.sha256()
    for piece in engine.vocabulary.pieces:
        digest.update(b"\xff" if piece is None else piece.encode() + b"\x00")
    for window in windows:
        digest.update(window.tokens.tobytes())
        digest.update(window.targets.tobytes())
    return digest.hexdigest()


def _template(spec: CompareSpec, engine: Engine) -> str | None:
    if spec.template is None:
        return engine.chat_template
    try:
        return Path(spec.template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise CorpusError(
            f"cannot read the chat template '{spec.template}'",
            expected="a Jinja template in UTF-8",
            got=str(problem),
            remedy="check the path given to --chat-template",
        ) from None


def _cut(
    spec: CompareSpec, engine: Engine, corpus: Corpus, number: int, template: str | None
) -> tuple[list[Window], dict[str, Any]]:
    if spec.protocol == "chat":
        from quantvane.corpora.chat import chat_windows

        chat = chat_windows(
            engine, corpus.raw, context=spec.context, template=template, corpus=number, name=corpus.id.name
        )
        windows = list(chat.windows)
        return windows[: spec.chunks], {"conversations": chat.report.to_dict()}
    rule = WindowRule(spec.context, spec.stride, spec.chunks)
    return CUTTERS[spec.protocol](engine, corpus, rule, number), {}


def prepare(spec: CompareSpec, engine: Engine) -> Prepared:
    """Read, tokenize and cut the corpora.

    Raises:
        CorpusError: a text that is missing, unreadable or too short.
    """
    corpora = [read_corpus(path) for path in spec.texts]
    template = _template(spec, engine) if spec.protocol == "chat" else None
    cut = [_cut(spec, engine, corpus, number, template) for number, corpus in enumerate(corpora)]
    windows = renumber([group for group, _ in cut])
    rows = tuple(
        {
            "name": corpus.id.name,
            "windows": len(group),
            "documents": len({w.document for w in group}),
            "tokens": int(sum(np.count_nonzero(w.scored) for w in group)),
            **extra,
        }
        for corpus, (group, extra) in zip(corpora, cut, strict=True)
    )
    add_bos = engine.vocabulary.add_bos
    bos = "template" if spec.protocol == "chat" else "none" if not add_bos else (
        "replace-first" if spec.protocol == "llama-perplexity" else "prefix"
    )  # fmt: skip
    protocol = Protocol(
        name=spec.protocol,
        corpora=tuple(corpus.id for corpus in corpora),
        tokenizer=_tokenizer_hash(engine, windows),
        context=spec.context,
        stride={"llama-perplexity": spec.context, "sliding": spec.stride}.get(spec.protocol, 0),
        chunks=spec.chunks,
        bos=bos,
        scored=_SCORED[spec.protocol],
        template=hashlib.sha256(template.encode()).hexdigest() if template else "",
    )
    return Prepared(protocol, tuple(windows), rows, tuple(c.raw[:_SAMPLE] for c in corpora))


def check_vocabulary(reference: Engine, candidate: Engine, name: str, samples: Sequence[str]) -> None:
    """Refuse a candidate whose token table or tokenizer differs from the reference's.

    Padding rows count as equal to anything: converters fill them as they like and no text reaches them.

    Raises:
        TokenizerMismatchError: showing the first difference.
    """
    ours, theirs = reference.vocabulary, candidate.vocabulary
    remedy = "compare models of one family only; KL divergence needs one vocabulary"
    if len(ours) != len(theirs):
        raise TokenizerMismatchError(
            f"'{name}' has a vocabulary of another size than the reference",
            expected=f"{len(ours)} entries",
            got=f"{len(theirs)} entries; first difference: {_first_difference(ours.pieces, theirs.pieces)}",
            remedy=remedy,
        )
    difference = _first_difference(ours.pieces, theirs.pieces)
    if difference:
        raise TokenizerMismatchError(
            f"'{name}' has another vocabulary than the reference",
            expected="the same token at every id",
            got=difference,
            remedy=remedy,
        )
    for text in samples:
        a, b = reference.tokenize(text), candidate.tokenize(text)
        if not np.array_equal(a, b):
            at = next(
                (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
            )
            raise TokenizerMismatchError(
                f"'{name}' cuts the text into other tokens than the reference",
                expected=f"token {at} = {_show(reference, a, at)}",
                got=f"token {at} = {_show(candidate, b, at)}",
                remedy="the files' merges or pre-tokenizer differ; convert both with the same tool",
            )


def _first_difference(ours: Sequence[str | None], theirs: Sequence[str | None]) -> str:
    for index, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        if a is not None and b is not None and a != b:
            return f"id {index} is {a!r} in the reference, {b!r} in the candidate"
    if len(ours) != len(theirs):
        longer, which = (ours, "reference") if len(ours) > len(theirs) else (theirs, "candidate")
        index = min(len(ours), len(theirs))
        return f"id {index} is {longer[index]!r} in the {which} and missing in the other"
    return ""


def _show(engine: Engine, ids: Any, at: int) -> str:
    return f"{int(ids[at])} {engine.token_bytes(int(ids[at]))!r}" if at < len(ids) else "the end of the text"
