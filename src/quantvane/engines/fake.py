"""A deterministic engine without a model: byte tokens and logits from a hash of the context.

It exists for tests and for trying the commands: ``name@fake?vocab=300&seed=1&noise=0.05``. The reference's
logits depend on the last two tokens and the seed; ``noise`` adds a fixed perturbation of its own, scaled.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from quantvane.engines.base import EngineInfo, Vocabulary, Weights
from quantvane.engines.settings import Setting, integer, number, read_settings
from quantvane.errors import EngineError
from quantvane.types import Window

__all__ = ["SETTINGS", "FakeEngine", "open_fake"]

SETTINGS: dict[str, Setting] = {
    "vocab": Setting(260, integer(258, 200_000), "entries of the vocabulary"),
    "seed": Setting(0, integer(0), "seed of the logits"),
    "noise": Setting(0.0, number(0, 100), "scale of the candidate's own perturbation"),
    "jitter": Setting(0.0, number(0, 1), "scale of a rounding-like perturbation"),
    "rows": Setting(64, integer(1, 65536), "largest number of rows a block has"),
    "nan_at": Setting(-1, integer(-1), "window whose first row is NaN"),
    "crash_at": Setting(-1, integer(-1), "window at which the process aborts"),
    "sleep": Setting(0.0, number(0, 10), "seconds to wait for each window"),
    "bits": Setting(16, integer(1, 64), "bits per weight to report"),
}
_BOS = 256


class FakeEngine:
    """See the module. Tokens 0–255 are bytes, 256 is BOS, 257 EOS, the rest padding."""

    def __init__(self, path: str, settings: dict[str, Any]) -> None:
        self._settings = settings
        v = settings["vocab"]
        self._base = np.random.default_rng(settings["seed"]).normal(size=(997, v)) * 2.0
        own = int.from_bytes(hashlib.sha256(path.encode()).digest()[:4], "big")
        self._shift = np.random.default_rng(own).normal(size=(997, v))
        pieces = tuple(chr(0x100 + i) for i in range(256)) + ("<s>", "</s>") + (None,) * (v - 258)
        self.vocabulary = Vocabulary(pieces, bos=_BOS, eos=257, add_bos=True)
        self.chat_template: str | None = None
        parameters = 1_000_000
        self.info = EngineInfo(
            engine="fake",
            build="fake 1",
            device="cpu",
            settings=dict(settings),
            fingerprint=hashlib.sha256(repr((path, sorted(settings.items()))).encode()).hexdigest(),
            architecture="fake",
            capabilities=frozenset({"logits"}),
            weights=Weights(
                parameters * settings["bits"] // 8,
                parameters * settings["bits"] // 8,
                parameters,
                {f"B{settings['bits']}": 1.0},
            ),
            context_trained=1 << 20,
        )

    def tokenize(self, text: str, *, special: bool = False, add_bos: bool = False) -> npt.NDArray[np.int32]:
        ids = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
        return np.concatenate([np.array([_BOS], np.int32), ids]) if add_bos else ids

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b"<s>" if token == _BOS else b"</s>"

    def logits(self, windows: Sequence[Window]) -> Iterator[npt.NDArray[np.float32]]:
        """See `Engine.logits`."""
        given = self._settings
        for window in windows:
            if window.index == given["crash_at"]:
                os.kill(os.getpid(), signal.SIGABRT)
            if given["sleep"]:
                time.sleep(given["sleep"])
            tokens = window.tokens.astype(np.int64)
            if len(tokens) and tokens.max() >= given["vocab"]:
                raise EngineError("a token lies outside the vocabulary", got=str(int(tokens.max())))
            before = np.concatenate([[0], tokens[:-1]])
            state = ((tokens * 31 + before * 17) % 997)[window.scored]
            for start in range(0, len(state), given["rows"]):
                part = state[start : start + given["rows"]]
                block = self._base[part] + (given["noise"] + given["jitter"]) * self._shift[part]
                if window.index == given["nan_at"] and start == 0:
                    block[0, 0] = np.nan
                yield block.astype(np.float32)

    def close(self) -> None:
        """Nothing to release."""


def open_fake(path: str, settings: Mapping[str, Any]) -> FakeEngine:
    """Make a fake engine; ``path`` only seeds its perturbation."""
    return FakeEngine(path, read_settings("fake", SETTINGS, settings))
