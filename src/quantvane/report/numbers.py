"""Numbers as people read them: three or four significant digits, intervals as [low, high]. Pure."""

from __future__ import annotations

import math

from .readings import Reading

__all__ = ["DASH", "compact", "file_size", "interval", "number", "percent", "value_text"]

DASH = "—"
_MAX_DIGITS = 6
_SMALL = 5e-4  # intervals wholly below print in scientific notation


def _exponent(value: float) -> int:
    return math.floor(math.log10(abs(value))) if value and math.isfinite(value) else 0


def _scientific(value: float, digits: int) -> str:
    mantissa, exponent = f"{value:.{max(digits - 1, 0)}e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def number(value: float, digits: int = 3) -> str:
    """``value`` with ``digits`` significant digits; scientific below 1e-4 and from 1e6; — for NaN, ∞ as such.

    >>> number(0.0016531), number(47.190429), number(3.2e-7), number(0.0)
    ('0.00165', '47.2', '3.20e-7', '0')
    """
    if math.isnan(value):
        return DASH
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    value = float(f"{value:.{digits - 1}e}")
    exponent = _exponent(value)
    if not -4 <= exponent < 6:
        return _scientific(value, digits)
    return f"{value:.{max(digits - 1 - exponent, 0)}f}"


def compact(value: float, digits: int = 3) -> str:
    """Like :func:`number`, at most seven characters for three digits of anything not negative."""
    if math.isfinite(value) and value and (abs(value) < 1e-3 or abs(value) >= 1e5):
        return _scientific(value, digits)
    return number(value, digits)


def _decimals(reading: Reading, digits: int) -> int:
    """Decimals that show ``digits`` of the value and two of the interval's half width, six digits at most."""
    top = max(abs(reading.value), abs(reading.low), abs(reading.high))
    wanted = digits - 1 - _exponent(reading.value or top)
    half = (reading.high - reading.low) / 2
    if half > 0 and math.isfinite(half):
        wanted = max(wanted, 1 - _exponent(half))
    return min(wanted, _MAX_DIGITS - 1 - _exponent(top))


def interval(reading: Reading, digits: int = 3, scale: float = 1.0) -> tuple[str, str]:
    """The value and ``[low, high]`` with the same decimals; the second is "" where there is no interval.

    >>> interval(Reading(0.0016531, 0.0015688, 0.0017373))
    ('0.00165', '[0.00157, 0.00174]')
    """
    scaled = Reading(reading.value * scale, reading.low * scale, reading.high * scale)
    ends = (scaled.value, scaled.low, scaled.high)
    if not scaled.has_interval:
        return number(scaled.value, digits), ""
    top = max(abs(end) for end in ends)
    if not all(map(math.isfinite, ends)) or top < _SMALL or top >= 1e6:
        return number(scaled.value, digits), f"[{number(scaled.low, digits)}, {number(scaled.high, digits)}]"
    places = max(_decimals(scaled, digits), 0)
    return f"{scaled.value:.{places}f}", f"[{scaled.low:.{places}f}, {scaled.high:.{places}f}]"


def value_text(reading: Reading, digits: int = 3, scale: float = 1.0) -> str:
    """Value and interval on one line: ``0.00165 [0.00157, 0.00174]``."""
    return " ".join(part for part in interval(reading, digits, scale) if part)


def percent(value: float, digits: int = 3) -> str:
    """A share of one as a percentage; — for NaN. Never rounds a share below 1 up to 100%."""
    if math.isnan(value):
        return DASH
    if value == 0:
        return "0%"
    for more in range(digits, 6):
        text = number(value * 100, more)
        if value >= 1 or not text.startswith("100"):
            return f"{text}%"
    return ">99.99%"


def file_size(size: int | None) -> str:
    """Bytes in decimal units, as shops and file listings of model hubs give them."""
    if size is None:
        return DASH
    scaled, unit = float(size), "B"
    for step in ("kB", "MB", "GB", "TB"):
        if scaled < 999.5:
            break
        scaled, unit = scaled / 1000, step
    return f"{size} B" if unit == "B" else f"{number(scaled)} {unit}"
