"""Charts of what changes over time as inline SVG: lines, and shares that add up; the page gives the colours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

import numpy as np

from flowray.routing.drawing import Frame, axes, svg, ticks
from flowray.routing.metrics import Values

_UNITS = ((86_400.0, "days"), (3_600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))


def lines(
    at: Values,
    series: Mapping[str, tuple[str, Values]],
    title: str,
    *,
    bounds: tuple[float, float] | None = None,
    levels: Sequence[float] = (),
    marks: Mapping[str, int] | None = None,
) -> str:
    """Lines over time, in one frame.

    `at` [points] are seconds; `series` maps a style to a name and values [points], of which NaN are left out.
    The first is on top. The y axis has at least `bounds`; `levels` are dashed lines; `marks` rings a point of a style.
    """
    elapsed, unit = _elapsed(at)
    frame = Frame(x=_span(elapsed), y=_range([values for _, values in series.values()], bounds, levels))
    parts = [*_over_time(frame, unit, title)]
    parts += [frame.line((frame.x[0], level), (frame.x[1], level), 'class="mark"') for level in levels]
    for style, (name, values) in reversed(list(series.items())):
        points = [(x, y) for x, y in zip(elapsed.tolist(), values.tolist(), strict=True) if np.isfinite(y)]
        parts.append(frame.path(points, f'class="line {escape(style)}"'))
        parts += [frame.dot(x, y, 2.4, f'class="dot {escape(style)}"', f"{name}: {y:.4g}") for x, y in points]
    for style, place in (marks or {}).items():
        name, values = series[style]
        what = f"{name}: drift found here"
        parts.append(frame.dot(float(elapsed[place]), float(values[place]), 6, 'class="best"', what))
    return svg(parts, title)


def shares(at: Values, series: Mapping[str, tuple[str, Values]], title: str) -> str:
    """Areas on one another, the first at the bottom; values [points] of all series together are 1 at each point."""
    elapsed, unit = _elapsed(at)
    frame = Frame(x=_span(elapsed), y=(0.0, 1.0))
    below, parts = np.zeros(len(elapsed)), [*_over_time(frame, unit, title)]
    for style, (name, values) in series.items():
        above = below + values
        there, back = zip(elapsed, above, strict=True), zip(elapsed[::-1], below[::-1], strict=True)
        corners = " ".join("{:.1f},{:.1f}".format(*frame.at(float(x), float(y))) for x, y in (*there, *back))
        what = f"{name}: {float(values.mean()):.1%} on average"
        parts.append(
            f'<polygon class="area {escape(style)}" points="{corners}"><title>{escape(what)}</title></polygon>'
        )
        below = above
    return svg(parts, title)


def _over_time(frame: Frame, unit: str, title: str) -> Iterator[str]:
    yield from axes(frame, {tick: f"{tick:g}" for tick in ticks(*frame.x)}, f"{unit} since the first window", title)


def _elapsed(at: Values) -> tuple[Values, str]:
    """Times since the first, in a unit that fits."""
    elapsed = at - at[0]
    size, unit = next((one for one in _UNITS if elapsed[-1] >= 2 * one[0]), _UNITS[-1])
    return elapsed / size, unit


def _span(elapsed: Values) -> tuple[float, float]:
    return 0.0, float(elapsed[-1]) or 1.0


def _range(
    series: Sequence[Values], bounds: tuple[float, float] | None, levels: Sequence[float]
) -> tuple[float, float]:
    """Room for everything that is drawn, and some air."""
    drawn = np.concatenate([*series, bounds or (), levels])
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return 0.0, 1.0
    low, high = float(drawn.min()), float(drawn.max())
    air = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    inside = bounds or (np.inf, -np.inf)  # a bound that nothing crosses is where the axis ends
    return (low if low >= inside[0] else low - air), (high if high <= inside[1] else high + air)
