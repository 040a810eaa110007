"""What is due when. One timer for each (kind, key); setting it again replaces it."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable


class Timers:
    """A heap with lazy deletion, rebuilt when the dead outnumber the living, so memory follows the live timers."""

    __slots__ = ("_heap", "_live", "_next")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, str, str]] = []  # (at, number, kind, key)
        self._live: dict[tuple[str, str], int] = {}  # -> number of the one valid heap entry
        self._next = 0

    def set(self, kind: str, key: str, at: float) -> None:
        """Make (kind, key) due at `at`, whatever it was before."""
        self._next += 1
        self._live[kind, key] = self._next
        heapq.heappush(self._heap, (at, self._next, kind, key))
        if len(self._heap) > 2 * len(self._live) + 64:
            live = self._live
            self._heap = [e for e in self._heap if live.get((e[2], e[3])) == e[1]]
            heapq.heapify(self._heap)

    def set_all(self, kind: str, due: Iterable[tuple[str, float]]) -> None:
        """`set` for each (key, at), quicker for very many than one by one."""
        live, heap = self._live, self._heap
        for key, at in due:
            self._next += 1
            live[kind, key] = self._next
            heap.append((at, self._next, kind, key))
        heapq.heapify(heap)

    def clear(self, kind: str, key: str) -> None:
        """Forget (kind, key), if it is set."""
        self._live.pop((kind, key), None)

    def pop_due(self, now: float) -> tuple[str, str] | None:
        """The earliest timer with `at <= now`, removed; None when there is none."""
        while self._heap and self._heap[0][0] <= now:
            _, number, kind, key = heapq.heappop(self._heap)
            if self._live.get((kind, key)) == number:
                del self._live[kind, key]
                return kind, key
        return None

    def next_due(self) -> float | None:
        """When the earliest timer is due; None when nothing is set."""
        while self._heap:
            at, number, kind, key = self._heap[0]
            if self._live.get((kind, key)) == number:
                return at
            heapq.heappop(self._heap)
        return None

    @property
    def live(self) -> Collection[tuple[str, str]]:
        """What is set now, for whoever looks for many: to be looked at, not to be kept."""
        return self._live

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, timer: tuple[str, str]) -> bool:
        return timer in self._live
