"""What an engine is: tokens in, full-vocabulary logits out, in blocks that fit in memory.

An engine declares its capabilities; a measurement that needs one an engine lacks refuses it by name
(`require`). Engines yield rows in the order of the windows given and of the scored positions within them;
how the rows are cut into blocks is the engine's own affair (the reader joins them row by row), as long as a
block stays small whatever the context length is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from quantvane.errors import CapabilityError
from quantvane.types import Window

__all__ = ["CAPABILITIES", "Engine", "EngineInfo", "Vocabulary", "Weights", "require"]

CAPABILITIES = frozenset({"logits", "hidden", "generate", "gradients"})


@dataclass(frozen=True, slots=True)
class Weights:
    """What the model's files hold, read from their own tensors.

    Attributes:
        file_bytes: size of the model's weight files on disk.
        tensor_bytes: bytes of tensor data.
        parameters: number of elements.
        types: tensor type → share of the parameters stored in it, largest first.
    """

    file_bytes: int
    tensor_bytes: int
    parameters: int
    types: dict[str, float] = field(default_factory=dict)

    @property
    def bits_per_weight(self) -> float:
        """Bytes of weights × 8 / parameters."""
        return self.tensor_bytes * 8 / self.parameters if self.parameters else float("nan")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The token table and the rules around it.

    Attributes:
        pieces: every token's own text as stored (byte-level alphabets stay encoded); None where the table only
            pads the vocabulary to a round size.
        bos, eos: ids, −1 where there is none.
        add_bos: whether the model puts BOS in front of every text.
    """

    pieces: tuple[str | None, ...]
    bos: int
    eos: int
    add_bos: bool

    def __len__(self) -> int:
        return len(self.pieces)


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Who computed a result: stored with every run.

    Attributes:
        engine: registry name. build: engine version and instruction sets. device: where it ran.
        settings: every setting in force, defaults included.
        fingerprint: SHA-256 of the model's weights files. architecture: the model's own word for it.
        capabilities: a subset of `CAPABILITIES`.
    """

    engine: str
    build: str
    device: str
    settings: dict[str, Any]
    fingerprint: str
    architecture: str
    capabilities: frozenset[str]
    weights: Weights
    context_trained: int


@runtime_checkable
class Engine(Protocol):
    """A loaded model."""

    @property
    def info(self) -> EngineInfo: ...

    @property
    def vocabulary(self) -> Vocabulary: ...

    @property
    def chat_template(self) -> str | None:
        """The model's own Jinja chat template, if it has one."""
        ...

    def tokenize(self, text: str, *, special: bool = False, add_bos: bool = False) -> npt.NDArray[np.int32]:
        """Text → token ids (n,) int32. ``special``: markup such as ``<|im_end|>`` is parsed as its token."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """The bytes a token stands for in running text (markup tokens: their own text)."""
        ...

    def logits(self, windows: Sequence[Window]) -> Iterator[npt.NDArray[np.float32]]:
        """Logits of every scored position of every window, in order, as (rows, V) float32 blocks.

        A block may be a view of the engine's own buffer: it is valid until the next block is asked for.
        Raises EngineError where decoding fails.
        """
        ...

    def close(self) -> None: ...


def require(engine: Engine, capability: str, purpose: str) -> None:
    """Refuse, by name, an engine that lacks a capability.

    Raises:
        CapabilityError: naming the engine, what it has and what was needed.
    """
    if capability not in engine.info.capabilities:
        raise CapabilityError(
            f"engine '{engine.info.engine}' cannot be used for {purpose}",
            expected=f"an engine with the capability '{capability}'",
            got=f"capabilities {sorted(engine.info.capabilities)}",
            remedy="name another engine in the model spec, for example MODEL_DIR@hf",
        )
