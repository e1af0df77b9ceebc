"""What is to be measured, as frozen records with a canonical hash: model specs and protocols."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from quantvane.errors import ProtocolMismatchError, SpecError

__all__ = ["PROTOCOLS", "CorpusId", "ModelSpec", "Protocol", "canonical_hash", "same_protocol", "slug"]

PROTOCOLS = ("llama-perplexity", "sliding", "chat")


def canonical_hash(data: Any) -> str:
    """SHA-256 of the JSON form with sorted keys and no spaces; hexadecimal."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def slug(name: str) -> str:
    """A file name made of a candidate's name: letters, digits and ``._=+-``; everything else becomes ``_``."""
    return re.sub(r"[^A-Za-z0-9._=+-]+", "_", name).strip("._") or "model"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """``PATH_OR_URL[@ENGINE][?setting=value&…]``: a model under engine settings.

    The same weights under other settings are another model. ``@`` and ``?`` inside a path are written
    percent-encoded (``%40``, ``%3F``).

    Attributes:
        path: local path or URL, decoded.
        engine: registry name; "" until an engine was chosen by the path.
        settings: (key, value) pairs in the order given, values as text.
    """

    path: str
    engine: str = ""
    settings: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> ModelSpec:
        """Read a model spec.

        Raises:
            SpecError: empty path, a setting without ``=``, a setting given twice.
        """
        body, _, query = text.partition("?")
        is_url = "://" in body
        head, at, engine = body.rpartition("@")
        # "user@host" belongs to a URL's authority, not to us: an engine name has no dot, slash or colon.
        if not at or (is_url and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", engine)) or "/" in engine:
            head, engine = body, ""
        if not head:
            raise SpecError(
                f"model spec '{text}' has no path",
                expected="PATH_OR_URL[@ENGINE][?setting=value&…]",
                got=repr(text),
                remedy="name a GGUF file, a model directory or a server URL",
            )
        pairs: list[tuple[str, str]] = []
        for part in query.split("&") if query else []:
            key, eq, value = part.partition("=")
            if not eq or not key:
                raise SpecError(
                    f"setting '{part}' of model spec '{text}' has no value",
                    expected="setting=value, several joined by &",
                    got=repr(part),
                    remedy="write for example ?n_threads=2&cache_type_k=f16 (quote it for the shell)",
                )
            pairs.append((unquote(key), unquote(value)))
        keys = [key for key, _ in pairs]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise SpecError(
                f"setting '{twice[0]}' is given twice in '{text}'",
                expected="every setting once",
                got=query,
                remedy="leave one of them out",
            )
        return cls(head if is_url else unquote(head), engine, tuple(pairs))

    @property
    def text(self) -> str:
        """The canonical spelling; `parse` of it gives an equal spec."""
        path = self.path if "://" in self.path else quote(self.path, safe="/ ._-+~:,()[]")
        query = "&".join(f"{quote(k, safe='')}={quote(v, safe='')}" for k, v in self.settings)
        return path + (f"@{self.engine}" if self.engine else "") + (f"?{query}" if query else "")

    @property
    def stem(self) -> str:
        """The model's short name: file name without ``.gguf``, directory name, or host of a URL.

        A directory that runs with a file's weights (setting ``weights``) goes by the file's name.
        """
        if "://" in self.path:
            return urlsplit(self.path).netloc
        path = dict(self.settings).get("weights") or self.path
        name = PurePosixPath(path.rstrip("/")).name or path
        return name[: -len(".gguf")] if name.lower().endswith(".gguf") else name

    @property
    def name(self) -> str:
        """The stem with its settings: what tables show when the stem alone is ambiguous."""
        return self.stem + (
            "?" + "&".join(f"{k}={v}" for k, v in self.settings) if self.settings else ""
        )

    def with_defaults(self, settings: dict[str, str]) -> ModelSpec:
        """Settings put under those already given, for keys not given."""
        given = {key for key, _ in self.settings}
        extra = tuple((k, v) for k, v in settings.items() if k not in given)
        return replace(self, settings=self.settings + extra)


@dataclass(frozen=True, slots=True)
class CorpusId:
    """One ``--text`` file: its name and the SHA-256 of its bytes."""

    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Protocol:
    """How tokens were chosen and scored. Results with different hashes are never put in one table.

    Attributes:
        name: one of `PROTOCOLS`.
        corpora: the texts.
        tokenizer: hash of the reference's token table and of the token ids the corpora became.
        context: window length in tokens. stride: distance between window starts, in tokens.
        chunks: largest number of windows taken from each corpus; None for all.
        bos: how BOS enters a window: "replace-first", "prefix", "template" or "none".
        scored: which positions are scored, in words.
        template: SHA-256 of the chat template, or "".
    """

    name: str
    corpora: tuple[CorpusId, ...]
    tokenizer: str
    context: int
    stride: int
    chunks: int | None
    bos: str
    scored: str
    template: str = ""
    version: int = field(default=1)

    @property
    def hash(self) -> str:
        return canonical_hash(asdict(self))

    def to_dict(self) -> dict[str, Any]:
        """All fields, with the hash first."""
        return {"hash": self.hash, **asdict(self)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Protocol:
        known = {f.name for f in fields(cls)}
        values = {k: v for k, v in data.items() if k in known}
        values["corpora"] = tuple(CorpusId(**c) for c in data["corpora"])
        return cls(**values)

    def differences(self, other: Protocol) -> dict[str, tuple[Any, Any]]:
        """Field → (ours, theirs) where they differ."""
        mine, theirs = asdict(self), asdict(other)
        return {key: (mine[key], theirs[key]) for key in mine if mine[key] != theirs[key]}


def same_protocol(first: Protocol, second: Protocol, what: str) -> None:
    """Refuse to put results of two protocols together.

    Raises:
        ProtocolMismatchError: naming the fields that differ.
    """
    differing = first.differences(second)
    if differing:
        raise ProtocolMismatchError(
            f"{what} were measured under different protocols",
            expected="; ".join(f"{k} = {a}" for k, (a, _) in differing.items()),
            got="; ".join(f"{k} = {b}" for k, (_, b) in differing.items()),
            remedy="measure both with the same texts, tokenizer, context and scoring",
        )
