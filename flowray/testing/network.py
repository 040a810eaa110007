"""Messages between simulated processes: they take time, and the faults decide what else becomes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random

from flowray.testing.clock import VirtualClock
from flowray.testing.faults import Delay, Drop, Duplicate, Fault, Reorder


class Link:
    """One direction of one stream: in order, and nothing gets through once it is broken."""

    __slots__ = ("broken", "last_at")

    def __init__(self) -> None:
        self.broken = False
        self.last_at = 0.0  # when the last message in flight arrives


class Network:
    """Takes messages as closures and runs them later: once, twice or never."""

    def __init__(self, clock: VirtualClock, rng: Random, faults: Iterable[Fault], latency_s: float = 0.0005) -> None:
        self._clock = clock
        self._random = rng.random
        self._latency_s = latency_s
        self._drop = self._duplicate = self._reorder = self._delay = self._delay_max_s = 0.0
        self.dropped = self.duplicated = self.delayed = self.reordered = 0  # messages
        for fault in faults:
            if isinstance(fault, Drop):
                self._drop = fault.ratio
            elif isinstance(fault, Duplicate):
                self._duplicate = fault.ratio
            elif isinstance(fault, Reorder):
                self._reorder = fault.ratio
            elif isinstance(fault, Delay):
                self._delay, self._delay_max_s = fault.ratio, fault.max_s

    def heal(self) -> None:
        """No more faults."""
        self._drop = self._duplicate = self._reorder = self._delay = 0.0

    def send(self, deliver: Callable[[], None], link: Link | None = None) -> bool:
        """Deliver later. False when the message is lost; a lost message breaks its link."""
        if link is not None and link.broken:
            return False
        if self._drop and self._random() < self._drop:
            self.dropped += 1
            if link is not None:
                link.broken = True
            return False
        self._deliver(deliver, link)
        if self._duplicate and self._random() < self._duplicate:
            self.duplicated += 1
            self._deliver(deliver, None)
        return True

    def _deliver(self, deliver: Callable[[], None], link: Link | None) -> None:
        random = self._random
        delay_s = self._latency_s * (0.5 + random())
        if self._delay and random() < self._delay:
            self.delayed += 1
            delay_s += self._delay_max_s * random() ** 4
        at = self._clock.now + delay_s
        if link is not None:
            if self._reorder and random() < self._reorder:
                self.reordered += 1
            elif at < link.last_at:
                at = link.last_at
            else:
                link.last_at = at
        self._clock.at(at, deliver)
