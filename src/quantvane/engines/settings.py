"""Reading an engine's settings from the text of a model spec, against a declared table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from quantvane.errors import SpecError

__all__ = ["Setting", "boolean", "choice", "integer", "number", "read_settings"]


@dataclass(frozen=True, slots=True)
class Setting:
    """One engine setting.

    Attributes:
        default: value where the spec is silent.
        read: text → value; raises ValueError saying what was expected.
        help: one line for documentation.
    """

    default: Any
    read: Callable[[str], Any]
    help: str


def integer(low: int, high: int = 2**31 - 1) -> Callable[[str], int]:
    """A whole number in [low, high]."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ValueError(f"a whole number from {low} to {high}") from None
        if not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return value

    return read


def number(low: float, high: float) -> Callable[[str], float]:
    """A number in [low, high]."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise ValueError(f"a number from {low} to {high}") from None
        if not low <= value <= high:
            raise ValueError(f"a number from {low} to {high}")
        return value

    return read


def boolean(text: str) -> bool:
    """true/false, on/off, yes/no, 1/0."""
    value = text.strip().lower()
    if value in ("true", "on", "yes", "1"):
        return True
    if value in ("false", "off", "no", "0"):
        return False
    raise ValueError("true or false")


def choice(*options: str) -> Callable[[str], str]:
    """One of the words given, in any case."""

    def read(text: str) -> str:
        value = text.strip().lower()
        if value not in options:
            raise ValueError("one of " + ", ".join(options))
        return value

    return read


def read_settings(engine: str, table: Mapping[str, Setting], given: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting in force, defaults included.

    Raises:
        SpecError: an unknown setting, or a value its reader refuses.
    """
    unknown = sorted(set(given) - set(table))
    if unknown:
        raise SpecError(
            f"engine '{engine}' has no setting '{unknown[0]}'",
            expected="one of " + ", ".join(sorted(table)),
            got=unknown[0],
            remedy="correct the name after '?' in the model spec",
        )
    values: dict[str, Any] = {}
    for key, setting in table.items():
        if key not in given:
            values[key] = setting.default() if callable(setting.default) else setting.default
            continue
        try:
            values[key] = setting.read(str(given[key]))
        except ValueError as problem:
            raise SpecError(
                f"setting '{key}' of engine '{engine}' cannot be '{given[key]}'",
                expected=str(problem),
                got=str(given[key]),
                remedy=setting.help,
            ) from None
    return values
