"""A recorded reference opened as an engine: its windows only, W·h or stored logits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from quantvane.engines.base import EngineInfo, Vocabulary, Weights
from quantvane.engines.output_head import OutputHead
from quantvane.engines.settings import read_settings
from quantvane.errors import CapabilityError, TraceError
from quantvane.spec import Protocol
from quantvane.store.trace import BIAS, HEAD, Trace, unpack_floats
from quantvane.types import Window

__all__ = ["TraceEngine", "open_trace"]

_BLOCK_BYTES = 64 << 20


class TraceEngine:
    """A trace directory. Use `open_trace`.

    Attributes:
        name: the recorded reference's name. protocol, windows, corpora, samples: what it was recorded on.
        noise_floor: the floor measured when it was recorded. chat_template: None; the windows are cut already.
    """

    chat_template: str | None = None

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        held = trace.manifest
        self.kind: str = held["kind"]
        self.name: str = held["reference"]["name"]
        self.protocol = Protocol.from_dict(held["protocol"])
        self.windows = trace.windows
        self.corpora = tuple(held["corpora"])
        self.samples = tuple(sample.text for sample in trace.samples)
        self.noise_floor: dict[str, Any] | None = held["noise_floor"]
        ids = held["vocabulary"]
        self.vocabulary = Vocabulary(trace.pieces, ids["bos"], ids["eos"], ids["add_bos"])
        self.info = _info(held["reference"], self.kind)
        self._stored: str = held["stored"]
        self._head = self._read_head() if self.kind == "hidden" else None

    def _read_head(self) -> OutputHead:
        held = self._trace.manifest["head"]
        weight = unpack_floats(self._trace.array(HEAD), held["stored"])
        if weight.shape != (len(self.vocabulary), self._trace.shape.width):
            raise TraceError(
                f"the head of '{self._trace.path}' does not fit its rows",
                expected=f"shape ({len(self.vocabulary)}, {self._trace.shape.width})",
                got=str(weight.shape),
                remedy="record the reference again",
            )
        bias = self._trace.array(BIAS) if held["bias"] else None
        return OutputHead(weight, bias, held["scale"], held["softcap"], held["rounding"], held["tensor_type"])

    def tokenize(self, text: str, *, special: bool = False, add_bos: bool = False) -> npt.NDArray[np.int32]:
        """Token ids of a stored sample text; nothing else can be tokenized without the model.

        Raises:
            CapabilityError: another text.
        """
        for sample in self._trace.samples:
            if sample.text == text and not add_bos:
                return sample.tokens
        raise CapabilityError(
            "a recorded reference cannot tokenize",
            expected="one of the sample texts stored with it",
            got=repr(text[:40]),
            remedy="use the model itself",
        )

    def token_bytes(self, token: int) -> bytes:
        """The token's own text as stored (byte-level alphabets stay encoded)."""
        return (self.vocabulary.pieces[token] or "").encode()

    def _spans(self, windows: Sequence[Window]) -> Iterator[tuple[int, int]]:
        """Row ranges of the windows, those of neighbours joined."""
        start = stop = -1
        for window in windows:
            first, last = self._trace.rows_of(window)
            if first != stop:
                if stop > start:
                    yield start, stop
                start = first
            stop = last
        if stop > start:
            yield start, stop

    def _stored_rows(self, windows: Sequence[Window]) -> Iterator[npt.NDArray[np.float32]]:
        for start, stop in self._spans(windows):
            for block in self._trace.rows(start, stop):
                yield unpack_floats(block, self._stored)

    def hidden(self, windows: Sequence[Window]) -> Iterator[npt.NDArray[np.float32]]:
        """Hidden states (rows, d) as the engine's head multiplied them: rounded as it rounds.

        Raises:
            CapabilityError: a trace of logits. TraceError: see `logits`.
        """
        if self._head is None:
            raise CapabilityError(
                "this trace holds no hidden states", expected="a trace recorded with --store hidden", got=self.kind
            )
        yield from self._stored_rows(windows)

    def head(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None, float, float | None]:
        """W (V, d) float32, bias (V,) or None, scale, softcap: see `OutputHead`."""
        if self._head is None:
            raise CapabilityError("this trace holds no head", expected="a trace recorded with --store hidden")
        return self._head.weight, self._head.bias, self._head.scale, self._head.softcap

    def logits(self, windows: Sequence[Window]) -> Iterator[npt.NDArray[np.float32]]:
        """See `Engine.logits`; blocks of at most 64 MB, or one row.

        Raises:
            TraceError: a window the trace does not hold, or damaged rows.
        """
        if self._head is None:
            yield from self._stored_rows(windows)
            return
        most = max(1, _BLOCK_BYTES // (4 * len(self.vocabulary)))
        for block in self._stored_rows(windows):
            for start in range(0, len(block), most):
                yield self._head.logits(block[start : start + most])

    def close(self) -> None:
        """Let go of the files."""
        self._trace.close()


def _info(record: Mapping[str, Any], kind: str) -> EngineInfo:
    parameters, bits = int(record["parameters"]), record["bits_per_weight"]
    tensor_bytes = round(float(bits) * parameters / 8) if bits is not None else 0
    return EngineInfo(
        engine="trace",
        build=record["build"],
        device=record["device"],
        settings=dict(record["settings"]),
        fingerprint=record["fingerprint"],
        architecture=record["architecture"],
        capabilities=frozenset({"logits", "hidden"} if kind == "hidden" else {"logits"}),
        weights=Weights(int(record["file_bytes"]), tensor_bytes, parameters, dict(record["tensor_types"])),
        context_trained=int(record["context_trained"]),
    )


def open_trace(path: str, settings: Mapping[str, Any]) -> TraceEngine:
    """Open a trace directory.

    Raises:
        TraceError: see `Trace.open`. SpecError: a setting; a trace has none.
    """
    read_settings("trace", {}, settings)
    return TraceEngine(Trace.open(path))
