"""Actor calls actor on plain Ray.

A plain actor asks one at a time and keeps calls in flight, both with `ray.get`, which is quicker here than awaiting;
an asyncio actor asks by the clock, for that cannot block.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import ray

from bench.workers.common import main
from bench.workers.loads import by_the_clock, latency
from bench.workers.plain_ray import start_ray

_FETCHED = 100


class Echo:
    def ask(self, body: bytes) -> bytes:
        return body

    def take(self, body: bytes) -> None:
        return None


class Asker:
    def one_at_a_time(self, echo: Any, settings: dict[str, Any]) -> dict[str, float]:
        body, warm = b"x" * settings["bytes"], settings["asks"] // 10
        found = []
        for number in range(settings["asks"] + warm):
            at = time.perf_counter()
            ray.get(echo.ask.remote(body))
            if number >= warm:
                found.append(time.perf_counter() - at)
        return latency("ask", found)

    def one_way(self, echo: Any, settings: dict[str, Any]) -> dict[str, float]:
        self._in_flight(echo, settings, settings["seconds"] / 5)
        done, took_s = self._in_flight(echo, settings, settings["seconds"])
        return {"one_way_per_s": done / took_s}

    def _in_flight(self, echo: Any, settings: dict[str, Any], seconds: float) -> tuple[int, float]:
        """The oldest hundred calls are fetched at once and replaced; every call is answered before the time ends."""
        body, done = b"x" * settings["bytes"], 0
        under_way: deque[Any] = deque()
        began_at = time.perf_counter()
        while time.perf_counter() < began_at + seconds:
            while len(under_way) < settings["in_flight"]:
                under_way.append(echo.take.remote(body))
            ray.get([under_way.popleft() for _ in range(_FETCHED)])
            done += _FETCHED
        ray.get(list(under_way))
        return done + len(under_way), time.perf_counter() - began_at


class AskerByTheClock:
    async def run(self, echo: Any, settings: dict[str, Any]) -> dict[str, float]:
        async def ask(body: bytes) -> None:
            await echo.ask.remote(body)

        return await by_the_clock(ask, settings)


def work(settings: dict[str, Any]) -> dict[str, float]:
    start_ray()
    options: dict[str, Any] = {"num_cpus": 0.001, "enable_task_events": settings["task_events"]}

    def start(kind: type) -> Any:
        return ray.remote(kind).options(**options).remote()

    echo, asker = start(Echo), start(Asker)
    figures: dict[str, float] = ray.get(asker.one_at_a_time.remote(echo, settings))
    figures |= ray.get(asker.one_way.remote(echo, settings))
    figures |= ray.get(start(AskerByTheClock).run.remote(echo, settings))
    ray.shutdown()
    return figures


if __name__ == "__main__":
    main(work)
