"""llama.cpp's base file opened as an engine: its windows only, log-probabilities rounded to 16 bits.

The file has no vocabulary, so a candidate's is borrowed: the setting ``vocabulary`` names its model spec.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from quantvane.engines.base import Engine, EngineInfo, Vocabulary, Weights
from quantvane.engines.gguf_file import sha256_file
from quantvane.engines.settings import Setting, read_settings
from quantvane.errors import SpecError, TokenizerMismatchError, TraceError
from quantvane.store.kld_file import KldFile
from quantvane.store.kld_rows import decode_rows
from quantvane.types import Window

__all__ = ["SETTINGS", "KldEngine", "open_kld"]

SETTINGS: dict[str, Setting] = {
    "vocabulary": Setting("", str, "model spec whose vocabulary and tokenizer the file is read with"),
}
ROUNDING = 3.7e-5
"""Largest KLD per token, either sign, that the 16-bit rounding alone gives llama.cpp's own statistic."""

_BLOCK_BYTES = 64 << 20
_SAMPLE_TOKENS = 4096
_CLIP_SCALE = np.float32(16 * (1 - 1e-5) / 65535)
_BELOW = np.float32(16)


class KldEngine:
    """A base file. Use `open_kld`.

    Attributes:
        name: the file's stem. protocol: None; the file does not say what text it was made of.
        windows: its chunks. tokens: (n_chunk, n_ctx) the text's own tokens.
        samples: the beginning of the text, put together again from its tokens.
    """

    chat_template: str | None = None
    protocol = None

    def __init__(
        self, file: KldFile, open_tokenizer: Callable[[], Engine], tokenizer: Engine, settings: dict[str, Any]
    ) -> None:
        self._file, self._open_tokenizer = file, open_tokenizer
        self.name = file.path.stem
        self.vocabulary: Vocabulary = tokenizer.vocabulary
        if len(self.vocabulary) != file.header.n_vocab:
            raise TokenizerMismatchError(
                f"base file '{file.path}' was made with a vocabulary of another size",
                expected=f"{file.header.n_vocab} entries",
                got=f"{len(self.vocabulary)} entries in '{settings['vocabulary']}'",
                remedy="compare candidates of the model the base file was made from",
            )
        bos = self.vocabulary.bos if self.vocabulary.add_bos else None
        self.tokens = file.tokens
        self.windows: tuple[Window, ...] = tuple(file.windows(bos))
        self._sample, self._sample_tokens = self._read_back(tokenizer)
        self.samples: tuple[str, ...] = (self._sample,)
        self._bytes = {int(t): tokenizer.token_bytes(int(t)) for t in np.unique(self._sample_tokens)}
        self.noise_floor: dict[str, Any] = {"kld_mean": ROUNDING, "how": self._floor_words()}
        self.info = EngineInfo(
            engine="kld",
            build="unknown: llama.cpp's base file names no build",
            device="unknown",
            settings=settings,
            fingerprint=sha256_file(file.path),
            architecture="unknown",
            capabilities=frozenset({"logits"}),
            weights=Weights(0, 0, 0),
            context_trained=0,
        )

    def _read_back(self, tokenizer: Engine) -> tuple[str, npt.NDArray[np.int32]]:
        """The text's beginning and the tokenizer's tokens for it, which must be nearly the file's own."""
        stored = self.tokens.ravel()[:_SAMPLE_TOKENS]
        own = stored[stored != self.vocabulary.bos]
        text = b"".join(tokenizer.token_bytes(int(t)) for t in own).decode(errors="ignore")
        again = tokenizer.tokenize(text)
        # A few differ where the text's end or a special token was cut; another vocabulary of the same size
        # shares next to none.
        shared = sum((Counter(own.tolist()) & Counter(again.tolist())).values())
        if shared < 0.9 * len(own):
            raise TokenizerMismatchError(
                f"the tokens of base file '{self._file.path}' are not of this vocabulary",
                expected="the same tokens again when the text they stand for is tokenized",
                got=f"{shared} of {len(own)} tokens; the text would be {text[:60]!r}",
                remedy="compare candidates of the model the base file was made from",
            )
        return text, again

    def _floor_words(self) -> str:
        """What the file's own coarseness does; its reference's engine noise is not in it."""
        words = (
            "not measured, for the base file records none. The figure is the largest KLD of a model against itself "
            "that the file's 16-bit rounding gives a token in llama.cpp's own statistics; what lies 16 nats or more "
            "below the mode is lost besides, about 1e-5 on average"
        )
        clipped = total = 0
        for window in self.windows:
            scale, _, codes = self.base_rows(window)
            seen = codes[np.arange(len(scale)), window.targets[window.scored]]
            clipped += int(((seen == 0) & (scale >= _CLIP_SCALE)).sum())
            total += len(scale)
        if clipped:
            words += (
                f"; {clipped} of {total} observed tokens lie there: the reference's perplexity is a lower bound and "
                "every perplexity ratio against it an upper bound"
            )
        return words

    def tokenize(self, text: str, *, special: bool = False, add_bos: bool = False) -> npt.NDArray[np.int32]:
        """See `Engine.tokenize`; for another text than the sample the model is opened again."""
        if text == self._sample and not add_bos:
            return self._sample_tokens
        model = self._open_tokenizer()
        try:
            return model.tokenize(text, special=special, add_bos=add_bos)
        finally:
            model.close()

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token of the sample; of others its text as stored."""
        return self._bytes.get(token, (self.vocabulary.pieces[token] or "").encode())

    def base_rows(
        self, window: Window
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.uint16]]:
        """Scale (m,), smallest log-probability (m,) and codes (m, V) of a window, as stored.

        Raises:
            TraceError: not a window of this file, or damaged rows.
        """
        known = 0 <= window.index < len(self.windows)
        if not known or not np.array_equal(self.windows[window.index].tokens, window.tokens):
            raise TraceError(
                f"window {window.index} is not in base file '{self._file.path}'",
                expected="windows as the file gives them",
                got="other tokens",
                remedy="record the reference again for this text",
            )
        return self._file.rows(window.index)

    def logits(self, windows: Sequence[Window]) -> Iterator[npt.NDArray[np.float32]]:
        """Decoded log-probabilities (rows, V), in blocks of at most 64 MB or one row.

        In a row that spans the full 16 nats, code 0 says "16 or more below the mode" and not "16 below": taken
        literally over a large vocabulary it would hold up to V·e⁻¹⁶ of probability that the model never gave.
        Such entries are put another 16 nats lower, where they weigh nothing (the peer leaves them out of its
        sum), except for the observed token, whose stored value is a bound that perplexities are made of.
        """
        most = max(1, _BLOCK_BYTES // (4 * len(self.vocabulary)))
        for window in windows:
            scale, low, codes = self.base_rows(window)
            targets = window.targets[window.scored]
            for start in range(0, len(scale), most):
                part = slice(start, start + most)
                rows = decode_rows(scale[part], low[part], codes[part])
                here = np.arange(len(rows))
                seen = rows[here, targets[part]].copy()
                clipped = (codes[part] == 0) & (scale[part] >= _CLIP_SCALE)[:, None]
                np.subtract(rows, _BELOW, out=rows, where=clipped)
                rows[here, targets[part]] = seen
                yield rows

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def open_kld(path: str, settings: Mapping[str, Any], open_model: Callable[[str], Engine]) -> KldEngine:
    """Open a base file with a candidate's vocabulary.

    Args:
        open_model: opens the model spec named by the setting ``vocabulary``; the model is closed again here.

    Raises:
        TraceError: see `KldFile.open`. TokenizerMismatchError: the file's tokens are of another vocabulary.
        SpecError: no vocabulary named.
    """
    values = read_settings("kld", SETTINGS, settings)
    if not values["vocabulary"]:
        raise SpecError(
            f"base file '{path}' has no vocabulary of its own",
            expected="?vocabulary=MODEL_SPEC",
            got="none",
            remedy="use it as the reference of compare, which names the first candidate",
        )
    file = KldFile.open(path)
    tokenizer = open_model(values["vocabulary"])
    try:
        return KldEngine(file, lambda: open_model(values["vocabulary"]), tokenizer, values)
    finally:
        tokenizer.close()
