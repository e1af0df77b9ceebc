"""One exception tree. Every leaf says what was expected, what came and what to do.

::

    QuantvaneError
    ├── InputError                exit status 2: the caller can mend it
    │   ├── SpecError             a model spec, setting or option that cannot be read
    │   ├── ModelFileError        a model file that is missing, truncated or not of its kind
    │   ├── CorpusError           a text that is missing, unreadable or too short
    │   ├── TokenizerMismatchError  reference and candidate do not share a vocabulary
    │   ├── ProtocolMismatchError results measured under different protocols
    │   ├── TraceError            a recorded reference trace that is damaged or does not fit
    │   ├── DataError             arrays or tables of the wrong shape, type or content
    │   ├── CapabilityError       an engine or backend that lacks what was asked of it
    │   └── OutputError           a place that cannot be written, or holds another run
    └── RunError                  exit status 3: the inputs were fine, the work failed
        ├── EngineError           the engine reported a failure (out of memory, NaN logits …)
        └── EngineCrashError      the engine's process died
"""

from __future__ import annotations

__all__ = [
    "CapabilityError",
    "CorpusError",
    "DataError",
    "EngineCrashError",
    "EngineError",
    "InputError",
    "ModelFileError",
    "OutputError",
    "ProtocolMismatchError",
    "QuantvaneError",
    "RunError",
    "SpecError",
    "TokenizerMismatchError",
    "TraceError",
    "from_dict",
]


class QuantvaneError(Exception):
    """Base of every error quantvane raises on purpose.

    Args:
        message: one sentence that names the thing at fault.
        expected: what would have been accepted.
        got: what came instead.
        remedy: what the reader can do about it.
    """

    exit_status = 3

    def __init__(self, message: str, *, expected: str = "", got: str = "", remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.expected = expected
        self.got = got
        self.remedy = remedy

    @property
    def kind(self) -> str:
        """The leaf's name, as ``error.kind`` of the JSON document."""
        return type(self).__name__

    def to_dict(self) -> dict[str, str]:
        """The ``error`` object of the command-line contract."""
        return {
            "kind": self.kind,
            "message": self.message,
            "expected": self.expected,
            "got": self.got,
            "remedy": self.remedy,
        }

    def __str__(self) -> str:
        lines = [self.message]
        lines += [
            f"  {label}: {text}"
            for label, text in (("expected", self.expected), ("got", self.got), ("remedy", self.remedy))
            if text
        ]
        return "\n".join(lines)


class InputError(QuantvaneError):
    """The caller can mend it; exit status 2."""

    exit_status = 2


class SpecError(InputError):
    """A model spec, setting or option that cannot be read."""


class ModelFileError(InputError):
    """A model file that is missing, truncated or not of its kind."""


class CorpusError(InputError):
    """A text that is missing, unreadable or too short."""


class TokenizerMismatchError(InputError):
    """Reference and candidate do not share a vocabulary."""


class ProtocolMismatchError(InputError):
    """Results measured under different protocols."""


class TraceError(InputError):
    """A recorded reference trace that is damaged or does not fit."""


class DataError(InputError):
    """Arrays or tables of the wrong shape, type or content."""


class CapabilityError(InputError):
    """An engine or backend that lacks what was asked of it."""


class OutputError(InputError):
    """A place that cannot be written, or that holds another run."""


class RunError(QuantvaneError):
    """The inputs were fine, the work failed; exit status 3."""


class EngineError(RunError):
    """The engine reported a failure."""


class EngineCrashError(RunError):
    """The engine's process died."""


def _leaves(root: type[QuantvaneError]) -> dict[str, type[QuantvaneError]]:
    found = {root.__name__: root}
    for child in root.__subclasses__():
        found.update(_leaves(child))
    return found


def from_dict(data: dict[str, str]) -> QuantvaneError:
    """Rebuild an error that crossed a process boundary as ``to_dict()``; unknown kinds become RunError."""
    cls = _leaves(QuantvaneError).get(data.get("kind", ""), RunError)
    return cls(
        data.get("message", "unknown error"),
        expected=data.get("expected", ""),
        got=data.get("got", ""),
        remedy=data.get("remedy", ""),
    )
