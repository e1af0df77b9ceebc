"""Plain texts and JSONL documents → windows, under the ``llama-perplexity`` and ``sliding`` protocols."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantvane.engines.base import Engine
from quantvane.errors import CorpusError
from quantvane.spec import CorpusId
from quantvane.types import Window

__all__ = ["CUTTERS", "Corpus", "WindowRule", "peer_windows", "read_corpus", "renumber", "sliding_windows"]

Tokens = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Corpus:
    """One ``--text`` file: its identity and its documents, byte for byte (line ends are kept as they are)."""

    id: CorpusId
    documents: tuple[str, ...]
    raw: str


@dataclass(frozen=True, slots=True)
class WindowRule:
    """How documents become windows.

    Attributes:
        context: tokens of a window. stride: tokens between window starts.
        chunks: most windows taken from one corpus; None for all.
    """

    context: int
    stride: int
    chunks: int | None


def read_corpus(path: str) -> Corpus:
    """Read a UTF-8 text (one document) or a ``.jsonl`` file of ``{"text": …}`` (a document a line).

    Raises:
        CorpusError: missing, empty, not UTF-8, or a line that is no such object.
    """
    place = Path(path)
    try:
        data = place.read_bytes()
    except OSError as problem:
        raise CorpusError(
            f"cannot read the text '{path}'",
            expected="a UTF-8 text or JSONL file",
            got=problem.strerror or str(problem),
            remedy="check the path given to --text",
        ) from None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise CorpusError(
            f"'{path}' is not UTF-8",
            expected="UTF-8",
            got=f"byte 0x{data[problem.start]:02x} at offset {problem.start}",
            remedy="convert it, for example: iconv -f latin1 -t utf-8",
        ) from None
    if not text.strip():
        raise CorpusError(f"'{path}' is empty", expected="text", got=f"{len(data)} bytes", remedy="give a text")
    identity = CorpusId(place.name, hashlib.sha256(data).hexdigest())
    if place.suffix.lower() != ".jsonl":
        return Corpus(identity, (text,), text)
    documents = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as problem:
            raise _bad_line(path, number, str(problem)) from None
        if isinstance(entry, dict) and "messages" in entry:
            documents.append("")  # a conversation: only the chat protocol reads it
            continue
        if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
            raise _bad_line(path, number, line[:60])
        documents.append(entry["text"])
    return Corpus(identity, tuple(documents), text)


def _bad_line(path: str, number: int, got: str) -> CorpusError:
    return CorpusError(
        f"line {number} of '{path}' is not a document",
        expected='a JSON object with a string "text" (or "messages" under --protocol chat)',
        got=got,
        remedy="mend or remove the line",
    )


def _too_short(corpus: Corpus, needed: int, tokens: int) -> CorpusError:
    return CorpusError(
        f"'{corpus.id.name}' is shorter than one window",
        expected=f"at least {needed} tokens",
        got=f"{tokens} tokens",
        remedy=f"give a longer text or a smaller --ctx (at most {max(tokens, 0)})",
    )


def peer_windows(engine: Engine, corpus: Corpus, rule: WindowRule, number: int) -> list[Window]:
    """The windows of llama.cpp's ``llama-perplexity``: same tokens, BOS rule and scored half.

    Each document is tokenized with BOS in front where the model adds it (one trailing newline dropped) and cut
    into windows of ``context`` tokens; the rest is left out. The first token of every window is then replaced
    by BOS where the model adds it. Positions context/2 … context−2 are scored, each on the token after it.
    """
    n = rule.context
    vocabulary = engine.vocabulary
    scored = np.zeros(n, bool)
    scored[n // 2 : n - 1] = True
    windows: list[Window] = []
    longest = 0
    for document, text in enumerate(corpus.documents):
        tokens = engine.tokenize(text.removesuffix("\n"), add_bos=vocabulary.add_bos)
        longest = max(longest, len(tokens))
        for start in range(0, len(tokens) - n + 1, n):
            if rule.chunks is not None and len(windows) == rule.chunks:
                return windows
            fed = tokens[start : start + n].copy()
            targets = np.append(fed[1:], fed[:1])
            if vocabulary.add_bos:
                fed[0] = vocabulary.bos
            windows.append(Window(fed, targets, scored, len(windows), number, document))
    if not windows:
        raise _too_short(corpus, n, longest)
    return windows


def sliding_windows(engine: Engine, corpus: Corpus, rule: WindowRule, number: int) -> list[Window]:
    """Every token of every document scored once, with at least context − stride tokens before it.

    Each window but a document's first scores only its last ``stride`` targets; the first scores all of its own
    (from BOS on, where the model adds it; else from the second token on). Documents of fewer than 2 tokens have
    nothing to score.
    """
    n, stride = rule.context, rule.stride
    windows: list[Window] = []
    for document, text in enumerate(corpus.documents):
        tokens = engine.tokenize(text, add_bos=engine.vocabulary.add_bos)
        done = 0  # targets up to this index are scored
        while done < len(tokens) - 1:
            if rule.chunks is not None and len(windows) == rule.chunks:
                return windows
            end = min(len(tokens) - 1, n if done == 0 else done + stride)
            start = max(0, end - n)
            fed = tokens[start:end].copy()
            targets = tokens[start + 1 : end + 1].copy()
            scored = np.arange(start, end) >= done
            windows.append(Window(fed, targets, scored, len(windows), number, document))
            done = end
    if not windows:
        raise _too_short(corpus, 2, 0)
    return windows


CUTTERS: dict[str, Callable[[Engine, Corpus, WindowRule, int], list[Window]]] = {
    "llama-perplexity": peer_windows,
    "sliding": sliding_windows,
}


def renumber(groups: Sequence[Sequence[Window]]) -> list[Window]:
    """Windows of several corpora in one list, numbered through."""
    flat = [window for group in groups for window in group]
    return [replace(window, index=index) for index, window in enumerate(flat)]
