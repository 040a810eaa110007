"""Actor calls actor with xoscar: two processes of one pool, which xoscar joins by a Unix socket of its own."""

from __future__ import annotations

import asyncio
from typing import Any

import xoscar

from bench.workers.common import main
from bench.workers.ports import free_port
from bench.workers.xoscar_actors import Asker, Echo


def work(settings: dict[str, Any]) -> dict[str, float]:
    return asyncio.run(_measure(settings))


async def _measure(settings: dict[str, Any]) -> dict[str, float]:
    pool = await xoscar.create_actor_pool(f"127.0.0.1:{free_port()}", n_process=2)
    async with pool:
        there = list(pool.sub_processes)
        echo = await xoscar.create_actor(Echo, address=there[0])
        asker = await xoscar.create_actor(Asker, address=there[1])
        figures: dict[str, float] = await asker.run(echo, settings)
        return figures


if __name__ == "__main__":
    main(work)
