"""Many plain Ray actors: time to ready, memory, and all of them asking.

Actors with two threads: one asks, one answers. Asyncio actors answer fewer questions here.
"""

from __future__ import annotations

import os
import time
from collections import deque
from typing import Any

import ray

from bench.workers.common import main, private_mb
from bench.workers.plain_ray import start_ray
from bench.workers.ring import SETTLE_S, begin_at, neighbours, wait_s


class Member:
    def pid(self) -> int:
        return os.getpid()

    def ask(self, body: bytes) -> bytes:
        return body

    def run(self, neighbour: Any, settings: dict[str, Any], moment: float) -> int:
        body, done = b"x" * settings["bytes"], 0
        ray.get(neighbour.ask.remote(body))
        time.sleep(wait_s(moment))
        under_way = deque(neighbour.ask.remote(body) for _ in range(settings["each"]))
        while time.time() < moment + settings["seconds"]:
            ray.get(under_way.popleft())
            under_way.append(neighbour.ask.remote(body))
            done += 1
        ray.get(list(under_way))
        return done


def work(settings: dict[str, Any]) -> dict[str, float]:
    began_at = time.perf_counter()
    start_ray()
    started_at = time.perf_counter()
    options: dict[str, Any] = {"num_cpus": 0.001, "enable_task_events": settings["task_events"], "max_concurrency": 2}
    actors = [ray.remote(Member).options(**options).remote() for _ in range(settings["agents"])]
    pids = ray.get([actor.pid.remote() for actor in actors], timeout=400)
    ready_at = time.perf_counter()
    time.sleep(SETTLE_S)
    figures = {
        "cluster_start_s": started_at - began_at,
        "ready_s": ready_at - began_at,
        "added_s": ready_at - started_at,
        "private_mb": private_mb(pids),
    }
    moment = begin_at(len(actors))
    runs = [actor.run.remote(neighbour, settings, moment) for actor, neighbour in neighbours(actors)]
    figures["asks_per_s"] = sum(ray.get(runs, timeout=120)) / settings["seconds"]
    ray.shutdown()
    return figures


if __name__ == "__main__":
    main(work)
