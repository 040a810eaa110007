"""How an agent's process is made: a place for it, a detached Ray actor there, connected and with its class loaded."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Collection
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from flowray.config import Config
from flowray.core.model import AgentSpec
from flowray.runtime.blocks import LATELY_S, ROOM_S, Blocks, Place
from flowray.runtime.cluster import NAMESPACE
from flowray.runtime.doorway import Doorway
from flowray.runtime.messages import Prepare, Prepared, Renewed
from flowray.runtime.process import AgentActor
from flowray.runtime.transport import ProcessLink


class Process:
    """One process, and the agents in it."""

    __slots__ = ("agents", "cause", "gone", "link", "made", "place", "spec_name", "stopped")

    def __init__(self, link: ProcessLink, spec_name: str, place: Place) -> None:
        self.link = link
        self.spec_name = spec_name
        self.place = place
        self.made: Prepared | None = None  # where it is, once it is up
        self.agents: dict[str, int] = {}  # agent -> its incarnation here
        self.stopped = False  # by us
        self.cause = ""  # of its death, where somebody said it beforehand
        self.gone = False


class Maker:
    """Makes processes. Use only from the coordinator's event loop."""

    def __init__(
        self,
        config: Config,
        doorway: Doorway,
        coordinator: Any,
        blocks: Blocks,
        drained: Callable[[], Collection[str]],
    ) -> None:
        """`drained` says which nodes shall have no processes."""
        self._config = config
        self._doorway = doorway
        self._endpoint = doorway.endpoint
        self._coordinator = coordinator
        self._blocks = blocks
        self._drained = drained
        self._actor_class = ray.remote(AgentActor)  # once: Ray exports each such class anew, and workers load each
        self.several = False  # nodes: seen so far
        self._look: asyncio.Task[None] | None = None  # at the nodes
        self._looked_at = 0.0  # monotonic

    async def make(
        self, spec: AgentSpec, spare: Place | None, apart_from: str, placed: Callable[[Place], None]
    ) -> Process:
        """Start a process, in this place or in one that is found for it, and have it load the class.

        Where there is none on another node than `apart_from`, that one will do. `placed` hears of a place that was
        found, whether there is room for it yet or not.
        """
        name = f"{spec.name}-{secrets.token_hex(4)}"
        actor, place = await asyncio.to_thread(self._create_actor, name, spec, spare, apart_from)
        if spare is None:
            placed(place)
        process = Process(ProcessLink(actor, self._endpoint, name), spec.name, place)
        try:
            await self.open_to_nodes()
            prepare = Prepare(
                name,
                self._config.name,
                self._doorway.door(),
                spec,
                place,
                self._config.mesh.talk,
                self._blocks.tier(spec).agents_per_actor,
                self._doorway.issue(name),
            )
            process.made = await process.link.prepare(prepare, self._coordinator)
        except BaseException:
            process.link.kill()
            self._endpoint.forget(name, "it did not start")
            self._blocks.give_back(spec.name, place)
            raise
        if prepare.credentials is None and (credentials := self._doorway.issue(name)) is not None:
            process.link.send(Renewed(credentials))  # another node was seen while it started
        return process

    def _create_actor(self, name: str, spec: AgentSpec, spare: Place | None, apart_from: str) -> tuple[Any, Place]:
        """Blocking calls to Ray's control plane; runs in a thread."""
        if spare is not None:
            group, place = self._blocks.group(spare), spare
        else:
            avoid = tuple(self._drained())
            found = self._blocks.take_apart(spec, apart_from, ROOM_S, avoid) if apart_from else None
            group, place = found or self._blocks.take(spec, avoid)
        try:
            actor = self._actor_class.options(
                name=f"{self._config.name}/agent/{name}",
                namespace=NAMESPACE,
                lifetime="detached",
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=1000,
                num_cpus=group.bundle_specs[place.bundle]["CPU"],
                enable_task_events=False,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, place.bundle),
            ).remote()
        except BaseException:
            self._blocks.give_back(spec.name, place)
            raise
        return actor, place

    async def open_to_nodes(self) -> None:
        """Before a process is told where the coordinator is: it may be on another node."""
        if self.several:
            return
        if self._look is None or (self._look.done() and time.monotonic() - self._looked_at > LATELY_S):
            self._looked_at = time.monotonic()
            self._look = asyncio.create_task(self._look_at_nodes())
        await asyncio.shield(self._look)

    async def _look_at_nodes(self) -> None:
        nodes = await asyncio.to_thread(ray.nodes)
        if sum(node["Alive"] for node in nodes) > 1:
            await self._doorway.open_to_nodes()
            self.several = True  # not before: whoever relies on it wants a certificate next
