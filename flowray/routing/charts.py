"""Two charts as inline SVG, cost against quality and reliability; the page around them gives the colours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

import numpy as np

from flowray.routing.costing import Curve
from flowray.routing.drawing import Frame, axes, short, svg, ticks
from flowray.routing.judge import ROUTER
from flowray.routing.metrics import Reliability, Values
from flowray.routing.tradeoff import BUDGET

NOT_DRAWN = frozenset({"majority", "agent_prior", "oracle"})  # a dot, mixing once more, a line far above
_DEAREST = 2.0


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
    frame = Frame(
        x=(math.log10(cheapest) - 0.05, math.log10(_DEAREST)),
        y=_rounded(low - 0.04 * (high - low), high + 0.06 * (high - low)),
    )
    costs = [tick for tick in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0) if math.log10(tick) >= frame.x[0]]
    x_ticks = {math.log10(tick): short(tick) for tick in costs}
    parts = [*axes(frame, x_ticks, "mean cost per task, best single agent = 1", "success")]
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
    return svg(parts, title)


def reliability(methods: Mapping[str, Reliability], title: str) -> str:
    """Observed against predicted success; below, how many predictions of the first method fell into each bin."""
    frame = Frame(x=(0.0, 1.0), y=(0.0, 1.0))
    parts = [*axes(frame, {t: short(t) for t in ticks(0.0, 1.0)}, "predicted probability of success", "observed share")]
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
    return svg(parts, title)


def _sampled(grid: Values, cost: Values, success: Values) -> list[tuple[float, float]]:
    """A hull on a grid of costs, from its cheapest point on; what is dearer is no better."""
    at = np.concatenate([cost[:1], grid[grid > cost[0]]])
    return list(zip(at.tolist(), np.interp(at, cost, success).tolist(), strict=True))


def _rounded(low: float, high: float) -> tuple[float, float]:
    """A range of some width within 0 and 1."""
    low, high = max(0.0, low), min(1.0, high)
    return (low, high) if high - low > 1e-6 else (max(0.0, low - 0.05), high + 0.05)
