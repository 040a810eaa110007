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

from flowray.errors import MeshError
from flowray.mesh.endpoint import Endpoint, MeshEvent, PeerGone, SharedSecret, StreamUp
from flowray.mesh.identities import Credentials, channel_credentials
from flowray.mesh.peer import Peer
from flowray.runtime import messages
from flowray.runtime._ray_errors import LOST, REFUSED
from flowray.runtime.agent import STUCK_S, AgentHost, preload
from flowray.runtime.link import COORDINATOR
from flowray.runtime.loops import LoopThread
from flowray.runtime.messages import (
    Acknowledge,
    Begin,
    Begun,
    Cancel,
    Door,
    Found,
    Prepare,
    Prepared,
    Renewed,
    Report,
    Start,
)

_REACH_S = 10.0  # for the coordinator to answer a new process


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
        self._door: Door | None = None
        self._credentials: Credentials | None = None
        self._node_id = ray.get_runtime_context().get_node_id()
        self._endpoint: Endpoint | None = None
        # A thread that computes would keep the loop waiting for the interpreter for 5 ms at a time.
        sys.setswitchinterval(0.001)
        self._thread = LoopThread("flowray-mesh")
        self.loop = self._thread.loop
        self._ident = 0  # of its thread
        self._watching: asyncio.Task[None] | None = None

    # ── called by the coordinator, over Ray ──────────────────────────────────────────────────────────────────────

    async def prepare(self, message: Prepare, coordinator: Any) -> Prepared:
        """Connect to the coordinator, and import what the class needs."""
        self._coordinator = coordinator
        self._prepare = message
        opening = asyncio.run_coroutine_threadsafe(self._open(message), self.loop)
        loading = asyncio.to_thread(preload, message.spec)
        await asyncio.gather(asyncio.wrap_future(opening), loading)
        self._watching = asyncio.get_running_loop().create_task(self._watch_hosts())
        self._made = Prepared(self._node_id, ray.util.get_node_ip_address(), os.getpid())
        return self._made

    async def begin(self, message: Begin) -> Begun:
        """Construct an agent. A failure of the user's code is an answer, not an exception."""
        host = AgentHost(message, self)
        failure = await asyncio.to_thread(host.construct)
        if failure is None:
            self._hosts[message.agent_id] = host
        return Begun(failure)

    def attend(self, epoch: int, coordinator: Any, door: Door) -> Found:
        """A new epoch has begun: answer to it from now on, and say what is here."""
        if self._made is None or self._prepare is None:
            return Found()
        self._coordinator = coordinator
        held = [host.attend(epoch) for host in self._hosts.values()]
        self.loop.call_soon_threadsafe(self._reach, door)
        return Found(self._made, self._prepare.spec.name, self._prepare.place, held)

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
        self._door = door
        if door.node_id == self._node_id:
            return self._endpoint.dial(COORDINATOR, f"unix:{door.path}")
        return self._endpoint.dial(COORDINATOR, f"{door.host}:{door.port}", self._channel_credentials)

    def _channel_credentials(self) -> Any:
        if self._credentials is None:
            raise MeshError("this process is on another node than the coordinator, and has no certificate")
        return channel_credentials(self._credentials)

    def _on_messages(self, peer: Peer, batch: list[bytes]) -> None:
        if peer.name == COORDINATOR:
            for body in batch:
                message = messages.decode_to_agent(body)
                if isinstance(message, Renewed):
                    self._credentials = message.credentials
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
                else:
                    self._hosts.pop(message.agent_id).retire()
        peer.consumed(len(batch), sum(map(len, batch)))

    def _on_event(self, event: MeshEvent) -> None:
        if event.peer != COORDINATOR:
            return
        if isinstance(event, PeerGone):
            for host in self._hosts.values():
                host.send_again()
        elif isinstance(event, StreamUp):
            self._flush()

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

    def report(self, report: Report) -> bool:
        """Send to the coordinator, from the loop. False when there is none to send to now."""
        peer = self._endpoint.known(COORDINATOR) if self._endpoint is not None else None
        if peer is None:
            return False
        peer.send_anyway(messages.encode(report))
        return True

    async def _watch_hosts(self) -> None:
        """On Ray's loop: what must happen although user code blocks the other one."""
        while True:
            await asyncio.sleep(STUCK_S / 2)
            for host in list(self._hosts.values()):
                host.hand_back_when_stuck()
                if host.overdue(time.monotonic()) and (report := host.pending()) is not None:
                    try:
                        await self._coordinator.report.remote(messages.encode(report))
                    except (*LOST, *REFUSED):
                        continue  # it is sent again when the loop is free, or when a coordinator asks
