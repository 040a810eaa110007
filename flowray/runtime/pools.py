"""Tier pools: blocks of placement group bundles, and the agent processes in them.

A placement group cannot be resized and is scarce, so a pool is a row of small detached groups ("blocks"), each for
`agents_per_block` agents of one class: a pool grows and shrinks by blocks. Agents are detached too and never restarted
by Ray: the coordinator decides when and where a new incarnation starts, and finds the living ones after its own
restart by their names.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from typing import Any

import psutil
import ray
from ray.util.placement_group import PlacementGroup, get_placement_group, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from flowray.config import Config, TierConfig
from flowray.core.events import AgentLost, AgentReady, AgentStartFailed, AttemptFinished, AttemptReturned, Event
from flowray.core.model import AgentId, AgentSpec, TaskId
from flowray.mesh.endpoint import PeerGone
from flowray.runtime._ray_errors import LOST, NOT_CREATED, REFUSED, brief
from flowray.runtime.cluster import NAMESPACE
from flowray.runtime.doorway import Doorway
from flowray.runtime.messages import Begin, Begun, Finished, Held, Renewed, Returned
from flowray.runtime.process import AgentActor
from flowray.runtime.transport import AgentLink

_ATTEND_S = 3.0  # an agent that does not answer a new coordinator within this is left to its watch


class Process:
    """One incarnation of one agent."""

    __slots__ = ("agent_id", "begun", "gone", "incarnation", "link", "stopped")

    def __init__(self, agent_id: str, incarnation: int, link: AgentLink) -> None:
        self.agent_id = agent_id
        self.incarnation = incarnation
        self.link = link
        self.begun: Begun | None = None
        self.stopped = False  # by us
        self.gone = False


class Pools:
    """All blocks and processes of one runtime. Use only from the coordinator's event loop."""

    def __init__(
        self,
        config: Config,
        epoch: int,
        coordinator: Any,
        doorway: Doorway,
        payloads: str,
        put: Callable[[Event], None],
    ) -> None:
        self._config = config
        self._epoch = epoch
        self._coordinator = coordinator
        self._doorway = doorway
        self._endpoint = doorway.endpoint
        self._node_id = doorway.door().node_id
        self._several = False  # nodes: seen so far
        doorway.on_renewal = self._renew_certificates
        self._payloads = payloads
        self._put = put
        self._processes: dict[str, Process] = {}  # agent -> its newest incarnation
        self._by_peer: dict[str, Process] = {}  # name in the mesh -> the agent there
        self._blocks: dict[str, PlacementGroup] = {}
        self._blocks_lock = threading.Lock()  # they are made in threads, and agents share them
        self._tasks: set[asyncio.Task[None]] = set()
        self._cluster: dict[str, float] = {}

    # ── what the coordinator asks for ────────────────────────────────────────────────────────────────────────────

    def process(self, agent_id: str, incarnation: int) -> Process | None:
        """The living process of this incarnation, as far as is known."""
        process = self._processes.get(agent_id)
        return process if process is not None and process.incarnation == incarnation else None

    def current(self, agent_id: str) -> Process | None:
        """The newest process of an agent."""
        return self._processes.get(agent_id)

    def start(self, agent_id: AgentId, incarnation: int, spec: AgentSpec) -> None:
        """Begin to start a process; how it went arrives as an event."""
        self._spawn(self._start(agent_id, incarnation, spec))

    def stop(self, agent_id: str, incarnation: int) -> None:
        """End a process."""
        process = self.process(agent_id, incarnation)
        if process is not None:
            process.stopped = True
            process.link.kill()

    async def find(self) -> None:
        """After a restart: report every process of this runtime that is alive, and what it holds."""
        prefix = f"{self._config.name}/agent/"
        await self._open_to_nodes()
        named = await asyncio.to_thread(ray.util.list_named_actors, all_namespaces=True)
        names = sorted(n["name"] for n in named if n["namespace"] == NAMESPACE and n["name"].startswith(prefix))
        await asyncio.gather(*(self._attend(name, name.removeprefix(prefix)) for name in names))

    async def kill_all(self) -> None:
        """End every process and remove every block of this runtime, known here or not."""
        for task in self._tasks:
            task.cancel()
        prefix = f"{self._config.name}/"
        named = await asyncio.to_thread(ray.util.list_named_actors, all_namespaces=True)
        for one in named:
            name = one["name"]
            if one["namespace"] == NAMESPACE and name.startswith(prefix) and not name.endswith("/coordinator"):
                try:
                    ray.kill(ray.get_actor(name, namespace=NAMESPACE), no_restart=True)
                except ValueError:
                    continue  # it went by itself
        for table in ray.util.placement_group_table().values():
            if table["name"].startswith(f"flowray/{prefix}") and table["state"] != "REMOVED":
                remove_placement_group(get_placement_group(table["name"]))

    def blocks(self) -> dict[str, str]:
        """Placement groups of this runtime that are not in place -> their state."""
        prefix = f"flowray/{self._config.name}/"
        tables = ray.util.placement_group_table().values()
        return {
            t["name"].removeprefix(prefix): t["state"]
            for t in tables
            if t["name"].startswith(prefix) and t["state"] not in ("CREATED", "REMOVED")
        }

    # ── starting ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _start(self, agent_id: AgentId, incarnation: int, spec: AgentSpec) -> None:
        try:
            actor = await asyncio.to_thread(self._create, agent_id, incarnation, spec)
        except NOT_CREATED as error:
            self._put(AgentLost(agent_id, incarnation, f"could not be created: {brief(error)}"))
            return
        link = self._link(actor, agent_id, incarnation)
        process = self._processes[agent_id] = Process(agent_id, incarnation, link)
        await self._open_to_nodes()
        begin = Begin(
            agent_id,
            incarnation,
            self._epoch,
            spec,
            self._config.limits.inline_bytes,
            self._config.limits.payload_bytes,
            self._config.name,
            self._node_id,
            self._payloads,
            link.process,
            self._doorway.door(),
            self._doorway.issue(link.process),
        )
        try:
            process.begun = await link.begin(begin, self._coordinator)
        except (*LOST, *REFUSED) as error:
            link.kill()
            self._lost(process, brief(error))
            return
        if process.begun.failure is not None:
            process.stopped = process.gone = True
            self._endpoint.forget(link.process, "it does not start")
            link.kill()
            self._put(AgentStartFailed(agent_id, incarnation, process.begun.failure))
            return
        self._by_peer[link.process] = process
        self._put(AgentReady(agent_id, incarnation))
        await self._watch(process)

    def _create(self, agent_id: str, incarnation: int, spec: AgentSpec) -> Any:
        """Blocking calls to Ray's control plane; runs in a thread."""
        tier = self._config.tiers.get(spec.tier, TierConfig())
        number = int(agent_id.rpartition("-")[2])
        block, index = divmod(number, tier.agents_per_block)
        bundle = self._bundle(spec, tier)
        size = min(tier.agents_per_block, max(1, spec.count - block * tier.agents_per_block))
        group = self._block(spec, tier, str(block), size, bundle)
        if index >= group.bundle_count:  # the class has grown since this block was made, and blocks cannot
            group, index = self._block(spec, tier, f"{block}.{index}", 1, bundle), 0
        name = f"{self._config.name}/agent/{agent_id}#{incarnation}"
        return (
            ray.remote(AgentActor)
            .options(
                name=name,
                namespace=NAMESPACE,
                lifetime="detached",
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=1000,
                num_cpus=bundle["CPU"],
                enable_task_events=False,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, index),
            )
            .remote()
        )

    def _bundle(self, spec: AgentSpec, tier: TierConfig) -> dict[str, float]:
        """What one agent reserves: its own figure, or its tier's share of the cluster divided by the tier's agents."""
        if not self._cluster:
            self._cluster = ray.cluster_resources()
        cpus = spec.num_cpus or tier.cpu_share * self._cluster.get("CPU", 1.0) / tier.agents
        memory = spec.memory_bytes or int(tier.memory_share * self._cluster.get("memory", 0.0) / tier.agents)
        bundle = {"CPU": max(0.001, int(cpus * 1000) / 1000)}
        if memory >= 1 << 20:
            bundle["memory"] = float(memory >> 20 << 20)
        return bundle

    def _block(
        self, spec: AgentSpec, tier: TierConfig, block: str, size: int, bundle: dict[str, float]
    ) -> PlacementGroup:
        name = f"flowray/{self._config.name}/{spec.tier}/{spec.name}/{block}"
        with self._blocks_lock:
            group = self._blocks.get(name)
            if group is None:
                try:
                    group = get_placement_group(name)
                except ValueError:  # there is none yet
                    group = placement_group(
                        [bundle] * size,
                        strategy="SPREAD" if tier.spread and size > 1 else "PACK",
                        name=name,
                        lifetime="detached",
                        bundle_label_selector=[tier.labels] * size if tier.labels else None,
                    )
                self._blocks[name] = group
        return group

    async def _open_to_nodes(self) -> None:
        """Before a process is told where the coordinator is: it may be on another node."""
        if not self._several:
            nodes = await asyncio.to_thread(ray.nodes)
            self._several = sum(node["Alive"] for node in nodes) > 1
            if self._several:
                await self._doorway.open_to_nodes()

    def _renew_certificates(self) -> None:
        for name, process in self._by_peer.items():
            credentials = self._doorway.issue(name)
            if credentials is not None:
                process.link.send(Renewed(credentials))

    def _link(self, actor: Any, agent_id: str, incarnation: int) -> AgentLink:
        return AgentLink(actor, self._endpoint, f"{agent_id}#{incarnation}")

    # ── watching ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _watch(self, process: Process) -> None:
        cause = await process.link.watch()
        if process.stopped:
            cause = "stopped by the coordinator"
        self._lost(process, cause)

    def _lost(self, process: Process, cause: str) -> None:
        """A process is gone, whoever noticed it first."""
        if process.gone:
            return
        process.gone = True
        self._by_peer.pop(process.link.process, None)
        self._endpoint.forget(process.link.process, cause)
        self._put(AgentLost(AgentId(process.agent_id), process.incarnation, cause))

    def stream_broken(self, peer: str) -> None:
        """A stream is gone. On this node it can be seen at once whether the process is."""
        process = self._by_peer.get(peer)
        if process is None or process.begun is None or process.begun.node_id != self._node_id:
            return
        if not _lives(process.begun.pid):
            self._lost(process, "stopped by the coordinator" if process.stopped else "its process died")

    def peer_gone(self, event: PeerGone) -> None:
        """A process cannot be reached any more: what was sent to it may be lost, so it must not go on."""
        process = self._by_peer.get(event.peer)
        if process is not None and not process.gone:
            process.link.kill()
            self._lost(process, event.reason)

    async def _attend(self, name: str, suffix: str) -> None:
        agent_id, _, incarnation = suffix.rpartition("#")
        try:
            actor = await asyncio.to_thread(ray.get_actor, name, namespace=NAMESPACE)
        except ValueError:
            return  # it died in between; the core hears nothing of it and asks for a new one
        process = Process(agent_id, int(incarnation), self._link(actor, agent_id, int(incarnation)))
        newest = self._processes.get(agent_id)
        if newest is None or newest.incarnation < process.incarnation:
            self._processes[agent_id] = process
        try:
            found = await process.link.attend(self._epoch, self._coordinator, self._doorway.door(), _ATTEND_S)
        except TimeoutError:
            process.link.kill()
            self._lost(process, "it did not answer a new coordinator")
            return
        except LOST as error:
            self._lost(process, brief(error))
            return
        if not found:  # it had not even begun
            process.link.kill()
            self._lost(process, "it had not begun when the coordinator came back")
            return
        held = found[0]
        self._by_peer[process.link.process] = process
        process.begun = held.begun
        for event in results_as_events(held.agent_id, held.results):
            self._put(event)
        self._put(_ready(held))
        self._spawn(self._watch(process))

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            # A bug: let the coordinator die and recover rather than go on with an agent that nobody watches.
            asyncio.get_running_loop().call_exception_handler(
                {"message": "starting or watching an agent failed", "exception": task.exception()}
            )
            os._exit(70)


def results_as_events(agent_id: str, results: list[Finished | Returned]) -> list[Event]:
    """What an agent reports, as the core hears it."""
    events: list[Event] = []
    for one in results:
        task_id, agent = TaskId(one.task_id), AgentId(agent_id)
        if isinstance(one, Finished):
            events.append(AttemptFinished(task_id, one.attempt, one.epoch, agent, one.value, one.failure, one.run_s))
        else:
            events.append(AttemptReturned(task_id, one.attempt, one.epoch, agent))
    return events


def _ready(held: Held) -> AgentReady:
    return AgentReady(AgentId(held.agent_id), held.incarnation, tuple(held.running))


def _lives(pid: int) -> bool:
    """Is there such a process on this machine, and not only its remains?"""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
