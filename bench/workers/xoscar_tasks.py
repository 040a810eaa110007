"""No-op calls on xoscar actors, each in a process of its own, from the process that started them."""

from __future__ import annotations

import itertools
from typing import Any

import uvloop
import xoscar

from bench.workers.calls import no_op_calls
from bench.workers.common import main
from bench.workers.ports import free_port
from bench.workers.xoscar_actors import Member


def work(settings: dict[str, Any]) -> dict[str, float]:
    return uvloop.run(_measure(settings))


async def _measure(settings: dict[str, Any]) -> dict[str, float]:
    pool = await xoscar.create_actor_pool(f"127.0.0.1:{free_port()}", n_process=settings["agents"])
    async with pool:
        actors = [await xoscar.create_actor(Member, address=place) for place in pool.sub_processes]
        following = itertools.cycle(actors)

        async def call(body: bytes) -> None:
            await next(following).take(body)

        return await no_op_calls(call, settings, {"agents": [await actor.pid() for actor in actors]})


if __name__ == "__main__":
    main(work)
