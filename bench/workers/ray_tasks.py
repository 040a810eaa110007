"""No-op calls on plain Ray actors.

No journal, no acknowledgement, no retry, and calls go round the actors in turn: the cheapest that Ray can be used
for this. The oldest hundred calls are fetched at once and replaced; waiting for whichever is done first
(`ray.wait`) costs the driver more with 1,000 in flight.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import deque
from typing import Any

import ray

from bench.measure import percentile
from bench.workers.common import Moment, between, main
from bench.workers.plain_ray import start_ray

_SETTLE_S = 1.0
_FETCHED = 100


class Noop:
    def f(self, prompt: str) -> None:
        return None

    def pid(self) -> int:
        return os.getpid()


def work(settings: dict[str, Any]) -> dict[str, float]:
    start_ray()
    options: dict[str, Any] = {"num_cpus": 0.001, "enable_task_events": settings["task_events"]}
    actors = [ray.remote(Noop).options(**options).remote() for _ in range(settings["agents"])]
    agents = ray.get([actor.pid.remote() for actor in actors], timeout=180)
    time.sleep(_SETTLE_S)
    groups = {"driver": [os.getpid()], "agents": agents}
    calls = Calls(actors, settings["in_flight"])
    calls.run_until(time.perf_counter() + settings["warm_s"])
    start = Moment.now(calls.done, groups)
    calls.run_until(time.perf_counter() + settings["measure_s"])
    figures = between(start, Moment.now(calls.done, groups))
    calls.drain()
    single = one_at_a_time(actors, settings["single"])
    figures["one_task_p50_ms"] = percentile(single, 0.50) * 1e3
    figures["one_task_p99_ms"] = percentile(single, 0.99) * 1e3
    ray.shutdown()
    return figures


class Calls:
    """Keeps a number of calls in flight."""

    def __init__(self, actors: list[Any], in_flight: int) -> None:
        self._next = itertools.cycle(actors)
        self._in_flight = in_flight
        self._open: deque[Any] = deque()
        self.done = 0

    def run_until(self, stop_at: float) -> None:
        while time.perf_counter() < stop_at:
            while len(self._open) < self._in_flight:
                self._open.append(next(self._next).f.remote("x"))
            self._fetch()

    def drain(self) -> None:
        while self._open:
            self._fetch()

    def _fetch(self) -> None:
        oldest = [self._open.popleft() for _ in range(min(_FETCHED, len(self._open)))]
        ray.get(oldest, timeout=60)
        self.done += len(oldest)


def one_at_a_time(actors: list[Any], count: int) -> list[float]:
    """Seconds from call to result, with nothing else in flight; a tenth more before, to warm up."""
    found = []
    following = itertools.cycle(actors)
    for number in range(count + count // 10):
        at = time.perf_counter()
        ray.get(next(following).f.remote("x"), timeout=60)
        if number >= count // 10:
            found.append(time.perf_counter() - at)
    return found


if __name__ == "__main__":
    main(work)
