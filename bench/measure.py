"""Repeating and summing up: what a figure is, and how sides that are compared take turns.

Machines drift (neighbours, clocks, caches), so sides take turns within one run, A B A B, and not A A B B: a drift then
meets all of them. The order is turned round in every second repeat, A B B A, so that nobody is always the first. The
figure is the median over repeats, the spread their least and greatest: with three to ten repeats that says more than
a standard deviation would.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

FLOWRAY = "flowray"
Figures = dict[str, float]  # metric -> value, of one side in one repeat


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One metric: every repeat's value, for flowray and for each peer."""

    metric: str
    unit: str  # "tasks/s", "ms", "s", "MB", "us/task", "tasks", "ratio"
    flowray: Sequence[float]  # one for each repeat, at least one
    peers: Mapping[str, Sequence[float]] = field(default_factory=dict)  # the first is the one of the ratio

    def __post_init__(self) -> None:
        for side, values in {FLOWRAY: self.flowray, **self.peers}.items():
            if not values or not all(math.isfinite(value) for value in values):
                raise ValueError(f"{self.metric}: {side} has no finite figures: {list(values)}")

    def result(self) -> dict[str, object]:
        """As it stands in the document."""
        ours = statistics.median(self.flowray)
        peers = {name: statistics.median(values) for name, values in self.peers.items()}
        return {
            "metric": self.metric,
            "unit": self.unit,
            "flowray": rounded(ours),
            "peers": {name: rounded(value) for name, value in peers.items()},
            "ratio": ratio(ours, next(iter(peers.values()), None)),
            "n": len(self.flowray),
            "spread": spread(self.flowray),
            "peers_spread": {name: spread(values) for name, values in self.peers.items()},
        }


def spread(values: Sequence[float]) -> list[float]:
    """[least, greatest] over the repeats."""
    return [rounded(min(values)), rounded(max(values))]


def ratio(ours: float, theirs: float | None) -> float | None:
    """flowray / first peer; None without a peer or beside a peer's zero."""
    return rounded(ours / theirs) if theirs else None


def rounded(value: float) -> float:
    """Four significant digits: more would be noise and would make two documents hard to compare by eye."""
    return float(f"{value:.4g}") if abs(value) < 1000 else float(round(value))


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` (0..1) of the values do not exceed, interpolated. Raises ValueError for no values."""
    if not values or not 0.0 <= share <= 1.0:
        raise ValueError(f"no percentile {share} of {len(values)} values")
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def higher_is_better(unit: str) -> bool:
    """Rates grow when things get better; times, sizes and losses shrink."""
    return unit.endswith("/s")


def alternate(
    sides: Mapping[str, Callable[[], Figures]], repeats: int, *, warm_up: bool = False
) -> dict[str, list[Figures]]:
    """Run every side `repeats` times, taking turns; `warm_up` runs each once before and forgets it."""
    if repeats < 1:
        raise ValueError(f"at least one repeat is wanted, got {repeats}")
    if warm_up:
        for name, run in sides.items():
            say(f"warm-up: {name}")
            run()
    found: dict[str, list[Figures]] = {name: [] for name in sides}
    for number in range(repeats):
        names = list(sides)[:: 1 if number % 2 == 0 else -1]
        for name in names:
            say(f"repeat {number + 1} of {repeats}: {name}")
            found[name].append(sides[name]())
    return found


def compared(
    found: Mapping[str, Sequence[Figures]], units: Mapping[str, str], ours: str = FLOWRAY
) -> list[Measurement]:
    """A measurement for each metric of `units`; a peer that has no such metric is left out of it."""
    return [
        Measurement(
            metric=metric,
            unit=unit,
            flowray=[figures[metric] for figures in found[ours]],
            peers={
                name: [figures[metric] for figures in runs]
                for name, runs in found.items()
                if name != ours and all(metric in figures for figures in runs)
            },
        )
        for metric, unit in units.items()
    ]


def say(text: str) -> None:
    """Progress, on stderr: stdout belongs to the document."""
    print(text, file=sys.stderr, flush=True)
