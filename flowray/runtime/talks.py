"""A process's part in what agents say to one another: who is where, how to get there, and `Talking` on top.

A process whose agents may talk keeps a copy of the coordinator's directory of agents. The first message to another
process makes that one listen, and this one dial it. From there on they talk to each other without the coordinator.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from flowray.mesh.endpoint import Endpoint, MeshEvent, PeerGone, StreamBroken
from flowray.mesh.frames import BadFrame
from flowray.mesh.identities import Credentials, channel_credentials, server_credentials
from flowray.mesh.lanes import TalkLimits
from flowray.mesh.peer import Peer
from flowray.mesh.topics import Changes
from flowray.runtime.messages import Learn, Listening, Lost, Reach, Reached
from flowray.runtime.places import COORDINATOR
from flowray.runtime.talking import Talking


class Talks:
    """Use only from the loop of its endpoint."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        node: str,
        socket: Path,
        tell: Callable[[Any], None],
        credentials: Callable[[], Credentials | None],
        host: str = "",
        limits: TalkLimits,
    ) -> None:
        """`node` names this machine, `socket` is where to listen, `tell` sends a message to the coordinator;
        `host` is this node's address for processes of other nodes, which need `credentials`."""
        self._endpoint = endpoint
        self._node, self._socket, self._host = node, socket, host
        self._tell = tell
        self._credentials = credentials
        self._listening: Listening | None = None
        self._opening = asyncio.Lock()
        self._asked: set[str] = set()  # processes whose address has been asked for
        self._learning = False
        self.has_learnt = asyncio.Event()  # the directory is here
        self._changed = asyncio.Event()  # so is more of it; another one each time
        self.talking = Talking(
            endpoint.name,
            self,
            first_number=random.getrandbits(48),
            trusts=lambda peer: True,  # who gets here has the runtime's secret or certificate; clients outside do not
            limits=limits,
        )

    # ── the directory ────────────────────────────────────────────────────────────────────────────────────────────

    def learn(self) -> None:
        """Have the coordinator keep this process's copy of the directory up to date."""
        if not self._learning:
            self._learning = True
            self._tell(Learn(*self.talking.known))

    def learnt(self, changes: Changes) -> None:
        """The coordinator says what has changed."""
        if self.talking.learn(changes):
            self.has_learnt.set()
            self._changed.set()
            self._changed = asyncio.Event()
        else:
            self._tell(Learn(*self.talking.known))

    async def until_listed(self, agent: str) -> None:
        """Wait until the directory knows that this agent (or driver) is here."""
        while self.talking.place_of(agent) != self._endpoint.name:
            await self._changed.wait()

    def another_coordinator(self) -> None:
        """It knows nothing of what the one before was told."""
        if self._learning:
            self._tell(Learn(*self.talking.known))
        if self._listening is not None:
            self._tell(self._listening)
        # It may say of some that they died while there was none to see it.
        away = {peer.name for peer in self._endpoint.peers() if not peer.connected.is_set()} - {COORDINATOR}
        for process in self._asked | away:
            self._tell(Reach(process))

    # ── ways to other processes ──────────────────────────────────────────────────────────────────────────────────

    def send(self, peer: str, message: bytes) -> bool:
        """See talking.Post."""
        return self._peer(peer).send(message)

    async def room(self, peer: str) -> None:
        """See talking.Post."""
        await self._peer(peer).room()

    def _peer(self, name: str) -> Peer:
        peer = self._endpoint.peer(name)
        if not peer.connected.is_set() and peer.dialler is None and name not in self._asked:
            self._asked.add(name)
            self._tell(Reach(name))
        return peer

    def reached(self, message: Reached) -> None:
        """Where another process is."""
        self._asked.discard(message.process)
        if message.reason:
            self._endpoint.forget(message.process, message.reason)
        elif message.node == self._node:
            self._endpoint.dial(message.process, f"unix:{message.path}")
        elif not message.port or self._credentials() is None:
            self._endpoint.forget(message.process, "it is on another node, where this process cannot reach it")
        else:
            self._endpoint.dial(message.process, f"{message.host}:{message.port}", self._channel)

    def lost(self, message: Lost) -> None:
        """A process is gone. Its stream alone does not say so: that may be the network."""
        if self._endpoint.known(message.process) is not None:
            self._endpoint.forget(message.process, message.reason)

    def _channel(self) -> Any:
        credentials = self._credentials()
        return None if credentials is None else channel_credentials(credentials)

    async def listen(self) -> None:
        """Another process wants to dial this one: tell where."""
        async with self._opening:
            if self._listening is None:
                await self._endpoint.listen_unix(self._socket)
                self._listening = Listening(self._node, str(self._socket), self._host)
            if not self._listening.port and self._host and self._credentials() is not None:
                credentials = server_credentials(self._current, require_client=True)
                port = await self._endpoint.listen_tcp(self._host, 0, credentials)
                self._listening = msgspec.structs.replace(self._listening, port=port)
        self._tell(self._listening)

    async def renewed(self) -> None:
        """There is a new certificate. If it is the first, other nodes can reach this process from now on."""
        if self._listening is not None and not self._listening.port:
            await self.listen()

    def _current(self) -> Credentials:
        credentials = self._credentials()
        assert credentials is not None  # once there are some, there are always newer ones
        return credentials

    # ── what the mesh says ───────────────────────────────────────────────────────────────────────────────────────

    def receive(self, peer: Peer, batch: list[bytes]) -> None:
        """Messages of another process came."""
        try:
            self.talking.receive(peer.name, batch)
        except BadFrame as error:
            self._endpoint.forget(peer.name, str(error))
        else:
            peer.consumed(len(batch), sum(map(len, batch)))

    def on_event(self, event: MeshEvent) -> None:
        """Something happened to the stream to another process than the coordinator."""
        if isinstance(event, PeerGone):
            self._asked.discard(event.peer)
            self.talking.peer_gone(event.peer, event.reason)
        elif isinstance(event, StreamBroken):
            peer = self._endpoint.known(event.peer)
            if peer is not None and peer.dialler is None and peer.link.held:
                self._peer(event.peer)  # it used to dial; now something waits here

    async def close(self) -> None:
        """Say nothing more."""
        self.talking.close()
