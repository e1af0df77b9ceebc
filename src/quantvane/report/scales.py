"""Axes chosen from the data: linear or logarithmic, domain, ticks; and places for point labels. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Axis", "choose_axis", "place_labels"]

_SPAN_FOR_LOG = 20.0
_FLOOR_REACH = 1e3


@dataclass(frozen=True, slots=True)
class Axis:
    """A quantitative axis: ``kind`` "linear" or "log", domain, ticks (() for the renderer's), format."""

    kind: str
    low: float
    high: float
    ticks: tuple[float, ...] = ()
    form: str = "~g"

    def draws(self, value: float | None) -> bool:
        """Whether the value has a place on the axis."""
        return value is not None and (self.kind == "linear" or value > 0)

    def clip(self, value: float | None) -> float | None:
        """The value moved into the domain (an interval's end may lie below a logarithmic axis)."""
        return None if value is None else min(max(value, self.low), self.high)

    def at(self, value: float) -> float:
        """Place within the domain, from 0 to 1."""
        if self.kind == "log":
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)


def _log_ticks(low: float, high: float) -> tuple[float, ...]:
    decades = math.log10(high / low)
    steps = (1, 2, 5) if decades <= 2 else (1,)
    stride = max(1, math.ceil(decades / 7))
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{s}e{e}") for e in exponents if e % stride == 0 for s in steps]
    return tuple(tick for tick in ticks if low * 0.999 <= tick <= high * 1.001)


def _share_ticks(low: float, high: float) -> tuple[float, ...]:
    """Four to eight round shares, none below 0 or above 1 (the room for text may reach past 100%)."""
    span = high - low
    step = next(
        (
            s
            for s in (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2)
            if span / s <= 8
        ),
        0.5,
    )
    ticks = (round(i * step, 6) for i in range(math.ceil(low / step), math.floor(high / step) + 1))
    return tuple(tick for tick in ticks if 0 <= tick <= 1)


def choose_axis(
    values: Iterable[float | None],
    *,
    floor: float | None = None,
    room: float = 0.0,
    force_log: bool = False,
    from_zero: bool = True,
    form: str = "~g",
) -> Axis:
    """The axis for these values.

    Args:
        values: what must have a place; None and what is not finite is passed over.
        floor: noise floor, brought into the domain where it lies within three decades below.
        room: share of the axis kept free above the largest value, for text.
        force_log: logarithmic also where the positive values span less than a factor of 20.
        from_zero: whether a linear axis starts at zero.
        form: d3 format of the tick labels.
    """
    finite = [v for v in values if v is not None and math.isfinite(v)]
    positive = [v for v in finite if v > 0]
    spans = bool(positive) and (force_log or max(positive) / min(positive) > _SPAN_FOR_LOG)
    if spans and not any(v < 0 for v in finite):
        low, high = min(positive), max(positive)
        if floor is not None and 0 < floor < low and low / floor <= _FLOOR_REACH:
            low = floor
        low = low / 1.8
        high = high * 1.15 * (high / low) ** (room / (1 - room))
        return Axis("log", low, high, _log_ticks(low, high), form)
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    if floor is not None and from_zero:
        high = max(high, floor)
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    span = high - low or abs(high) or 1.0
    start = low if from_zero and low == 0 else low - 0.04 * span
    end = high + span * (0.04 + room / (1 - room))
    ticks = _share_ticks(start, end) if form == "~%" else ()
    return Axis("linear", start, end, ticks, form)


_OFFSETS: tuple[tuple[float, float], ...] = (
    (9, 0), (-9, 0), (0, -13), (0, 13), (9, -13), (9, 13), (-9, -13), (-9, 13),
    (0, -26), (0, 26), (22, -26), (22, 26), (-22, -26), (-22, 26), (0, -40), (0, 40),
)  # fmt: skip


def place_labels(
    points: Sequence[tuple[float, float]], texts: Sequence[str], width: float, height: float, em: float = 6.4
) -> list[tuple[float, float, str]]:
    """Greedy places for the points' labels: (x, y, "left" | "center" | "right") in pixels, y downwards.

    Each label takes the first of sixteen offsets that stays inside the plot and overlaps the fewest points
    and labels placed before. ``em`` is the assumed width of a letter.
    """
    boxes: list[tuple[float, float, float, float]] = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    placed: list[tuple[float, float, str]] = []
    for (x, y), text in zip(points, texts, strict=True):
        best: tuple[float, float, float, str, tuple[float, float, float, float]] | None = None
        for rank, (dx, dy) in enumerate(_OFFSETS):
            align = "left" if dx > 0 else "right" if dx < 0 else "center"
            wide = em * len(text)
            left = x + dx - (0 if dx > 0 else wide if dx < 0 else wide / 2)
            box = (left, y + dy - 7, left + wide, y + dy + 7)
            outside = (
                max(0.0, -box[0]) + max(0.0, box[2] - width) + max(0.0, -box[1]) + max(0.0, box[3] - height)
            )
            cost = outside * 50 + sum(_overlap(box, other) for other in boxes) + rank * 0.5
            if best is None or cost < best[0]:
                best = (cost, x + dx, y + dy, align, box)
        if best is not None:
            boxes.append(best[4])
            placed.append((best[1], best[2], best[3]))
    return placed


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
