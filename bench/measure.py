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
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

FLOWRAY = "flowray"
Figures = dict[str, float]  # metric -> value, of one side in one repeat


class SideAbsent(Exception):
    """A side cannot take part here; the message says why: a package that is not to be had, a part not built yet."""


class SideFailed(Exception):
    """A side took part and did not give its figures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a member is to be run."""

    quick: bool = False  # for seeing that it works, not for figures
    repeats: int | None = None  # None: the member's own number
    peers: tuple[str, ...] | None = None  # these beside flowray; None: all that the member has
    flowray: bool = True  # False: the peers alone

    def wants(self, side: str) -> bool:
        return self.flowray if side == FLOWRAY else self.peers is None or side in self.peers


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One metric: every repeat's value, for flowray and for each peer. A side that was absent has none."""

    metric: str
    unit: str  # "tasks/s", "ms", "s", "MB", "us/task", "tasks", "ratio", "share"
    flowray: Sequence[float]  # one for each repeat; empty: flowray has no such figure
    peers: Mapping[str, Sequence[float]] = field(default_factory=dict)  # the first is the one of the ratio

    def __post_init__(self) -> None:
        sides = {FLOWRAY: self.flowray, **self.peers} if self.flowray or not self.peers else self.peers
        for side, values in sides.items():
            if not values or not all(math.isfinite(value) for value in values):
                raise ValueError(f"{self.metric}: {side} has no finite figures: {list(values)}")

    def result(self) -> dict[str, object]:
        """As it stands in the document; None where flowray has no figure."""
        ours = statistics.median(self.flowray) if self.flowray else None
        peers = {name: statistics.median(values) for name, values in self.peers.items()}
        ratios = {name: ratio(ours, value) for name, value in peers.items()}
        return {
            "metric": self.metric,
            "unit": self.unit,
            "flowray": None if ours is None else rounded(ours),
            "peers": {name: rounded(value) for name, value in peers.items()},
            "ratio": next(iter(ratios.values()), None),
            "ratios": ratios,
            "n": max(len(values) for values in (self.flowray, *self.peers.values())),
            "spread": spread(self.flowray) if self.flowray else None,
            "peers_spread": {name: spread(values) for name, values in self.peers.items()},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a member found: its measurements, and what one must know to read them."""

    measurements: Sequence[Measurement]
    absent: Mapping[str, str] = field(default_factory=dict)  # side -> why it has no figures
    settings: Mapping[str, object] = field(default_factory=dict)  # lengths, sizes, rates
    versions: Mapping[str, str] = field(default_factory=dict)  # of what only the peers use


def spread(values: Sequence[float]) -> list[float]:
    """[least, greatest] over the repeats."""
    return [rounded(min(values)), rounded(max(values))]


def ratio(ours: float | None, theirs: float | None) -> float | None:
    """flowray / peer; None where one of them is missing or the peer's is zero."""
    return rounded(ours / theirs) if theirs and ours is not None else None


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
    """Rates, success and shares of what could be had grow when things get better; times, sizes and losses shrink."""
    return unit.endswith("/s") or unit in ("share", "success")


@dataclass(frozen=True, slots=True)
class Turns:
    """What the sides gave: one entry for each repeat, or the reason why there is none."""

    figures: dict[str, list[Figures]]
    absent: dict[str, str]


def alternate(
    sides: Mapping[str, Callable[[], Figures]],
    repeats: int,
    *,
    warm_up: bool = False,
    required: Collection[str] = (FLOWRAY,),
) -> Turns:
    """Run every side `repeats` times, taking turns; `warm_up` runs each once before and forgets it.

    A side that is absent, or a peer that fails, is out from then on, with its reason and without figures: half an
    hour of the others is not thrown away for it.

    Raises:
        SideFailed: a required side failed.
    """
    if repeats < 1:
        raise ValueError(f"at least one repeat is wanted, got {repeats}")
    turns = Turns({name: [] for name in sides}, {})
    if warm_up:
        for name, run in sides.items():
            say(f"warm-up: {name}")
            _turn(name, run, turns, "warm-up", required)
            if name in turns.figures:
                turns.figures[name].clear()
    for number in range(repeats):
        which = f"repeat {number + 1} of {repeats}"
        for name in list(turns.figures)[:: 1 if number % 2 == 0 else -1]:
            say(f"{which}: {name}")
            _turn(name, sides[name], turns, which, required)
    return turns


def _turn(name: str, run: Callable[[], Figures], turns: Turns, which: str, required: Collection[str]) -> None:
    try:
        turns.figures[name].append(run())
    except SideAbsent as error:
        turns.absent[name] = str(error)
    except SideFailed as error:
        if name in required:
            raise
        turns.absent[name] = f"failed in {which}: {error}"
    if name in turns.absent:
        say(f"{name} is out: {turns.absent[name]}")
        del turns.figures[name]


def compared(
    found: Mapping[str, Sequence[Figures]], units: Mapping[str, str], ours: str = FLOWRAY
) -> list[Measurement]:
    """A measurement for each metric of `units` that some side has; a side without it is left out of it."""
    return [
        Measurement(
            metric=metric,
            unit=unit,
            flowray=_values(found.get(ours, ()), metric),
            peers={name: _values(runs, metric) for name, runs in found.items() if name != ours and _has(runs, metric)},
        )
        for metric, unit in units.items()
        if any(_has(runs, metric) for runs in found.values())
    ]


def _has(runs: Sequence[Figures], metric: str) -> bool:
    return bool(runs) and all(metric in figures for figures in runs)


def _values(runs: Sequence[Figures], metric: str) -> list[float]:
    return [figures[metric] for figures in runs] if _has(runs, metric) else []


def say(text: str) -> None:
    """Progress, on stderr: stdout belongs to the document."""
    print(text, file=sys.stderr, flush=True)
