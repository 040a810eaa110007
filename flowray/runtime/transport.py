"""The coordinator's way to one agent: messages over the mesh, and what only Ray can do with its process."""

from __future__ import annotations

import asyncio
from typing import Any

import ray

from flowray.mesh.endpoint import Endpoint
from flowray.runtime import messages
from flowray.runtime._ray_errors import GONE, LOST, brief
from flowray.runtime.messages import Acknowledge, Begin, Begun, Cancel, Door, Held, Renewed, Start

_RETRY_S = 0.05  # between tries to reach a process that is unreachable but not known to be dead


class AgentLink:
    """One agent's process as the coordinator sees it. Use only from the coordinator's event loop."""

    def __init__(self, actor: Any, endpoint: Endpoint, process: str) -> None:
        self.actor = actor
        self.process = process  # its name in the mesh
        self._endpoint = endpoint

    def send(self, message: Start | Cancel | Acknowledge | Renewed) -> None:
        """Queue a message; it arrives once and in order, unless the process dies first.

        How many there are is bounded by what an agent may hold, so room on the link is not asked for.
        """
        self._endpoint.peer(self.process).send_anyway(messages.encode(message))

    async def begin(self, message: Begin, coordinator: Any) -> Begun:
        """Load the user's class in the agent's process and construct it."""
        return messages.decode(await self.actor.begin.remote(messages.encode(message), coordinator), Begun)

    async def attend(self, epoch: int, coordinator: Any, door: Door, timeout_s: float) -> list[Held]:
        """Tell the process of a new epoch; what its agents hold."""
        call = self.actor.attend.remote(epoch, coordinator, messages.encode(door))
        return messages.decode(await asyncio.wait_for(call, timeout_s), list[Held])

    async def watch(self) -> str:
        """Return when the process is gone: why."""
        while True:
            try:
                await self.actor.watch.remote()
                return "its process left"
            except GONE as error:
                return brief(error)
            except LOST:
                await asyncio.sleep(_RETRY_S)

    def kill(self) -> None:
        """End the process at once."""
        ray.kill(self.actor, no_restart=True)
