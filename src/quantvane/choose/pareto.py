"""The size–score front: models that no other is both as small as and as good as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Point", "pareto_front"]


@dataclass(frozen=True, slots=True)
class Point:
    """A model: ``size`` in bytes (less is better), ``score`` (more is better)."""

    name: str
    size: int
    score: float


def pareto_front(points: Sequence[Point]) -> tuple[str, ...]:
    """Names of the points that none dominates, smallest first.

    A point is dominated where another is no larger and no worse, and smaller or better. Equal points stay together.
    The front is one of estimates: neighbours on it may be tied.

    >>> pareto_front([Point("a", 1, 0.5), Point("b", 2, 0.4), Point("c", 3, 0.9)])
    ('a', 'c')
    """
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.size, -p.score, p.name)):
        best = front[-1] if front else None
        if best is None or point.score > best.score or (point.size, point.score) == (best.size, best.score):
            front.append(point)
    return tuple(point.name for point in front)
