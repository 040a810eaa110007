"""What charts are drawn with: a frame with axes, as inline SVG; the page around it gives the colours."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 14, 44  # margins


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """From data to pixels."""

    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return _LEFT + across * (WIDTH - _LEFT - _RIGHT), HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM)

    def path(self, points: Sequence[tuple[float, float]], style: str) -> str:
        corners = " ".join("{:.1f},{:.1f}".format(*self.at(x, y)) for x, y in points)
        return f'<polyline points="{corners}" {style}/>'

    def line(self, start: tuple[float, float], end: tuple[float, float], style: str) -> str:
        return self.path([start, end], style)

    def dot(self, x: float, y: float, radius: float, style: str, title: str) -> str:
        left, top = self.at(x, y)
        shape = f'<circle cx="{left:.1f}" cy="{top:.1f}" r="{radius:.1f}" {style}>'
        return f"{shape}<title>{escape(title)}</title></circle>"

    def text(self, x: float, y: float, words: str, style: str = "", dx: float = 0, dy: float = 0) -> str:
        left, top = self.at(x, y)
        return f'<text x="{left + dx:.1f}" y="{top + dy:.1f}" {style}>{escape(words)}</text>'


def axes(frame: Frame, x_ticks: Mapping[float, str], across: str, up: str) -> Iterator[str]:
    for tick in ticks(*frame.y):
        yield frame.line((frame.x[0], tick), (frame.x[1], tick), 'class="grid"')
        yield frame.text(frame.x[0], tick, short(tick), 'class="tick" text-anchor="end"', dx=-7, dy=4)
    for tick, words in x_ticks.items():
        yield frame.text(tick, frame.y[0], words, 'class="tick" text-anchor="middle"', dy=16)
    yield frame.line((frame.x[0], frame.y[0]), (frame.x[1], frame.y[0]), 'class="axis"')
    middle = (frame.x[0] + frame.x[1]) / 2
    yield frame.text(middle, frame.y[0], across, 'class="name" text-anchor="middle"', dy=36)
    left, top = frame.at(frame.x[0], (frame.y[0] + frame.y[1]) / 2)
    where = f'transform="translate({left - 40:.1f},{top:.1f}) rotate(-90)"'
    yield f'<text class="name" text-anchor="middle" {where}>{escape(up)}</text>'


def ticks(low: float, high: float) -> list[float]:
    """Round numbers between two others, five or so."""
    step = 10.0 ** math.floor(math.log10((high - low) / 2))
    step = next(s for s in (step, 2 * step, 5 * step, 10 * step) if (high - low) / s <= 6.5)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def short(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".")


def svg(parts: Sequence[str], title: str) -> str:
    body = "".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{body}</svg>'
