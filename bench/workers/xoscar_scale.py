"""Many xoscar actors, each in a process of its own: time to ready, memory, and all of them asking."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import uvloop
import xoscar

from bench.workers.common import main, private_mb
from bench.workers.ports import free_port
from bench.workers.ring import SETTLE_S, begin_at, neighbours, parts
from bench.workers.xoscar_actors import Member

# What a pool tells each of its processes of all others must fit into 10 KB: 120 fail in xoscar 0.12 ("Serialized object
# ... is too long").
_LARGEST_POOL = 24


def work(settings: dict[str, Any]) -> dict[str, float]:
    return uvloop.run(_measure(settings))


async def _measure(settings: dict[str, Any]) -> dict[str, float]:
    began_at = time.perf_counter()
    # Its cluster is its pools, and a pool is its processes: there is no cluster without them.
    async with contextlib.AsyncExitStack() as pools:
        places: list[str] = []
        for size in parts(settings["agents"], _LARGEST_POOL):
            pool = await xoscar.create_actor_pool(f"127.0.0.1:{free_port()}", n_process=size)
            places += (await pools.enter_async_context(pool)).sub_processes
        started_at = time.perf_counter()
        actors = [await xoscar.create_actor(Member, address=place) for place in places]
        pids = await asyncio.gather(*(actor.pid() for actor in actors))
        ready_at = time.perf_counter()
        await asyncio.sleep(SETTLE_S)
        figures = {
            "cluster_start_s": started_at - began_at,
            "ready_s": ready_at - began_at,
            "added_s": ready_at - started_at,
            "private_mb": private_mb(pids),
        }
        moment = begin_at(len(actors))
        done = await asyncio.gather(
            *(actor.run(neighbour, settings, moment) for actor, neighbour in neighbours(actors))
        )
        return figures | {"asks_per_s": sum(done) / settings["seconds"]}


if __name__ == "__main__":
    main(work)
