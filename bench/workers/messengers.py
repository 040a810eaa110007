"""flowray's agents that talk to each other."""

from __future__ import annotations

import asyncio
from typing import Any

import flowray as fr
from bench.workers.loads import by_the_clock, one_at_a_time, one_way
from bench.workers.ring import ask_all_along

ECHO, ASKER, MEMBER = "echo", "asker", "member"
_COUNT = b""  # what a receiver answers with the number of those that came one way
_TIMEOUT_S = 60
_OPEN_ASKS = 4_000  # of one agent at once: a little fewer than mesh.talk.open_asks allows


@fr.agent(capabilities={"echo"}, num_cpus=0.001)
class Echo:
    """Gives back what it is asked, and counts what it is sent."""

    def __init__(self) -> None:
        self._arrived = 0

    async def run(self, task: fr.Task, ctx: fr.Context) -> None:
        return None

    async def on_message(self, message: Any, ctx: fr.Context) -> Any:
        if message.body == _COUNT:
            return self._arrived
        self._arrived += 1
        return message.body


@fr.agent(capabilities={"asker"}, num_cpus=0.001)
class Asker:
    """Asks Echo in every way that is measured."""

    async def run(self, task: fr.Task, ctx: Any) -> dict[str, Any]:
        settings, echo = task.payload, f"{ECHO}-0"
        room = asyncio.Semaphore(_OPEN_ASKS)  # who waits for it waits in the figures, as in the peers' queues

        async def ask(body: bytes) -> object:
            async with room:
                return await ctx.ask(echo, body, timeout_s=_TIMEOUT_S)

        async def send(body: bytes) -> None:
            await ctx.send(echo, body)

        async def arrived() -> int:
            count: int = await ctx.ask(echo, _COUNT, timeout_s=_TIMEOUT_S)
            return count

        figures = await one_at_a_time(ask, settings)
        body = b"x" * settings["bytes"]
        await one_way(send, arrived, body, settings["seconds"] / 5)
        figures["one_way_per_s"] = await one_way(send, arrived, body, settings["seconds"])
        return figures | await by_the_clock(ask, settings)


@fr.agent(capabilities={"member"}, num_cpus=0.001)
class Member:
    """One of many that all ask: each its neighbour, all at the same time."""

    async def run(self, task: fr.Task, ctx: Any) -> int | None:
        settings = task.payload
        if settings is None:  # without settings: one of the tasks that do nothing
            return None
        number = int(ctx.agent_id.rpartition("-")[2])
        neighbour = f"{MEMBER}-{(number + 1) % settings['agents']}"

        async def ask(body: bytes) -> object:
            return await ctx.ask(neighbour, body, timeout_s=_TIMEOUT_S)

        return await ask_all_along(ask, settings, settings["begin_at"])

    async def on_message(self, message: Any, ctx: fr.Context) -> Any:
        return message.body
