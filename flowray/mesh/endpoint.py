"""One process's place in the mesh: it listens, dials, keeps one stream for each peer, and brings lost ones back.

    endpoint = Endpoint("a", runtime="r", on_messages=handle, on_event=print, gate=SharedSecret(token), token=token)
    await endpoint.listen_unix(directory / "a.sock")
    peer = endpoint.dial("b", f"unix:{directory}/b.sock")
    while not peer.send(b"..."):
        await peer.room()

Everything runs on one event loop.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flowray.errors import ConfigError, MeshError
from flowray.mesh import frames, identities
from flowray.mesh.dialling import GREET_S, keep_dialling
from flowray.mesh.events import Address, MeshEvent, PeerGone, StreamBroken, StreamUp
from flowray.mesh.frames import BadFrame, Hello, Limits
from flowray.mesh.gates import Gate, SharedSecret
from flowray.mesh.grpc_tuned import grpc
from flowray.mesh.link import Verdict
from flowray.mesh.peer import Handler, Peer, Way
from flowray.mesh.peers import Peers
from flowray.mesh.streams import METHOD, SERVICE, AcceptedStream, StreamLost, options

__all__ = ["Address", "Endpoint", "Gate", "MeshEvent", "PeerGone", "SharedSecret", "StreamBroken", "StreamUp"]

_PEERS = 10_000  # processes that one endpoint talks to at most
_UNGREETED = 1_000  # streams that have not greeted yet, at most


class Endpoint:
    """See the module. Made on the event loop it runs on."""

    def __init__(
        self,
        name: str,
        *,
        runtime: str,
        on_messages: Handler,
        on_event: Callable[[MeshEvent], None],
        gate: Gate,
        token: str = "",
        limits: Limits | None = None,
        silent_after_s: float = 10.0,
        forget_after_s: float = 120.0,
    ) -> None:
        """`on_messages` gets what comes from a peer, in order, and sees to it that it is counted as consumed.

        A stream on which nothing comes for `silent_after_s` is given up (every process says something each second,
        unless its loop is blocked), and a peer that has none for `forget_after_s` is forgotten.

        Raises:
            ConfigError: `name` or `runtime` cannot be a name.
        """
        identities.check_name("name", name)
        identities.check_name("runtime", runtime)
        self.name = name
        self.limits = limits or Limits()
        self._peers = Peers(
            name,
            runtime=runtime,
            token=token,
            limits=self.limits,
            on_messages=on_messages,
            on_event=on_event,
            silent_after_s=silent_after_s,
            forget_after_s=forget_after_s,
        )
        self._gate = gate
        self._loop = asyncio.get_running_loop()
        self._servers: list[Any] = []
        self._paths: list[Path] = []
        self._ungreeted = 0

    @property
    def instance(self) -> str:
        """Names this process and no other, ever."""
        return self._peers.instance

    # ── listening ────────────────────────────────────────────────────────────────────────────────────────────────

    async def listen_unix(self, path: Path) -> None:
        """Accept peers of this machine. The socket replaces one that a dead process left there.

        Raises:
            MeshError: the path is too long for a socket, its directory may be entered by others, or somebody listens.
        """
        if len(os.fsencode(path)) > 100:  # the kernel's limit is 107, and gRPC adds its own
            raise MeshError(f"{path}: too long for a socket (over 100 bytes): choose a shorter directory")
        try:
            mode = path.parent.stat().st_mode
        except OSError as error:
            raise MeshError(f"{path.parent}: {error.strerror}") from error
        if mode & 0o077:
            raise MeshError(f"{path.parent}: other users may enter it (chmod 700 mends that)")
        if _is_answered(path):
            raise MeshError(f"{path}: another process listens there: give each its own path")
        path.unlink(missing_ok=True)
        await self._serve(f"unix:{path}", None)
        path.chmod(0o600)
        self._paths.append(path)

    async def listen_tcp(self, host: str, port: int, credentials: Any) -> int:
        """Accept peers of other machines, with TLS. The port that was bound (`port` 0: any free one).

        Raises:
            MeshError: it cannot be bound.
        """
        if credentials is None:
            raise MeshError("listening on TCP needs TLS credentials")
        shown = f"[{host}]" if ":" in host else host
        return await self._serve(f"{shown}:{port}", credentials)

    async def _serve(self, target: str, credentials: Any) -> int:
        server = grpc.aio.server(options=options(self.limits))
        handler = grpc.stream_stream_rpc_method_handler(self._accept)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
        try:
            if credentials is None:
                port = server.add_insecure_port(target)
            else:
                port = server.add_secure_port(target, credentials)
        except RuntimeError as error:
            raise MeshError(f"cannot listen on {target}: {error}") from error
        await server.start()
        self._servers.append(server)
        return int(port)

    async def _accept(self, _: Any, context: Any) -> None:
        """One stream that somebody opened, from its beginning to its end."""
        try:
            begun = await self._greeted(context)
        except StreamLost:
            return  # it went away before it was anybody
        if isinstance(begun, bytes):
            await context.write(begun)
            return
        peer, hello = begun
        stream = AcceptedStream(context)
        await stream.carry(self._peers.carry(peer, self._peers.begin(peer, stream, hello, answer=True)))

    async def _greeted(self, context: Any) -> tuple[Peer, Hello] | bytes:
        """Who greets, if its link goes on; otherwise what to say to it before the stream is ended."""
        if self._ungreeted >= _UNGREETED:
            return frames.farewell(f"{_UNGREETED} others are greeting this process at this moment")
        self._ungreeted += 1
        try:
            async with asyncio.timeout(GREET_S):
                data = await context.read()
            hello = frames.decode(data) if data is not grpc.aio.EOF else None
            if not isinstance(hello, Hello):
                raise BadFrame("no greeting")
            if unfit := self._peers.refusal(hello) or ("this process is leaving" if self._peers.closed else ""):
                return frames.farewell(unfit)
            certified = identities.peer_name(context.auth_context(), runtime=hello.runtime)
            if unwelcome := self._gate.refusal(hello, certified, context.peer()):
                return frames.farewell(unwelcome, unwelcome=True)
            refusal = self._refusal(hello)
            return frames.farewell(refusal) if refusal else self._judged(hello)
        except TimeoutError:
            return frames.farewell(f"no greeting within {GREET_S:g} s")
        except MeshError as error:
            return frames.farewell(str(error))
        finally:
            self._ungreeted -= 1

    def _refusal(self, hello: Hello) -> str:
        """Why there is no room for whoever may come in; "" if there is."""
        try:
            identities.check_name("its name", hello.name)
        except ConfigError as error:
            return str(error)
        peer = self._peers.known(hello.name)
        if peer is None:
            full = len(self._peers.all()) >= _PEERS
            return f"this process talks to {_PEERS} others already" if full else ""
        if self.name < hello.name and peer.pending is not None and peer.pending.reaches:
            return "both sides dialled at once; the other stream stays"
        return ""

    def _judged(self, hello: Hello) -> tuple[Peer, Hello] | bytes:
        peer = self._peers.peer(hello.name)
        verdict = peer.judge(hello)
        if verdict is Verdict.OVER:
            self._peers.replaced(peer, hello)
            verdict = peer.judge(hello)
        if verdict is Verdict.GOES_ON:
            return peer, hello
        if verdict is Verdict.FORGOTTEN:
            # Our own greeting tells it: it names an end that the other side does not know.
            return frames.encode(self._peers.greeting(peer))
        return frames.farewell("its greeting is out of date: a later one was heard, or another process has its name")

    # ── dialling ─────────────────────────────────────────────────────────────────────────────────────────────────

    def dial(self, name: str, target: str, credentials: Any = None, server_name: str = "") -> Peer:
        """Keep a stream to this peer open from now on; returns at once. Called again, it changes the way there.

        `target` is "unix:PATH" or "HOST:PORT". `credentials` are those of a channel, or a function that returns them,
        which is asked for each new connection. The other side must prove `server_name`, or if that is empty its name.

        Raises:
            MeshError: the name is this process's own, or this endpoint is closed.
        """
        if name == self.name:
            raise MeshError(f"{name} cannot dial itself")
        if self._peers.closed:
            raise MeshError(f"{self.name} is closed")
        peer = self._peers.peer(name)
        peer.way = Way(target, credentials, server_name)
        if peer.dialler is None or peer.dialler.done():
            peer.dialler = self._loop.create_task(keep_dialling(self._peers, peer))
        return peer

    # ── looking and leaving ──────────────────────────────────────────────────────────────────────────────────────

    def peer(self, name: str) -> Peer:
        """This peer, connected or not."""
        return self._peers.peer(name)

    def known(self, name: str) -> Peer | None:
        """This peer, if this process has anything to do with it."""
        return self._peers.known(name)

    def peers(self) -> list[Peer]:
        """All of them."""
        return self._peers.all()

    def forget(self, name: str, reason: str) -> None:
        """Have nothing to do with this peer any more."""
        self._peers.forget(name, reason)

    async def close(self, flush_s: float = 1.0) -> int:
        """Say what is queued for those who are connected, and leave. How many messages were not confirmed.

        Takes no longer than `flush_s` and the moment that the streams need to end; with 0 nothing is waited for.
        """
        unconfirmed = await self._peers.close(flush_s)
        for server in self._servers:
            await server.stop(None)
        for path in self._paths:
            path.unlink(missing_ok=True)
        return unconfirmed


def _is_answered(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except OSError:
            return False
    return True
