"""What carries messages between processes. The one seam: nothing else calls a Ray method to pass a message.

Today these are Ray actor calls, batched: whatever is queued for an agent while one call is under way goes out
together with the next, so an idle link costs one call's latency and a busy one shares it among many messages.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

import ray

from flowray.runtime import messages
from flowray.runtime._ray_errors import GONE, LOST, REFUSED, brief
from flowray.runtime.messages import (
    Answer,
    Begin,
    Begun,
    Cancel,
    Collect,
    Collected,
    Held,
    Question,
    Reply,
    Report,
    Start,
    Submit,
)

_RETRY_S = 0.05  # between tries to reach a process that is unreachable but not known to be dead
_FLIGHT = 256  # messages in one call to an agent


class CoordinatorLink(Protocol):
    """How a driver reaches the coordinator. Raises CoordinatorUnavailable when it cannot."""

    def submit(self, message: Submit, timeout_s: float) -> list[Answer]:
        """Hand in tasks; returns once the accepted ones are on disk."""
        ...

    def collect(self, message: Collect, timeout_s: float) -> Collected:
        """Wait for outcomes."""
        ...

    def ask(self, message: Question, timeout_s: float) -> Reply:
        """Anything else."""
        ...


class RayCoordinatorLink:
    """The coordinator by its actor handle. Ray's errors come out as they are: the caller decides what to repeat."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def submit(self, message: Submit, timeout_s: float) -> list[Answer]:
        body = ray.get(self.actor.submit.remote(messages.encode(message)), timeout=timeout_s)
        return messages.decode(body, list[Answer])

    def collect(self, message: Collect, timeout_s: float) -> Collected:
        body = ray.get(self.actor.collect.remote(messages.encode(message)), timeout=timeout_s)
        return messages.decode(body, Collected)

    def ask(self, message: Question, timeout_s: float) -> Reply:
        body = ray.get(self.actor.ask.remote(messages.encode(message)), timeout=timeout_s)
        return messages.decode(body, Reply)


class AgentLink:
    """One agent's process as the coordinator sees it. Use only from the coordinator's event loop."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self._queue: list[Start | Cancel] = []
        self._sending = False
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, message: Start | Cancel) -> None:
        """Queue a message; it goes out in order, at least once, unless the process dies first."""
        self._queue.append(message)
        if not self._sending:
            self._sending = True
            task = asyncio.get_running_loop().create_task(self._flush())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _flush(self) -> None:
        await asyncio.sleep(0)  # let whoever is sending finish: the first batch is then a batch already
        while self._queue:
            batch, self._queue = self._queue[:_FLIGHT], self._queue[_FLIGHT:]
            body = messages.encode(batch)
            while True:
                try:
                    await self.actor.deliver.remote(body)
                    break
                except GONE:
                    self._queue.clear()  # the watch says so too, and the core sends these tasks elsewhere
                    break
                except LOST:
                    await asyncio.sleep(_RETRY_S)
        self._sending = False

    async def begin(self, message: Begin, coordinator: Any) -> Begun:
        """Load the user's class in the agent's process and construct it."""
        return messages.decode(await self.actor.begin.remote(messages.encode(message), coordinator), Begun)

    async def attend(self, epoch: int, coordinator: Any, timeout_s: float) -> Held:
        """Tell the agent of a new epoch; what it holds."""
        body = await asyncio.wait_for(self.actor.attend.remote(epoch, coordinator), timeout_s)
        return messages.decode(body, Held)

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


class ReportLink:
    """How an agent's process answers. Use only from its event loop."""

    def __init__(self, on_acknowledged: Callable[[int], None]) -> None:
        self._on_acknowledged = on_acknowledged
        self._coordinator: Any = None
        self._wake = asyncio.Event()

    def attach(self, coordinator: Any) -> None:
        """Answer to this coordinator from now on."""
        self._coordinator = coordinator
        self._wake.set()

    def wake(self) -> None:
        """There is something to report."""
        self._wake.set()

    async def run(self, pending: Callable[[], Report | None]) -> None:
        """Report whatever is pending until each batch is acknowledged, which means: on disk."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while (report := pending()) is not None:
                try:
                    await self._coordinator.report.remote(messages.encode(report))
                except (*LOST, *REFUSED):
                    # The coordinator restarts under the same handle, or has a journal that it cannot use until
                    # somebody mends it; what is not acknowledged is sent again.
                    await asyncio.sleep(_RETRY_S)
                else:
                    self._on_acknowledged(len(report.results))
