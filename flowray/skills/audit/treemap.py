"""A treemap: rectangles whose areas are numbers, as square as can be.

Squarified (Bruls, Huizing, van Wijk, 2000): rows are filled along the shorter side for as long as the worst aspect
ratio in the row gets no worse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle, in the units of the whole."""

    x: float
    y: float
    width: float
    height: float


def squarify(sizes: Sequence[float], whole: Box) -> list[Box]:
    """One box for each size (all above 0, largest first), together filling `whole`."""
    total = sum(sizes)
    if not sizes or total <= 0:
        return []
    scale = whole.width * whole.height / total
    areas = [size * scale for size in sizes]
    boxes: list[Box] = []
    free, start = whole, 0
    while start < len(areas):
        side = min(free.width, free.height)
        end = start + 1
        while end < len(areas) and _worst(areas[start : end + 1], side) <= _worst(areas[start:end], side):
            end += 1
        row, free = _lay(areas[start:end], free)
        boxes += row
        start = end
    return boxes


def _worst(row: Sequence[float], side: float) -> float:
    """The worst aspect ratio when `row` is laid along `side`."""
    thick = sum(row) / side
    return max(max(area / thick / thick, thick * thick / area) for area in row) if thick else float("inf")


def _lay(row: Sequence[float], free: Box) -> tuple[list[Box], Box]:
    """The boxes of one row along the shorter side, and what is left."""
    along_height = free.height <= free.width
    side = free.height if along_height else free.width
    thick = sum(row) / side if side else 0.0
    boxes, at = [], 0.0
    for area in row:
        long = area / thick if thick else 0.0
        boxes.append(Box(free.x, free.y + at, thick, long) if along_height else Box(free.x + at, free.y, long, thick))
        at += long
    if along_height:
        return boxes, Box(free.x + thick, free.y, free.width - thick, free.height)
    return boxes, Box(free.x, free.y + thick, free.width, free.height - thick)
