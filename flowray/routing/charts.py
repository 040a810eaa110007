"""Two charts as inline SVG, cost against quality and reliability; the page around them gives the colours."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from flowray.routing.costing import Curve
from flowray.routing.judge import ROUTER
from flowray.routing.metrics import Reliability, Values
from flowray.routing.tradeoff import BUDGET

WIDTH, HEIGHT = 560, 340
NOT_DRAWN = frozenset({"majority", "agent_prior", "oracle"})  # a dot, mixing once more, a line far above
_DEAREST = 2.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 14, 44  # margins


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
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


def cost_quality(
    curves: Mapping[str, Curve], singles: Mapping[str, tuple[float, float]], best_single: str, title: str
) -> str:
    """Success against cost on a logarithmic scale, the best single agent's cost being 1; `singles` are dots.

    What costs more than twice the best single agent is not shown.
    """
    unit = singles[best_single][0]
    hulls = {name: (curve.cost_usd / unit, curve.success) for name, curve in curves.items() if name not in NOT_DRAWN}
    cheapest = max(1e-3, min(float(cost[0]) for cost, _ in hulls.values()))
    grid = np.geomspace(cheapest, _DEAREST, 200)  # mixing is linear in cost: a bent line on this scale
    lines = {name: _sampled(grid, cost, success) for name, (cost, success) in hulls.items()}
    best = singles[best_single][1]
    heights = [best, *(success for points in lines.values() for _, success in points)]
    low, high = min(heights), max(heights)
    frame = _Frame(
        x=(math.log10(cheapest) - 0.05, math.log10(_DEAREST)),
        y=_rounded(low - 0.04 * (high - low), high + 0.06 * (high - low)),
    )
    costs = [tick for tick in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0) if math.log10(tick) >= frame.x[0]]
    x_ticks = {math.log10(tick): _short(tick) for tick in costs}
    parts = [*_axes(frame, x_ticks, "mean cost per task, best single agent = 1", "success")]
    budget = math.log10(BUDGET)
    parts.append(frame.line((budget, frame.y[0]), (budget, frame.y[1]), 'class="mark"'))
    parts.append(frame.text(budget, frame.y[1], "60 % cheaper", 'class="note" text-anchor="end"', dx=-5, dy=11))
    for agent, (cost, success) in singles.items():
        if cheapest <= cost / unit <= _DEAREST and success >= frame.y[0]:
            what = f"{agent}: success {success:.3f}, cost {cost / unit:.2f}"
            parts.append(frame.dot(math.log10(cost / unit), success, 2.6, 'class="single"', what))
    for name in sorted(lines, key=lambda name: name == ROUTER):  # the router on top
        points = [(math.log10(cost), success) for cost, success in lines[name]]
        parts.append(frame.path(points, f'class="line {escape(name)}"'))
    parts.append(frame.dot(0.0, best, 5, 'class="best"', f"best single agent: {best_single}, {best:.3f}"))
    parts.append(frame.text(0.0, best, "best single", 'class="note"', dx=8, dy=14))
    return _svg(parts, title)


def reliability(methods: Mapping[str, Reliability], title: str) -> str:
    """Observed against predicted success; below, how many predictions of the first method fell into each bin."""
    frame = _Frame(x=(0.0, 1.0), y=(0.0, 1.0))
    parts = [
        *_axes(frame, {t: _short(t) for t in _ticks(0.0, 1.0)}, "predicted probability of success", "observed share")
    ]
    parts.append(frame.line((0, 0), (1, 1), 'class="mark"'))
    first = next(iter(methods.values()))
    most = float(first.count.max()) or 1.0
    bins = len(first.count)
    for i, count in enumerate(first.count.tolist()):
        left, bottom = frame.at(i / bins, 0.0)
        right, top = frame.at((i + 1) / bins, 0.16 * count / most)
        box = f'x="{left + 1:.1f}" y="{top:.1f}" width="{right - left - 2:.1f}" height="{bottom - top:.1f}"'
        parts.append(f'<rect class="count" {box}><title>{count:,.0f} predictions</title></rect>')
    for name, bins_of in reversed(list(methods.items())):  # the first on top
        points = [
            (p, o, n)
            for p, o, n in zip(bins_of.predicted.tolist(), bins_of.observed.tolist(), bins_of.count, strict=True)
            if n
        ]
        parts.append(frame.path([(p, o) for p, o, _ in points], f'class="line {escape(name)}"'))
        for p, o, n in points:
            size = 2.0 + 3.0 * math.sqrt(n / most)
            what = f"{name}: predicted {p:.3f}, observed {o:.3f}, {n:,.0f} pairs"
            parts.append(frame.dot(p, o, size, f'class="dot {escape(name)}"', what))
    return _svg(parts, title)


def _sampled(grid: Values, cost: Values, success: Values) -> list[tuple[float, float]]:
    """A hull on a grid of costs, from its cheapest point on; what is dearer is no better."""
    at = np.concatenate([cost[:1], grid[grid > cost[0]]])
    return list(zip(at.tolist(), np.interp(at, cost, success).tolist(), strict=True))


def _axes(frame: _Frame, x_ticks: Mapping[float, str], across: str, up: str) -> Iterator[str]:
    for tick in _ticks(*frame.y):
        yield frame.line((frame.x[0], tick), (frame.x[1], tick), 'class="grid"')
        yield frame.text(frame.x[0], tick, _short(tick), 'class="tick" text-anchor="end"', dx=-7, dy=4)
    for tick, words in x_ticks.items():
        yield frame.text(tick, frame.y[0], words, 'class="tick" text-anchor="middle"', dy=16)
    yield frame.line((frame.x[0], frame.y[0]), (frame.x[1], frame.y[0]), 'class="axis"')
    middle = (frame.x[0] + frame.x[1]) / 2
    yield frame.text(middle, frame.y[0], across, 'class="name" text-anchor="middle"', dy=36)
    left, top = frame.at(frame.x[0], (frame.y[0] + frame.y[1]) / 2)
    where = f'transform="translate({left - 40:.1f},{top:.1f}) rotate(-90)"'
    yield f'<text class="name" text-anchor="middle" {where}>{escape(up)}</text>'


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between two others, five or so."""
    step = 10.0 ** math.floor(math.log10((high - low) / 2))
    step = next(s for s in (step, 2 * step, 5 * step, 10 * step) if (high - low) / s <= 6.5)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def _rounded(low: float, high: float) -> tuple[float, float]:
    """A range of some width within 0 and 1."""
    low, high = max(0.0, low), min(1.0, high)
    return (low, high) if high - low > 1e-6 else (max(0.0, low - 0.05), high + 0.05)


def _short(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".")


def _svg(parts: Sequence[str], title: str) -> str:
    body = "".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{body}</svg>'
