"""The Ray actor that hosts agents: their place in the mesh, and the doors that Ray itself must open.

One process has one event loop of its own, one stream to the coordinator, and one agent (or several light ones).
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import ray

from flowray.agents import Voice
from flowray.errors import MeshError
from flowray.mesh.endpoint import Endpoint, MeshEvent, PeerGone, SharedSecret, StreamUp
from flowray.mesh.identities import Credentials, channel_credentials
from flowray.mesh.peer import Peer
from flowray.runtime import messages
from flowray.runtime._ray_errors import LOST, REFUSED
from flowray.runtime.agent import STUCK_S, AgentHost, preload
from flowray.runtime.loops import LoopThread
from flowray.runtime.messages import (
    Acknowledge,
    Activate,
    Begin,
    Begun,
    Cancel,
    Door,
    Emit,
    Emitted,
    Found,
    Input,
    Leased,
    Listen,
    Lost,
    Prepare,
    Prepared,
    Reached,
    Read,
    Renew,
    Renewed,
    Report,
    Restore,
    Start,
    Step,
    StepAnswer,
    TakeSnapshot,
    Told,
)
from flowray.runtime.places import COORDINATOR, socket_directory
from flowray.runtime.resting import main_thread
from flowray.runtime.stateful import StatefulHost
from flowray.runtime.talks import Talks

_REACH_S = 10.0  # for the coordinator to answer a new process
_SETTLE_S = 0.5  # until calls over Ray that belong to a start, or to a new coordinator, have come


class AgentActor:
    """The Ray actor: only doors. Ray wraps every method of an actor class for tracing, so the work is elsewhere."""

    def __init__(self) -> None:
        self._process = AgentProcess()

    async def prepare(self, body: bytes, coordinator: Any) -> bytes:
        """See AgentProcess.prepare."""
        return messages.encode(await self._process.prepare(messages.decode(body, Prepare), coordinator))

    async def begin(self, body: bytes) -> bytes:
        """See AgentProcess.begin."""
        return messages.encode(await self._process.begin(messages.decode(body, Begin)))

    async def attend(self, epoch: int, coordinator: Any, body: bytes) -> bytes:
        """See AgentProcess.attend."""
        return messages.encode(self._process.attend(epoch, coordinator, messages.decode(body, Door)))

    async def watch(self) -> None:
        """Never return: whoever waits for this learns at once when the process dies."""
        await asyncio.Event().wait()


class AgentProcess:
    """What the actor does. Its methods are called on Ray's loop; messages and async agents are on its own."""

    def __init__(self) -> None:
        self._hosts: dict[str, AgentHost] = {}
        self._prepare: Prepare | None = None
        self._made: Prepared | None = None
        self._coordinator: Any = None
        self._credentials: Credentials | None = None
        self._node_id = ray.get_runtime_context().get_node_id()
        self._endpoint: Endpoint | None = None
        self._talks: Talks | None = None
        self._listening: asyncio.Task[None] | None = None
        self._another = False  # the coordinator we knew is gone
        self._warm = True  # no agent was ever begun here
        # A thread that computes would keep the loop waiting for the interpreter for 5 ms at a time.
        sys.setswitchinterval(0.001)
        self._thread = LoopThread("flowray-mesh")
        self.loop = self._thread.loop
        self._ident = 0  # of its thread
        self._settling: asyncio.TimerHandle | None = None  # on our loop
        self._connected = False  # to the coordinator
        self._expected = 1  # agents that will be begun here
        self._rays_loop: asyncio.AbstractEventLoop | None = None
        self._watching: asyncio.Task[None] | None = None
        self._stirred = asyncio.Event()  # on Ray's loop: there is something to watch
        self._watched = False  # the same, for any thread

    # ── called by the coordinator, over Ray ──────────────────────────────────────────────────────────────────────

    async def prepare(self, message: Prepare, coordinator: Any) -> Prepared:
        """Connect to the coordinator, and import what the class needs."""
        self._coordinator = coordinator
        self._prepare = message
        self._expected = message.agents
        opening = asyncio.run_coroutine_threadsafe(self._open(message), self.loop)
        loading = asyncio.to_thread(preload, message.spec)
        await asyncio.gather(asyncio.wrap_future(opening), loading)
        self._rays_loop = asyncio.get_running_loop()
        self._watching = self._rays_loop.create_task(self._watch_hosts())
        self._made = Prepared(self._node_id, ray.util.get_node_ip_address(), os.getpid())
        return self._made

    async def begin(self, message: Begin) -> Begun:
        """Construct an agent. A failure of the user's code is an answer, not an exception."""
        self._warm = False
        host = (AgentHost if message.spec.stateful is None else StatefulHost)(message, self)
        failure = await asyncio.to_thread(host.construct)
        if failure is None:
            self._hosts[message.agent_id] = host
            if host.may_talk:
                talking = asyncio.run_coroutine_threadsafe(self._let_talk(message.agent_id, host), self.loop)
                await asyncio.wrap_future(talking)
        self.loop.call_soon_threadsafe(self._settle)
        return Begun(failure, host.on_message is not None, host.topics)

    async def _let_talk(self, agent_id: str, host: AgentHost) -> None:
        assert self._talks is not None
        if host.on_message is not None:
            self._talks.talking.host(agent_id, host.on_message, host.hearing, reentrant=host.reentrant)
        self._talks.learn()
        await asyncio.wait_for(self._talks.has_learnt.wait(), _REACH_S)

    def attend(self, epoch: int, coordinator: Any, door: Door) -> Found:
        """A new epoch has begun: answer to it from now on, and say what is here."""
        if self._made is None or self._prepare is None:
            return Found()
        self._coordinator = coordinator
        held = [host.attend(epoch) for host in self._hosts.values()]
        self.loop.call_soon_threadsafe(self._reach, door)
        return Found(self._made, self._prepare.spec.name, self._prepare.place, held, self._warm)

    # ── the mesh ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _open(self, message: Prepare) -> None:
        self._ident = threading.get_ident()
        self._credentials = message.credentials
        self._endpoint = Endpoint(
            message.process,
            runtime=message.runtime,
            on_messages=self._on_messages,
            on_event=self._on_event,
            gate=SharedSecret(message.door.token),
            token=message.door.token,
        )
        directory = socket_directory(message.runtime, message.door.path)
        self._talks = Talks(
            self._endpoint,
            node=self._node_id,
            socket=directory / f"{message.process[-8:]}.sock",
            tell=self._tell,
            credentials=lambda: self._credentials,
            limits=message.talk,
            host=ray.util.get_node_ip_address(),
        )
        peer = self._reach(message.door)
        await asyncio.wait_for(peer.connected.wait(), _REACH_S)

    def _reach(self, door: Door) -> Peer:
        """Talk to the coordinator behind this door from now on."""
        assert self._endpoint is not None
        known = self._endpoint.known(COORDINATOR)
        if known is not None and known.link.instance == door.instance:
            self._flush()
            return known
        if known is not None:
            self._endpoint.forget(COORDINATOR, "there is a new one")
        if door.node_id == self._node_id:
            return self._endpoint.dial(COORDINATOR, f"unix:{door.path}")
        return self._endpoint.dial(COORDINATOR, f"{door.host}:{door.port}", self._channel_credentials)

    def _channel_credentials(self) -> Any:
        if self._credentials is None:
            raise MeshError("this process is on another node than the coordinator, and has no certificate")
        return channel_credentials(self._credentials)

    def _on_messages(self, peer: Peer, batch: list[bytes]) -> None:
        if peer.name != COORDINATOR:
            assert self._talks is not None
            self._talks.receive(peer, batch)
            return
        for body in batch:
            message = messages.decode_to_agent(body)
            if isinstance(message, Renewed | Listen | Reached | Told | Lost):
                self._be_told(message)
                continue
            host = self._hosts.get(message.agent_id)
            if host is None:
                continue  # an agent that never began: the coordinator knows
            if isinstance(message, Start):
                host.take(message)
            elif isinstance(message, Cancel):
                host.cancel(message)
            elif isinstance(message, Acknowledge):
                host.acknowledged(message.last)
            elif isinstance(message, StepAnswer):
                host.steps.answered(message)
            elif isinstance(message, Emitted):
                host.emitting.answered(message)
            elif isinstance(message, Read):
                host.emitting.read(message)
            elif isinstance(message, Leased):
                host.fenced[message.ordinary].leases.granted(message.number)
            elif isinstance(message, Restore | Activate | Input | TakeSnapshot):
                assert isinstance(host, StatefulHost)
                host.tell(message)
            else:
                self._hosts.pop(message.agent_id).retire()
                assert self._talks is not None
                self._talks.talking.leave(message.agent_id)
        peer.consumed(len(batch), sum(map(len, batch)))

    def _be_told(self, message: Renewed | Listen | Reached | Told | Lost) -> None:
        assert self._talks is not None
        if isinstance(message, Renewed):
            self._credentials = message.credentials
            self._listening = self.loop.create_task(self._talks.renewed())
        elif isinstance(message, Told):
            self._talks.learnt(message.changes)
        elif isinstance(message, Lost):
            self._talks.lost(message)
        elif isinstance(message, Reached):
            self._talks.reached(message)
        else:
            self._listening = self.loop.create_task(self._talks.listen())

    # ── Ray's main thread ────────────────────────────────────────────────────────────────────────────────────────

    def _settle(self) -> None:
        """Calls over Ray have come, or will soon: once they are over, its main thread may rest."""
        self._stay_awake()
        self._settling = self.loop.call_later(_SETTLE_S, self._rest)

    def _rest(self) -> None:
        if len(self._hosts) >= self._expected and self._connected:
            main_thread.rest(self.loop)

    def _stay_awake(self) -> None:
        if self._settling is not None:
            self._settling.cancel()
        main_thread.wake()

    # ── events of the mesh ───────────────────────────────────────────────────────────────────────────────────────

    def _on_event(self, event: MeshEvent) -> None:
        if event.peer != COORDINATOR:
            if self._talks is not None:
                self._talks.on_event(event)
            return
        self._connected = isinstance(event, StreamUp)
        if not self._connected:
            self._stay_awake()  # a new coordinator asks over Ray
        if isinstance(event, PeerGone):
            self._another = True
            for host in self._hosts.values():
                host.send_again()
        elif isinstance(event, StreamUp):
            self._settle()
            if self._another and self._talks is not None:
                self._another = False
                self._talks.another_coordinator()
            self._flush()
            for host in self._hosts.values():
                for fenced in host.fenced:
                    fenced.leases.renew_now()

    def _tell(self, message: Any) -> None:
        if self._endpoint is not None:
            self._endpoint.peer(COORDINATOR).send_anyway(messages.encode(message))

    def _flush(self) -> None:
        for host in self._hosts.values():
            host.flush()

    # ── for agents ───────────────────────────────────────────────────────────────────────────────────────────────

    def soon(self, call: Callable[[], None]) -> None:
        """Call on the loop, from any thread."""
        if threading.get_ident() == self._ident:
            self.loop.call_soon(call)
        else:
            self.loop.call_soon_threadsafe(call)

    def report(self, report: Report | Step | Emit | Renew) -> bool:
        """Send to the coordinator, from the loop. False when there is none to send to now."""
        peer = self._endpoint.known(COORDINATOR) if self._endpoint is not None else None
        if peer is None:
            return False
        peer.send_anyway(messages.encode(report))
        return True

    def voice(self, agent_id: str) -> Voice:
        """How an agent speaks to others. Called from any thread."""
        assert self._talks is not None
        return self._talks.talking.speaker(agent_id)

    def stir(self) -> None:
        """An agent has what may get stuck. From any thread."""
        if not self._watched and self._rays_loop is not None:
            self._watched = True
            self._rays_loop.call_soon_threadsafe(self._stirred.set)

    async def _watch_hosts(self) -> None:
        """On Ray's loop: what must happen although user code blocks the other one."""
        while True:
            await self._stirred.wait()
            await asyncio.sleep(STUCK_S / 2)
            for host in list(self._hosts.values()):
                host.hand_back_when_stuck()
                if host.overdue(time.monotonic()) and (report := host.pending()) is not None:
                    try:
                        await self._coordinator.report.remote(messages.encode(report))
                    except (*LOST, *REFUSED):
                        continue  # it is sent again when the loop is free, or when a coordinator asks
            self._watched = False  # before the look at what there is: who adds to it after the look stirs again
            if any(host.may_get_stuck for host in list(self._hosts.values())):
                self._watched = True
            else:
                self._stirred.clear()
