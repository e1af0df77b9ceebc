"""Reading a stored summary: one value with its interval, one candidate, the whole run. Pure.

A summary is JSON written by a run (command-line contract of ``compare --json``), perhaps by another version.
Whatever is absent or null becomes a :class:`Reading` without value and with a reason, never a zero.
Names come from file names and are untrusted: they are cleaned of control characters here, and escaped
where they are printed.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import DataError

__all__ = ["Candidate", "Reading", "Summary", "clean", "read", "read_summary"]

SCHEMA = 1
NOT_STORED = "not stored in this run's summary"


@dataclass(frozen=True, slots=True)
class Reading:
    """A value and the ends of its 95% interval, in the quantity's own unit; NaN and a reason where absent."""

    value: float
    low: float = math.nan
    high: float = math.nan
    reason: str = ""

    @property
    def known(self) -> bool:
        """True where there is a value, infinite ones included."""
        return not math.isnan(self.value)

    @property
    def has_interval(self) -> bool:
        return not (math.isnan(self.low) or math.isnan(self.high))


def clean(text: object) -> str:
    """Text fit for one line of any output: no control or layout-turning characters, no lone surrogates."""
    kept = "".join(
        " " if unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp") else char for char in str(text)
    )
    return " ".join(kept.encode("utf-8", "replace").decode("utf-8").split())


def _float(item: object) -> float:
    if isinstance(item, bool) or not isinstance(item, int | float):
        return math.nan
    return float(item)


def read(item: object) -> Reading:
    """A reading from ``{"value", "ci"?, "reason"?}``, a bare number, or anything else (no value)."""
    if not isinstance(item, Mapping):
        value = _float(item)
        return Reading(value, reason=NOT_STORED if math.isnan(value) else "")
    value = _float(item.get("value"))
    ends = item.get("ci")
    low = high = math.nan
    if isinstance(ends, Sequence) and not isinstance(ends, str) and len(ends) == 2:
        low, high = _float(ends[0]), _float(ends[1])
    reason = clean(item.get("reason") or "")
    if math.isnan(value) and not reason:
        reason = NOT_STORED if "value" not in item else "no reason was stored"
    return Reading(value, low, high, reason)


def _dig(data: object, path: str) -> object:
    for key in path.split("."):
        data = data.get(key) if isinstance(data, Mapping) else None
    return data


@dataclass(frozen=True, slots=True)
class Candidate:
    """One model of the cohort as the report shows it.

    Attributes:
        key: what charts and tables print; unique within the report.
        name: its full name.
        bits: bits per weight, NaN where unknown.
        file_bytes, tokens, rank: None where unknown.
        tied_with: keys (or names, where not in the report) of the candidates it is tied with.
        data: its part of the summary.
    """

    key: str
    name: str
    bits: float
    file_bytes: int | None
    tokens: int | None
    rank: int | None
    tied_with: tuple[str, ...]
    data: Mapping[str, Any]

    def get(self, path: str) -> Reading:
        """The reading at a dotted path, for example ``kld.mean``."""
        return read(_dig(self.data, path))


@dataclass(frozen=True, slots=True)
class Summary:
    """A validated summary.

    Attributes:
        reference: the reference (rank None, never tied).
        candidates: by bits per weight, most first, unknown last.
        floor: noise floor of the mean KLD in nats; ``floor_how`` says how it was had.
        data: the whole document.
    """

    reference: Candidate
    candidates: tuple[Candidate, ...]
    floor: Reading
    floor_how: str
    data: Mapping[str, Any]

    @property
    def ranked(self) -> tuple[Candidate, ...]:
        """Candidates by rank, unranked ones last."""
        return tuple(
            sorted(self.candidates, key=lambda c: (c.rank is None, c.rank or 0, _nan_last(c.get("kld.mean"))))
        )


def _nan_last(reading: Reading) -> float:
    return reading.value if reading.known else math.inf


def _integer(item: object) -> int | None:
    value = _float(item)
    return int(value) if math.isfinite(value) else None


def _name(data: Mapping[str, Any], field: str = "name") -> str:
    return clean(data.get(field) or "") or clean(data.get("name") or "") or "(unnamed)"


def _keys(items: Sequence[Mapping[str, Any]]) -> list[str]:
    """Labels where they tell the candidates apart, else names, else names with a number."""
    for field in ("label", "name"):
        keys = [_name(item, field) for item in items]
        if len(set(keys)) == len(keys):
            return keys
    return [f"{key} #{number}" for number, key in enumerate(keys, 1)]


def _candidate(data: Mapping[str, Any], key: str, names: Mapping[str, str]) -> Candidate:
    tied = data.get("tied_with")
    others = tied if isinstance(tied, Sequence) and not isinstance(tied, str) else ()
    return Candidate(
        key=key,
        name=_name(data),
        bits=_float(data.get("bits_per_weight")),
        file_bytes=_integer(data.get("file_bytes")),
        tokens=_integer(data.get("tokens")),
        rank=_integer(data.get("rank")),
        tied_with=tuple(names.get(clean(other), clean(other)) for other in others),
        data=data,
    )


def read_summary(summary: Mapping[str, Any]) -> Summary:
    """Validate the document and name its candidates.

    Raises:
        DataError: not a summary of schema 1, or without a reference or a candidate.
    """
    if not isinstance(summary, Mapping) or summary.get("schema") != SCHEMA:
        got = summary.get("schema") if isinstance(summary, Mapping) else type(summary).__name__
        raise DataError(
            "This is no summary the report can read.",
            expected=f"a mapping with schema {SCHEMA}",
            got=f"{got!r}",
            remedy="Give the summary.json that `compare` wrote, or update quantvane to the version that "
            "wrote it.",
        )
    reference, candidates = summary.get("reference"), summary.get("candidates")
    if not isinstance(reference, Mapping):
        raise DataError(
            "The summary names no reference.", expected="reference: {name, …}", got=repr(reference)
        )
    if not isinstance(candidates, Sequence) or not all(isinstance(c, Mapping) for c in candidates):
        raise DataError("The summary's candidates are no list.", expected="candidates: [{name, …}, …]")
    if not candidates:
        raise DataError(
            "The summary holds no candidate, so there is nothing to report.",
            expected="at least one candidate",
            got="an empty list",
            remedy="Run `compare` with at least one candidate; an interrupted run continues with the same "
            "--out.",
        )
    keys = _keys(candidates)
    names = {_name(item): key for item, key in zip(candidates, keys, strict=True)}
    built = [_candidate(item, key, names) for item, key in zip(candidates, keys, strict=True)]
    built.sort(key=lambda c: (math.isnan(c.bits), -c.bits if not math.isnan(c.bits) else 0.0))
    floor = summary.get("noise_floor")
    floor = floor if isinstance(floor, Mapping) else {}
    value = floor.get("kld_mean")
    reading = read(value if isinstance(value, Mapping) else {"value": value, "reason": floor.get("reason")})
    if not reading.known and not floor.get("reason"):
        reading = Reading(math.nan, reason="it was not measured in this run")
    return Summary(
        reference=_candidate(reference, _name(reference, "label"), {}),
        candidates=tuple(built),
        floor=reading,
        floor_how=clean(floor.get("how") or ""),
        data=summary,
    )
