"""Virtual time: a heap of things to do. Nothing waits; time jumps to whatever comes next.

Two entries of the same moment run in the order in which they were made, so a run depends on its seed alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from random import Random
from typing import Protocol


class VirtualClock:
    """What will happen when. `now` is in seconds and starts at 0."""

    __slots__ = ("_heap", "_number", "now")

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0

    @property
    def steps(self) -> int:
        """Entries run so far."""
        return self._number - len(self._heap)

    def at(self, when: float, do: Callable[[], None]) -> None:
        """Do something at a time; at once (but not before this returns) when that has passed."""
        self._number += 1
        heappush(self._heap, (when if when > self.now else self.now, self._number, do))

    def after(self, delay_s: float, do: Callable[[], None]) -> None:
        """Do something `delay_s` from now."""
        self._number += 1
        heappush(self._heap, (self.now + delay_s if delay_s > 0.0 else self.now, self._number, do))

    def step(self, until: float = float("inf")) -> bool:
        """Run the next entry if it is due by `until`; False when there is none."""
        if not self._heap or self._heap[0][0] > until:
            return False
        self.now, _, do = heappop(self._heap)
        do()
        return True

    def run(self, until: float, done: Callable[[], bool] | None = None) -> bool:
        """Run entries until `done()` or until the time `until`, where `now` then stands. True when done."""
        heap = self._heap
        while done is None or not done():
            while heap and heap[0][0] <= until:
                self.now, _, do = heappop(heap)
                do()
                if done is not None and done():
                    return True
            self.now = max(self.now, until)
            return done is not None and done()
        return True


class Distribution(Protocol):
    """Where durations come from."""

    def draw(self, rng: Random) -> float:
        """One value, in seconds."""
        ...


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the same."""

    value_s: float

    def draw(self, rng: Random) -> float:
        return self.value_s


@dataclass(frozen=True, slots=True)
class Uniform:
    """Anything between two bounds."""

    low_s: float
    high_s: float

    def draw(self, rng: Random) -> float:
        return rng.uniform(self.low_s, self.high_s)


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Mostly near the median, now and then far above it: how services behave."""

    median_s: float
    sigma: float = 0.7

    def draw(self, rng: Random) -> float:
        return self.median_s * rng.lognormvariate(0.0, self.sigma)
