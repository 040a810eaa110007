"""The agents' processes: started, found again, watched, ended.

A process is a detached Ray actor in a place of a block. It is never restarted by Ray: the coordinator decides when and
where a new incarnation starts, and finds the living ones after its own restart. Most processes host one agent; a tier
with `agents_per_actor` puts several light ones into each. A few are kept warm: started, connected, the class loaded,
and no agent in them yet, so that the next agent of that class is there at once.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Coroutine
from typing import Any

import ray

from flowray.config import Config
from flowray.core.events import (
    AgentLost,
    AgentReady,
    AgentStartFailed,
    Event,
    MemoryTold,
)
from flowray.core.model import AgentId, AgentSpec
from flowray.core.stateful import other_seat
from flowray.mesh.endpoint import PeerGone
from flowray.runtime._ray_errors import LOST, NOT_CREATED, REFUSED, brief, seen_dead
from flowray.runtime.blocks import ROOM_S, Blocks, Place
from flowray.runtime.cluster import NAMESPACE
from flowray.runtime.directory import TalkDirectory
from flowray.runtime.doorway import Doorway
from flowray.runtime.keeper import gone
from flowray.runtime.keepers import Keepers
from flowray.runtime.making import Maker, Process
from flowray.runtime.messages import (
    Begin,
    Found,
    Renewed,
    Retire,
)
from flowray.runtime.reports import ready, results_as_events
from flowray.runtime.transport import ProcessLink

_UNREACHABLE: tuple[type[BaseException], ...] = (TimeoutError, *LOST, *REFUSED)
_SEATED_S = 20.0  # a standby waits no longer than this for its active process to be somewhere
_DYING_S = 1.0  # for a process that Ray calls dead to be gone
_ATTEND_S = 3.0  # a new coordinator begins at the latest after this, whether all processes have answered it or not
_ANSWER_S = 9.0  # and a process that has not answered after this is ended


class Pools:
    """All processes of one runtime. Use only from the coordinator's event loop."""

    def __init__(
        self,
        config: Config,
        epoch: int,
        coordinator: Any,
        doorway: Doorway,
        payloads: str,
        put: Callable[[Event], None],
        spec_of: Callable[[str], AgentSpec | None],
        directory: TalkDirectory,
        drained: Callable[[], Collection[str]] = tuple,
    ) -> None:
        """`drained` says which nodes shall have no processes."""
        self._config = config
        self._epoch = epoch
        self._coordinator = coordinator
        self._doorway = doorway
        self._endpoint = doorway.endpoint
        self._node_id = doorway.door().node_id
        self._payloads = payloads
        self._put = put
        self._spec_of = spec_of
        self.directory = directory
        self._drained = drained
        self._blocks = Blocks(config)
        self._maker = Maker(config, doorway, coordinator, self._blocks, drained)
        self._processes: dict[str, Process] = {}  # by name in the mesh, while they live
        self._at: dict[str, Process] = {}  # agent -> the process of its newest incarnation
        self._opening: dict[str, asyncio.Future[Process]] = {}  # class -> a process being started that has room
        self._rooms: dict[str, int] = {}  # class -> how many more agents that one may take
        self._warm: dict[str, list[Process]] = {}  # class -> processes without an agent
        self._classes: dict[str, AgentSpec] = {}  # that agents were started of
        self._warming: set[str] = set()  # classes for which one is being started
        self._starting = 0  # agents
        self._seating: dict[str, asyncio.Task[None]] = {}  # stateful agent -> its start, under way or over
        self._keepers = Keepers(config.name, self._node_id, config.ray.stopped_s, coordinator)
        self._free: dict[str, float] = {}  # node -> share of its memory, as its keeper said last
        self._attending: set[str] = set()  # processes that have yet to answer a new coordinator
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()

    # ── what the coordinator asks for ────────────────────────────────────────────────────────────────────────────

    def process(self, agent_id: str, incarnation: int) -> Process | None:
        """The living process of this incarnation, as far as is known."""
        process = self._at.get(agent_id)
        return process if process is not None and process.agents.get(agent_id) == incarnation else None

    def current(self, agent_id: str) -> Process | None:
        """The newest process of an agent."""
        return self._at.get(agent_id)

    def warm(self) -> int:
        """Processes that wait for an agent."""
        return sum(map(len, self._warm.values()))

    def start(self, agent_id: AgentId, incarnation: int, spec: AgentSpec) -> None:
        """Begin to start an agent; how it went arrives as an event."""
        self._starting += 1
        self._classes[spec.name] = spec
        work = self._spawn(self._start(agent_id, incarnation, spec))
        if spec.stateful is not None:
            self._seating[agent_id] = work

    def stop(self, agent_id: str, incarnation: int) -> None:
        """End an agent: with its process, if nobody else lives there."""
        process = self.process(agent_id, incarnation)
        if process is None:
            return
        if len(process.agents) == 1:
            process.stopped = True
            process.link.kill()
            return
        del process.agents[agent_id]
        self.directory.remove(agent_id)
        process.link.send(Retire(agent_id))
        # It is told to end what it runs, and may not heed that.
        self._put(AgentLost(AgentId(agent_id), incarnation, "stopped by the coordinator", certain=False))

    async def find(self) -> None:
        """After a restart: report every process of this runtime that is alive, and what it holds.

        Those that are too busy to answer soon are not waited for; the directory is told when they are there, or gone.
        """
        prefix = f"{self._config.name}/agent/"
        await self._maker.open_to_nodes()
        named = await asyncio.to_thread(ray.util.list_named_actors, all_namespaces=True)
        names = sorted(n["name"] for n in named if n["namespace"] == NAMESPACE and n["name"].startswith(prefix))
        self._attending.update(name.removeprefix(prefix) for name in names)
        attending = [self._spawn(self._attend(name, name.removeprefix(prefix))) for name in names]
        if attending:
            await asyncio.wait(attending, timeout=_ATTEND_S)
        self._spawn(self._complete(attending))

    async def _complete(self, attending: list[asyncio.Task[None]]) -> None:
        await asyncio.gather(*attending)
        self.directory.complete()

    def may_come(self, class_name: str) -> bool:
        """Is there a process of this class that has yet to say which agents it hosts?"""
        return any(name.rpartition("-")[0] == class_name for name in self._attending)

    async def kill_all(self) -> None:
        """End every process and remove every block of this runtime, known here or not."""
        self._closed = True
        self._keepers.close()
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
        self._blocks.remove_all()

    async def vacate(self, node_id: str) -> list[str]:
        """End what waits for an agent on a drained node, and give its places up; which agents are there still.

        (Those leave when the core has them leave.) Once there is none, nothing of this runtime is on the node.
        """
        there = [one for one in self._processes.values() if one.made is not None and one.made.node_id == node_id]
        for process in there:
            if process in self._warm.get(process.spec_name, ()):
                process.stopped = True
                process.link.kill()
                self._lost(process, "its node is drained")
        await asyncio.to_thread(self._blocks.vacate, node_id)
        left = sorted(agent_id for one in there if not one.gone for agent_id in one.agents)
        if not left and not any(not one.gone for one in there):
            return await self._keepers.dismiss(node_id)
        return left or [one.link.process for one in there if not one.gone]

    def blocks(self) -> dict[str, str]:
        """Placement groups of this runtime that are not in place -> their state."""
        return self._blocks.missing()

    # ── starting ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _start(self, agent_id: AgentId, incarnation: int, spec: AgentSpec) -> None:
        try:
            process = await self._process_for(spec, await self._apart_from(agent_id, spec))
        except (*LOST, *NOT_CREATED, *REFUSED) as error:
            cause = f"it could not be created: {brief(error)}"
            self._put(AgentLost(agent_id, incarnation, cause, created=seen_dead(error)))
            return
        finally:
            self._starting -= 1
        process.agents[agent_id] = incarnation
        self._at[agent_id] = process
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
            self._config.core.lease_s,
            self._config.core.fence_all,
        )
        try:
            begun = await process.link.begin(begin)
        except (*LOST, *REFUSED) as error:
            process.link.kill()
            self._lost(process, brief(error))
            return
        failure = begun.failure
        if failure is None:
            if begun.hears and not process.gone:
                self.directory.put(agent_id, process.link.process, begun.topics)
            self.directory.when_told(lambda: self._is_ready(process, agent_id, incarnation))
        else:
            process.agents.pop(agent_id, None)
            if not process.agents:
                process.stopped = True
                process.link.kill()
            self._put(AgentStartFailed(agent_id, incarnation, failure))
        for one in self._classes.values():  # of all: some may have made way for this agent
            self._keep_warm(one)

    def _is_ready(self, process: Process, agent_id: AgentId, incarnation: int) -> None:
        if process.gone:
            return
        node_id = process.made.node_id if process.made is not None else ""
        if node_id in self._free:
            self._put(MemoryTold(self._free[node_id], (agent_id,)))
        self._put(AgentReady(agent_id, incarnation, node=node_id))

    async def _apart_from(self, agent_id: str, spec: AgentSpec) -> str:
        """The node where another process of the same stateful agent is; "" where any node will do."""
        seat = other_seat(agent_id, spec)
        starting = self._seating.get(seat)
        if starting is not None and spec.stateful is not None and spec.stateful.of:
            # Of two that are started at the same time the standby waits, as it cannot be apart from it knows not what.
            await asyncio.wait((starting,), timeout=_SEATED_S)
        other = self._at.get(seat)
        made = other.made if other is not None and not other.gone else None
        return made.node_id if made is not None and self._maker.several else ""

    async def _process_for(self, spec: AgentSpec, apart_from: str = "") -> Process:
        """A process with room for one more agent of this class: one of several, a warm one, or a new one."""
        several = self._blocks.tier(spec).agents_per_actor
        while several > 1 and spec.name in self._opening:
            opening = self._opening[spec.name]
            if self._rooms[spec.name] > 0:
                self._rooms[spec.name] -= 1
                process = await asyncio.shield(opening)
                if not process.gone:
                    return process
            elif self._opening.get(spec.name) is opening:
                del self._opening[spec.name]
        if several == 1:
            return self._take_warm(spec, apart_from) or await self._create(spec, apart_from=apart_from)
        opening = self._opening[spec.name] = asyncio.get_running_loop().create_future()
        self._rooms[spec.name] = several - 1
        try:
            process = self._take_warm(spec) or await self._create(spec)
        except BaseException as error:
            if self._opening.get(spec.name) is opening:
                del self._opening[spec.name]
            if not opening.done():
                opening.set_exception(error)
                opening.exception()  # seen: there may be nobody else who waits for it
            raise
        opening.set_result(process)
        return process

    def _take_warm(self, spec: AgentSpec, apart_from: str = "") -> Process | None:
        """The newest warm process of a class that is not on this node, nor on one that is drained."""
        wrong = {apart_from, *self._drained()} - {""}
        for process in reversed(self._warm.get(spec.name, ())):
            if process.made is None or process.made.node_id not in wrong:
                self._warm[spec.name].remove(process)
                return process
        return None

    async def _create(self, spec: AgentSpec, spare: Place | None = None, apart_from: str = "") -> Process:
        """Have a process made, and watch it."""
        process = await self._maker.make(spec, spare, apart_from, self._placed)
        assert process.made is not None
        self._processes[process.link.process] = process
        self._keepers.add(process.made.node_id, process.link.process, process.made.pid)
        self._spawn(self._watch(process))
        return process

    def _placed(self, place: Place) -> None:
        self._spawn(self._give_way(place))

    # ── warm processes ───────────────────────────────────────────────────────────────────────────────────────────

    def _keep_warm(self, spec: AgentSpec) -> None:
        """Have as many warm processes of this class as its tier wants, once no agent waits for a process.

        Nor may one of its agents be lost that is not started again yet: it will want the place that it had. A stateful
        agent with a standby is waited for by nobody while another process takes its place.
        """
        if spec.stateful is not None and spec.stateful.standby == "warm":
            return
        wanted = self._blocks.tier(spec).warm
        if self._starting or self._closed or spec.name in self._warming:
            return
        there = sum(len(one.agents) for one in self._processes.values() if one.spec_name == spec.name)
        if there < (self._spec_of(spec.name) or spec).count:
            return
        if len(self._warm.get(spec.name, ())) < wanted:
            self._warming.add(spec.name)
            self._spawn(self._warm_one(spec))

    async def _warm_one(self, spec: AgentSpec) -> None:
        try:
            place = await asyncio.to_thread(self._blocks.take_spare, spec, ROOM_S, tuple(self._drained()))
            if place is None:
                return
            process = await self._create(spec, place)
        except (*LOST, *NOT_CREATED, *REFUSED):
            return  # nobody waits for it; the next start says what is wrong
        finally:
            self._warming.discard(spec.name)
        self._warm.setdefault(spec.name, []).append(process)
        self._keep_warm(spec)

    async def _give_way(self, place: Place) -> None:
        """An agent is to be started there: if there is no room, warm processes go, of whatever class."""
        while self._warming or any(self._warm.values()):
            await asyncio.sleep(ROOM_S)
            if not await asyncio.to_thread(self._blocks.waits_for_room, place):
                return
            for process in [process for warm in self._warm.values() for process in warm]:
                process.stopped = True
                process.link.kill()
                self._lost(process, "its room was needed")
                await asyncio.to_thread(self._blocks.remove, process.spec_name, process.place)

    # ── watching ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _watch(self, process: Process) -> None:
        cause, certain = await process.link.watch()
        made = process.made
        if made is not None and made.node_id == self._node_id:
            # Ray calls a process dead when its connection is gone, which is a moment before the process is, if it is.
            certain = await asyncio.to_thread(gone, made.pid, _DYING_S)
        self._lost(process, "stopped by the coordinator" if process.stopped else cause, certain=certain)

    def _lost(self, process: Process, cause: str, *, certain: bool = False) -> None:
        """A process is gone, whoever noticed it first. `certain`: it was seen dead."""
        if process.gone:
            return
        process.gone = True
        cause = process.cause or cause
        name = process.link.process
        if process.made is not None:
            self._keepers.remove(process.made.node_id, name)
        self._processes.pop(name, None)
        self._endpoint.forget(name, cause)
        self._blocks.give_back(process.spec_name, process.place)
        warm = self._warm.get(process.spec_name, [])
        if process in warm:
            warm.remove(process)
        for agent_id, incarnation in process.agents.items():
            self._put(AgentLost(AgentId(agent_id), incarnation, cause, certain))
        spec = self._spec_of(process.spec_name)
        if spec is not None and not process.agents:
            self._keep_warm(spec)

    def stream_broken(self, peer: str) -> None:
        """A stream is gone. On this node it can be seen at once whether the process is."""
        process = self._processes.get(peer)
        if process is None or process.made is None or process.made.node_id != self._node_id:
            return
        if gone(process.made.pid, 0.0):
            self._died(process)
        else:  # a killed process closes its sockets a moment before it is dead
            self._spawn(self._look_again(process, process.made.pid))

    async def _look_again(self, process: Process, pid: int) -> None:
        if await asyncio.to_thread(gone, pid, _DYING_S):
            self._died(process)

    def _died(self, process: Process) -> None:
        cause = "stopped by the coordinator" if process.stopped else "its process died"
        self._lost(process, cause, certain=True)

    def peer_gone(self, event: PeerGone) -> None:
        """A process cannot be reached any more: what was sent to it may be lost, so it must not go on."""
        process = self._processes.get(event.peer)
        if process is not None and not process.gone:
            process.link.kill()
            self._lost(process, event.reason)

    def ended(self, name: str, cause: str) -> None:
        """A keeper is about to end a process: that is why it will be gone."""
        process = self._processes.get(name)
        if process is not None:
            process.cause = cause

    def died(self, name: str, pid: int) -> None:
        """A keeper has seen that a process is dead."""
        process = self._processes.get(name)
        if process is not None and process.made is not None and process.made.pid == pid:
            self._died(process)

    def memory(self, node_id: str, free: float) -> None:
        """So much of a node's memory (0..1) is free."""
        self._free[node_id] = free
        there = [one for one in self._processes.values() if one.made is not None and one.made.node_id == node_id]
        agent_ids = tuple(AgentId(agent_id) for one in there for agent_id in one.agents)
        if agent_ids:
            self._put(MemoryTold(free, agent_ids))

    def renew_certificates(self) -> None:
        """Send every process a new one."""
        for name, process in self._processes.items():
            process.link.send(Renewed(self._doorway.issued(name)))

    # ── finding ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _attend(self, full_name: str, name: str) -> None:
        try:
            await self._find(full_name, name)
        finally:
            self._attending.discard(name)

    async def _find(self, full_name: str, name: str) -> None:
        try:
            actor = await asyncio.to_thread(ray.get_actor, full_name, namespace=NAMESPACE)
        except ValueError:
            return  # it died in between; the core hears nothing of it and asks for a new one
        link = ProcessLink(actor, self._endpoint, name)
        try:
            found = await link.attend(self._epoch, self._coordinator, self._doorway.door(), _ANSWER_S)
        except _UNREACHABLE:
            found = Found()
        spec = self._spec_of(found.spec_name)
        warm = found.warm and spec is not None
        held = [one for one in found.held if one.incarnation >= self._newest(one.agent_id)]
        if found.made is None or not (held or warm):
            # Hung, or not even begun, or nobody's: not worth waiting for.
            link.kill()
            self._endpoint.forget(name, "it did not answer a new coordinator")
            return
        process = Process(link, found.spec_name, Place(*found.place))
        process.made = found.made
        if spec is not None:
            await asyncio.to_thread(self._blocks.claim, spec, process.place)
        self._processes[name] = process
        self._keepers.add(process.made.node_id, name, process.made.pid)
        if warm:
            self._warm.setdefault(found.spec_name, []).append(process)
        for one in found.held:
            if one not in held:  # it took so long that another one was started in its place
                link.send(Retire(one.agent_id))
        for one in held:
            process.agents[one.agent_id] = one.incarnation
            self._at[one.agent_id] = process
            for event in results_as_events(one.agent_id, one.incarnation, one.results):
                self._put(event)
            if one.hears:
                self.directory.put(one.agent_id, name, one.topics)
            self._put(ready(one, process.made.node_id))
        self._spawn(self._watch(process))

    def _newest(self, agent_id: str) -> int:
        """The highest incarnation of an agent that a process is known of; 0 where there is none."""
        process = self._at.get(agent_id)
        return process.agents.get(agent_id, 0) if process is not None else 0

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            # A bug: let the coordinator die and recover rather than go on with an agent that nobody watches.
            asyncio.get_running_loop().call_exception_handler(
                {"message": "starting or watching an agent failed", "exception": task.exception()}
            )
            os._exit(70)
