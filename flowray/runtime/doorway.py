"""The coordinator's doors: its socket, its TLS ports, who may come in by which, and the ticket that says where.

Processes of the runtime come by the socket with the secret they share, or from other nodes by TLS with a certificate
of the runtime's own authority. Clients come by the socket, or by a TLS port that is opened only if the configuration
names it, with a token.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flowray.errors import MeshError, NotConnected
from flowray.mesh.authority import Authority
from flowray.mesh.doors import OUTSIDE
from flowray.mesh.doors import Door as TokenDoor
from flowray.mesh.endpoint import Endpoint
from flowray.mesh.frames import Hello
from flowray.mesh.identities import Credentials, server_credentials
from flowray.mesh.private_files import DIRECTORY
from flowray.mesh.tickets import Ticket, path_of, split_address
from flowray.mesh.tokens import Tokens
from flowray.runtime.messages import Door
from flowray.runtime.places import COORDINATOR, shared_token, socket_directory

_TICKET_S = 24 * 3600.0
_RENEW_S = 6 * 3600.0  # certificates and the ticket are renewed long before they expire
_FORGET_CLIENT_S = 120.0
_LOOK_S = 1.0  # a revoked token's streams end within this


class Doorway:
    """See the module. Use only from the coordinator's event loop."""

    def __init__(self, runtime: str, journal: Path, node_id: str, host: str) -> None:
        self._runtime = runtime
        self.host = host  # of this node, as other nodes know it
        self._secret = shared_token(journal)
        self._authority = Authority.open(journal / DIRECTORY, runtime=runtime)
        self._tokens = Tokens(journal / DIRECTORY)
        self._tickets = TokenDoor(self._tokens)
        self._socket = socket_directory(runtime, str(journal)) / "coordinator.sock"
        self._credentials = self._authority.issue(COORDINATOR, [host])
        self._node_id = node_id
        self._last_port = journal / "mesh_port"
        self._port = 0  # for processes of other nodes; 0 while none needs it
        self._listen = ""  # for clients outside
        self._opening = asyncio.Lock()
        self._outside: set[str] = set()  # clients that came by TLS
        self.endpoint: Endpoint  # set by the coordinator, which makes it with this as its gate
        self.on_renewal: Callable[[], None] = lambda: None  # certificates of other processes are due too
        self._keeping: asyncio.Task[None] | None = None

    @property
    def secret(self) -> str:
        """What the processes of the runtime share."""
        return self._secret

    # ── the gate ─────────────────────────────────────────────────────────────────────────────────────────────────

    def refusal(self, hello: Hello, certified: str | None, source: str) -> str:
        """Why this peer may not come in; "" if it may."""
        here = source.startswith("unix")
        if certified is None and here and secrets.compare_digest(hello.token.encode(), self._secret.encode()):
            return ""
        refusal = self._tickets.refusal(hello, certified, source)
        if not refusal and not here and certified is None:
            self._outside.add(hello.name)
        return refusal

    def is_outside(self, peer: str) -> bool:
        """Did this client come over the network? It may not send code, nor pickles."""
        return peer in self._outside

    def left(self, peer: str) -> None:
        """This peer is gone."""
        self._outside.discard(peer)
        self._tickets.left(peer)

    # ── opening ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def open(self, listen: str) -> None:
        """Let in those of this machine, and by `listen` ("host:port") clients from outside.

        Raises:
            MeshError: it cannot be listened there.
        """
        await self.endpoint.listen_unix(self._socket)
        if listen:
            host, port = split_address("mesh.listen", listen)
            credentials = server_credentials(lambda: self._credentials, require_client=False)
            bound = await self.endpoint.listen_tcp(host, port, credentials)
            self._listen = f"[{host}]:{bound}" if ":" in host else f"{host}:{bound}"
        if self._last_port.exists():
            await self.open_to_nodes()  # clients on other nodes may wait for it
        self._leave_ticket()
        self._keeping = asyncio.get_running_loop().create_task(self._keep())

    async def open_to_nodes(self) -> None:
        """Let in processes of other nodes, which prove who they are by certificate."""
        async with self._opening:
            if not self._port:
                credentials = server_credentials(lambda: self._credentials, require_client=True)
                self._port = await self._listen_again(credentials)
                self.on_renewal()  # those that are here already may have to talk to processes of other nodes, too

    async def _listen_again(self, credentials: Any) -> int:
        """At the port of the coordinator before this one, if that is free: there are clients who know no other."""
        with contextlib.suppress(OSError, ValueError, MeshError):
            return await self.endpoint.listen_tcp(self.host, int(self._last_port.read_text()), credentials)
        port = await self.endpoint.listen_tcp(self.host, 0, credentials)
        with contextlib.suppress(OSError):  # on a full disk: then those clients have to connect again
            self._last_port.write_text(str(port))
        return port

    def door(self) -> Door:
        """Where this coordinator is, for a process of its runtime."""
        return Door(self.endpoint.instance, self._node_id, str(self._socket), self._secret, self.host, self._port)

    def issue(self, process: str) -> Credentials | None:
        """A certificate for a process that may have to do with other nodes; None as long as nobody is on one."""
        return self.issued(process) if self._port else None

    def issued(self, process: str) -> Credentials:
        """A certificate for a process."""
        return self._authority.issue(process)

    # ── keeping ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _leave_ticket(self) -> None:
        # For this user on this machine, who may read the secret itself: so it is what the ticket carries.
        Ticket(
            runtime=self._runtime,
            socket=str(self._socket),
            address=self._listen,
            roots_pem=self._authority.roots_pem if self._listen else "",
            server_name=COORDINATOR,
            token=self._secret,
            expires_at_utc=time.time() + _TICKET_S,
        ).save()

    async def _keep(self) -> None:
        """Renew what expires, and end the streams of tokens that have been revoked."""
        renewed_at = time.monotonic()
        while True:
            await asyncio.sleep(_LOOK_S)
            for name in self._tickets.lapsed():
                self.endpoint.forget(name, "its token was revoked or has expired")
            self._forget_silent_clients()
            if time.monotonic() - renewed_at > _RENEW_S:
                renewed_at = time.monotonic()
                self._credentials = self._authority.issue(COORDINATOR, [self.host])
                self._leave_ticket()
                if self._port:
                    self.on_renewal()

    def _forget_silent_clients(self) -> None:
        """What is held for a client that has gone must not be held for long; it finds its outcomes in the store."""
        limit = asyncio.get_running_loop().time() - _FORGET_CLIENT_S
        for peer in self.endpoint.peers():
            if peer.name.startswith(OUTSIDE) and not peer.connected.is_set() and peer.broken_at < limit:
                self.endpoint.forget(peer.name, f"not heard of for {_FORGET_CLIENT_S:g} s")

    def close(self) -> None:
        """Take the ticket back, if it is still this runtime's, and the sockets of all its processes here."""
        if self._keeping is not None:
            self._keeping.cancel()
        shutil.rmtree(self._socket.parent, ignore_errors=True)  # who is connected stays so
        try:
            ticket = Ticket.load(self._runtime)
        except (MeshError, NotConnected):
            return  # somebody has replaced it by something else: then it is theirs
        if ticket.socket == str(self._socket):
            path_of(self._runtime).unlink(missing_ok=True)
