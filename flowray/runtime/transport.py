"""The coordinator's way to one process: messages over the mesh, and what only Ray can do with it."""

from __future__ import annotations

import asyncio
from typing import Any

import ray

from flowray.mesh.endpoint import Endpoint
from flowray.runtime import messages
from flowray.runtime._ray_errors import GONE, LOST, brief, seen_dead
from flowray.runtime.messages import (
    Acknowledge,
    Begin,
    Begun,
    Cancel,
    Door,
    Found,
    Leased,
    Prepare,
    Prepared,
    Renewed,
    Retire,
    Start,
    StepAnswer,
    ToSeat,
)

_RETRY_S = 0.05  # between tries to reach a process that is unreachable but not known to be dead


class ProcessLink:
    """One process of agents as the coordinator sees it. Use only from the coordinator's event loop."""

    def __init__(self, actor: Any, endpoint: Endpoint, process: str) -> None:
        self.actor = actor
        self.process = process  # its name in the mesh
        self._endpoint = endpoint

    def send(self, message: Start | StepAnswer | Leased | Cancel | Acknowledge | Retire | Renewed | ToSeat) -> None:
        """Queue a message; it arrives once and in order, unless the process dies first.

        How many there are is bounded by what an agent may hold, so room on the link is not asked for.
        """
        self._endpoint.peer(self.process).send_anyway(messages.encode(message))

    async def prepare(self, message: Prepare, coordinator: Any) -> Prepared:
        """Connect it to the coordinator and load the class it will host."""
        return messages.decode(await self.actor.prepare.remote(messages.encode(message), coordinator), Prepared)

    async def begin(self, message: Begin) -> Begun:
        """Construct an agent there."""
        return messages.decode(await self.actor.begin.remote(messages.encode(message)), Begun)

    async def attend(self, epoch: int, coordinator: Any, door: Door, timeout_s: float) -> Found:
        """Tell the process of a new epoch; what its agents hold."""
        call = self.actor.attend.remote(epoch, coordinator, messages.encode(door))
        return messages.decode(await asyncio.wait_for(call, timeout_s), Found)

    async def watch(self) -> tuple[str, bool]:
        """Return when the process is gone: why, and whether it was seen dead (or only cannot be reached any more)."""
        while True:
            try:
                await self.actor.watch.remote()
                return "its process left", True
            except GONE as error:
                return brief(error), seen_dead(error)
            except LOST:
                await asyncio.sleep(_RETRY_S)

    def kill(self) -> None:
        """End the process at once."""
        ray.kill(self.actor, no_restart=True)
