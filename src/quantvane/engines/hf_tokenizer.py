"""Vocabulary, tokens and bytes of a Hugging Face tokenizer, under the rules of `Engine`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quantvane.engines.base import Vocabulary
from quantvane.errors import CapabilityError, DataError, ModelFileError

__all__ = ["HfTokenizer", "byte_alphabet"]


def byte_alphabet() -> dict[str, int]:
    """Character → byte of the byte-level alphabet (GPT-2).

    Printable Latin-1 bytes stand for themselves; the other 68 take the characters from U+0100 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


class HfTokenizer:
    """A tokenizer of the transformers library behind the four things an engine needs of it.

    Args:
        directory: a local model directory. n_vocab: rows of the model's head.

    Raises:
        ModelFileError: no tokenizer there, or one whose ids do not fit the model.
    """

    def __init__(self, directory: Path, n_vocab: int) -> None:
        from transformers import AutoTokenizer

        try:
            self._tok: Any = AutoTokenizer.from_pretrained(
                str(directory), local_files_only=True, trust_remote_code=False
            )
            table: dict[str, int] = self._tok.get_vocab()
        except Exception as problem:  # whatever the tokenizer's own code raises on damaged files
            raise ModelFileError(
                f"the tokenizer of '{directory}' cannot be loaded",
                expected="tokenizer.json and tokenizer_config.json, needing no code of their own",
                got=f"{type(problem).__name__}: {str(problem).strip()[:300]}",
                remedy="save the tokenizer into the model's directory (tokenizer.save_pretrained)",
            ) from None
        if not table or max(table.values()) >= n_vocab:
            raise ModelFileError(
                f"the tokenizer of '{directory}' does not fit its model",
                expected=f"ids below {n_vocab}, the rows of the head",
                got=f"ids up to {max(table.values(), default=-1)}",
                remedy="take tokenizer and model from the same source",
            )
        pieces: list[str | None] = [None] * n_vocab
        for piece, token in table.items():
            pieces[token] = piece
        self._added = {int(i): str(added.content) for i, added in self._tok.added_tokens_decoder.items()}
        bos, eos = self._tok.bos_token_id, self._tok.eos_token_id
        bos = -1 if bos is None else int(bos)
        with_special = self._tok("a", verbose=False)["input_ids"]
        self.vocabulary = Vocabulary(
            pieces=tuple(pieces),
            bos=bos,
            eos=-1 if eos is None else int(eos),
            add_bos=bool(with_special) and with_special[0] == bos,
        )
        self._bytes_of = byte_alphabet() if self._is_byte_level() else None

    @property
    def chat_template(self) -> str | None:
        """The template; where there are several, the one called "default"."""
        template = self._tok.chat_template
        if isinstance(template, dict):
            template = template.get("default")
        return str(template) if template else None

    def _is_byte_level(self) -> bool:
        backend = getattr(self._tok, "backend_tokenizer", None)
        if backend is not None:
            decoder = json.loads(backend.to_str()).get("decoder")
            if decoder is not None:
                return '"ByteLevel"' in json.dumps(decoder)
        # Without a decoder the table tells: Ġ is the byte-level space.
        return any(piece and piece.startswith("Ġ") for piece in self.vocabulary.pieces)

    def tokenize(self, text: str, *, special: bool, add_bos: bool) -> npt.NDArray[np.int32]:
        """See `Engine.tokenize`.

        What the tokenizer's own normalizer does to blanks stays: it is part of the model. (One made from
        SentencePiece may strip and collapse them, which llama.cpp does not do.)

        Raises:
            CapabilityError: BOS asked of a tokenizer that has none.
        """
        ids = self._tok(text, add_special_tokens=False, split_special_tokens=not special, verbose=False)[
            "input_ids"
        ]
        if add_bos:
            if self.vocabulary.bos < 0:
                raise CapabilityError(
                    "this tokenizer has no BOS token",
                    expected="a tokenizer with bos_token",
                    got="none",
                    remedy="tokenize without BOS, as the model itself does",
                )
            ids = [self.vocabulary.bos, *ids]
        return np.asarray(ids, dtype=np.int32)

    def token_bytes(self, token: int) -> bytes:
        """See `Engine.token_bytes`; b"" for rows that only pad the table.

        Raises:
            DataError: an id outside the vocabulary.
        """
        if not 0 <= token < len(self.vocabulary):
            raise DataError(
                "a token lies outside the vocabulary",
                expected=f"0 … {len(self.vocabulary) - 1}",
                got=str(token),
                remedy="tokenize with this model's own tokenizer",
            )
        if token in self._added:
            return self._added[token].encode()
        piece = self.vocabulary.pieces[token]
        if piece is None:
            return b""
        if self._bytes_of is not None:
            known = self._bytes_of
            return b"".join(bytes([known[c]]) if c in known else c.encode() for c in piece)
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return piece.replace("▁", " ").encode()
