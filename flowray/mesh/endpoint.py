"""One process's place in the mesh: it listens, dials, keeps one stream for each peer, and brings lost ones back.

Everything runs on one event loop. While one frame is being written the next fills: an idle link sends each message
at once, a busy one shares a write among all that came meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from msgspec import Struct

from flowray.errors import MeshError
from flowray.mesh import frames
from flowray.mesh.frames import BadFrame, Bye, Frame, Hello, Limits
from flowray.mesh.grpc_tuned import grpc
from flowray.mesh.peer import Handler, Peer, Stream

_SERVICE, _METHOD = "flowray.Mesh", "Stream"
_GREET_S = 5.0  # for the other side to greet
_RETRY_S = (0.005, 0.5)  # between two dials: first, and at most
_SWEEP_S = 1.0
_PEERS = 10_000  # processes that one endpoint talks to at most


class Address(Struct, frozen=True, array_like=True):
    """Where a process can be reached: by its socket's path on its own node, by host and port from elsewhere."""

    node: str  # name of the machine that the path is on; "" if only the port counts
    path: str = ""
    host: str = ""
    port: int = 0


class StreamUp(Struct, frozen=True):
    """A peer is connected, for the first time or again."""

    peer: str


class StreamBroken(Struct, frozen=True):
    """The stream to a peer is gone. The link waits for another one: nothing is lost yet."""

    peer: str
    reason: str


class PeerGone(Struct, frozen=True):
    """A peer's process was replaced, or stayed away too long. `unconfirmed` messages may never have reached it."""

    peer: str
    reason: str
    unconfirmed: int


MeshEvent = StreamUp | StreamBroken | PeerGone


class Gate(Protocol):
    """Who may talk to this process."""

    def refusal(self, hello: Hello, certified: str | None, source: str) -> str:
        """Why this peer may not; "" if it may. `certified` is the name that its TLS certificate proves, if any."""
        ...


class SharedSecret:
    """A gate for processes that were given the same secret, or whose certificate says who they are."""

    def __init__(self, token: str) -> None:
        self._token = token

    def refusal(self, hello: Hello, certified: str | None, source: str) -> str:
        if certified is not None:
            return "" if certified == hello.name else f"its certificate says {certified!r}"
        return "" if secrets.compare_digest(hello.token.encode(), self._token.encode()) else "a wrong token"


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
        forget_after_s: float = 120.0,
    ) -> None:
        self.name = name
        self.instance = secrets.token_hex(8)
        self._runtime = runtime
        self._on_messages = on_messages
        self._on_event = on_event
        self._gate = gate
        self._token = token
        self.limits = limits or Limits()
        self._forget_after_s = forget_after_s
        self._loop = asyncio.get_running_loop()
        self._peers: dict[str, Peer] = {}
        self._servers: list[Any] = []
        self._paths: list[Path] = []
        self._closed = False
        self._sweeper = self._loop.create_task(self._sweep())

    # ── listening ────────────────────────────────────────────────────────────────────────────────────────────────

    async def listen_unix(self, path: Path) -> None:
        """Accept peers of this machine. The socket replaces one that a dead process left there.

        Raises:
            MeshError: the path is too long for a socket, or its directory may be entered by others.
        """
        if len(os.fsencode(path)) > 100:  # the kernel's limit is 107, and gRPC adds its own
            raise MeshError(f"{path}: too long for a socket (over 100 bytes): choose a shorter directory")
        if path.parent.stat().st_mode & 0o077:
            raise MeshError(f"{path.parent}: other users may enter it (chmod 700 mends that)")
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
        server = grpc.aio.server(options=self._options())
        handler = grpc.stream_stream_rpc_method_handler(self._accept)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, {_METHOD: handler}),))
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
        try:
            data = await asyncio.wait_for(context.read(), _GREET_S)
            hello = frames.decode(data) if data is not grpc.aio.EOF else None
            if not isinstance(hello, Hello):
                raise BadFrame("no greeting")
            refusal = self._refusal(hello, certified_name(context), context.peer())
        except MeshError as error:
            refusal = str(error)
        except TimeoutError:
            refusal = f"no greeting within {_GREET_S:g} s"
        if refusal:
            await context.write(frames.encode(Bye(refusal)))
            return
        assert isinstance(hello, Hello)
        peer = self.peer(hello.name)
        if not peer.link.resumes(hello, self.instance):
            if hello.knows not in ("", self.instance):
                await context.write(frames.encode(Bye("it speaks to an earlier process of this name")))
                return
            if hello.knows:
                await context.write(frames.encode(Bye("this process has forgotten it")))
                return
            self._replaced(peer, "another process has its name")
        stream = _ServerStream(context)
        if peer.stream is not None:
            await self._drop_stream(peer, "the peer opened another stream")
        if peer.pending is not None:
            peer.pending.cancel()
        await context.write(frames.encode(self._greeting(peer)))
        await self._converse(peer, stream, hello, dialled=False)

    def _refusal(self, hello: Hello, certified: str | None, source: str) -> str:
        if hello.version != frames.VERSION:
            return f"it speaks version {hello.version} of the protocol, this process {frames.VERSION}"
        if hello.runtime != self._runtime:
            return f"it belongs to the runtime {hello.runtime!r}, this process to {self._runtime!r}"
        if hello.to != self.name:
            return f"it looks for {hello.to!r}, this process is {self.name!r}"
        if self._closed:
            return "this process is leaving"
        refusal = self._gate.refusal(hello, certified, source)
        if refusal:
            return refusal
        if hello.name not in self._peers and len(self._peers) >= _PEERS:
            return f"this process talks to {_PEERS} others already"
        peer = self._peers.get(hello.name)
        # Both dialled at once: the stream of the one whose name is smaller stays.
        if peer is not None and self.name < hello.name and (peer.pending or (peer.stream and peer.dialled)):
            return "both sides dialled at once; this one stays"
        return ""

    # ── dialling ─────────────────────────────────────────────────────────────────────────────────────────────────

    def dial(self, name: str, target: str, credentials: Any = None, server_name: str = "") -> Peer:
        """Keep a stream to this peer open from now on; returns at once. `target` is "unix:PATH" or "HOST:PORT"."""
        peer = self.peer(name)
        if peer.dialler is None or peer.dialler.done():
            peer.dialler = self._loop.create_task(self._keep_dialling(peer, target, credentials, server_name))
        return peer

    async def _keep_dialling(self, peer: Peer, target: str, credentials: Any, server_name: str) -> None:
        wait_s = _RETRY_S[0]
        while not self._closed and not peer.gone:
            if peer.stream is not None:
                await asyncio.sleep(_RETRY_S[1])
                continue
            channel = self._channel(target, credentials, server_name)
            try:
                if await self._dial_once(peer, channel):
                    wait_s = _RETRY_S[0]
            finally:
                await channel.close()
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))
            wait_s = min(wait_s * 2, _RETRY_S[1])

    def _channel(self, target: str, credentials: Any, server_name: str) -> Any:
        options = self._options()
        if server_name:
            options.append(("grpc.ssl_target_name_override", server_name))
        if credentials is None:
            return grpc.aio.insecure_channel(target, options=options)
        return grpc.aio.secure_channel(target, credentials, options=options)

    async def _dial_once(self, peer: Peer, channel: Any) -> bool:
        """One stream from its beginning to its end. False when it did not come to a conversation."""
        call = channel.stream_stream(f"/{_SERVICE}/{_METHOD}")()
        peer.pending = call
        hello: Hello | None = None
        try:
            await call.write(frames.encode(self._greeting(peer)))
            data = await asyncio.wait_for(call.read(), _GREET_S)
            answer = frames.decode(data) if data is not grpc.aio.EOF else Bye("the stream ended")
            if isinstance(answer, Hello):
                hello = answer
            else:
                self._refused(peer, answer.reason if isinstance(answer, Bye) else "it did not greet")
        except asyncio.CancelledError:
            if not call.cancelled() or self._closed:  # cancelled is this task, not only the call
                raise
        except TimeoutError:
            peer.refused = "it does not answer"
        except (grpc.aio.AioRpcError, MeshError, asyncio.InvalidStateError) as error:
            peer.refused = _brief(error)
        finally:
            if peer.pending is call:
                peer.pending = None
            if hello is None:
                call.cancel()
        if hello is None or peer.stream is not None:
            return False
        problem = self._answer_problem(peer, hello)
        if problem:
            peer.refused = problem
            call.cancel()
            return False
        if not peer.link.resumes(hello, self.instance):
            self._replaced(peer, "another process has its name")
            call.cancel()
            return False
        peer.refused = ""
        await self._converse(peer, call, hello, dialled=True)
        return True

    def _answer_problem(self, peer: Peer, hello: Hello) -> str:
        if hello.version != frames.VERSION:
            return f"it speaks version {hello.version} of the protocol, this process {frames.VERSION}"
        if hello.name != peer.name or hello.runtime != self._runtime:
            return f"{hello.name!r} of runtime {hello.runtime!r} answers in its place"
        return ""

    def _refused(self, peer: Peer, reason: str) -> None:
        peer.refused = reason
        if reason in ("it speaks to an earlier process of this name", "this process has forgotten it"):
            self._replaced(peer, reason)

    # ── conversing ───────────────────────────────────────────────────────────────────────────────────────────────

    def _greeting(self, peer: Peer) -> Hello:
        return peer.link.greeting(
            runtime=self._runtime,
            name=self.name,
            instance=self.instance,
            to=peer.name,
            version=frames.VERSION,
            token=self._token,
        )

    async def _converse(self, peer: Peer, stream: Stream, hello: Hello, *, dialled: bool) -> None:
        try:
            peer.link.open(hello)
        except BadFrame as error:
            self._replaced(peer, str(error))
            return
        peer.stream, peer.dialled = stream, dialled
        peer.connected.set()
        peer.wake.set()
        self._on_event(StreamUp(peer.name))
        writing = self._loop.create_task(self._write(peer, stream))
        reason = "the stream ended"
        try:
            reason = await self._read(peer, stream)
        except BadFrame as error:
            reason = str(error)
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await stream.write(frames.encode(Bye(reason)))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            reason = _brief(error)
        finally:
            writing.cancel()
            stream.cancel()
            if peer.stream is stream:
                self._broken(peer, reason)

    async def _read(self, peer: Peer, stream: Stream) -> str:
        read, decode, link = stream.read, frames.decode, peer.link
        eof = grpc.aio.EOF
        while True:
            data = await read()
            if data is eof:
                return "the peer ended the stream"
            if peer.stream is not stream:
                return "another stream has taken over"
            frame = decode(data)
            if type(frame) is not Frame:
                if isinstance(frame, Bye):
                    return frame.reason
                raise BadFrame("a second greeting")
            messages = link.receive(frame)
            if link.wants_to_write():
                peer.wake.set()
            peer.release_room()
            if messages:
                self._on_messages(peer, messages)

    async def _write(self, peer: Peer, stream: Stream) -> None:
        write, wake, link = stream.write, peer.wake, peer.link
        try:
            while peer.stream is stream:
                wake.clear()
                while (frame := link.next_frame()) is not None:
                    await write(frames.encode(frame))
                await wake.wait()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            stream.cancel()  # the reader sees it and tells

    def _broken(self, peer: Peer, reason: str) -> None:
        peer.stream = None
        peer.link.broken()
        peer.connected.clear()
        peer.broken_at = self._loop.time()
        self._on_event(StreamBroken(peer.name, reason))

    async def _drop_stream(self, peer: Peer, reason: str) -> None:
        stream = peer.stream
        if stream is not None:
            self._broken(peer, reason)
            peer.wake.set()  # its writer leaves
            stream.cancel()

    def _replaced(self, peer: Peer, reason: str) -> None:
        had = bool(peer.link.instance) or peer.link.held > 0
        unconfirmed = peer.renew()
        if had:
            self._on_event(PeerGone(peer.name, reason, unconfirmed))

    # ── looking and leaving ──────────────────────────────────────────────────────────────────────────────────────

    def peer(self, name: str) -> Peer:
        """This peer, connected or not."""
        found = self._peers.get(name)
        if found is None:
            found = self._peers[name] = Peer(name, self.limits)
            found.broken_at = self._loop.time()
        return found

    def known(self, name: str) -> Peer | None:
        """This peer, if this process has anything to do with it."""
        return self._peers.get(name)

    def peers(self) -> list[Peer]:
        """All of them."""
        return list(self._peers.values())

    def forget(self, name: str, reason: str) -> None:
        """Have nothing to do with this peer any more."""
        peer = self._peers.pop(name, None)
        if peer is None:
            return
        stream, peer.stream = peer.stream, None
        unconfirmed = peer.end(reason)
        if peer.dialler is not None:
            peer.dialler.cancel()
        if stream is not None:
            stream.cancel()
        self._on_event(PeerGone(name, reason, unconfirmed))

    async def _sweep(self) -> None:
        """Forget peers that stay away: what is held for them must not be held for ever."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            limit = self._loop.time() - self._forget_after_s
            for peer in self.peers():
                if peer.stream is None and peer.broken_at < limit:
                    self.forget(peer.name, f"not heard of for {self._forget_after_s:g} s")

    async def close(self) -> None:
        """Say what is queued, as far as streams are open, and leave."""
        self._closed = True
        self._sweeper.cancel()
        for peer in self.peers():
            if peer.dialler is not None:
                peer.dialler.cancel()
            if peer.stream is not None:
                peer.stream.cancel()
        for server in self._servers:
            await server.stop(None)
        for path in self._paths:
            path.unlink(missing_ok=True)

    def _options(self) -> list[tuple[str, Any]]:
        size = self.limits.wire_bytes
        return [
            ("grpc.max_receive_message_length", size),
            ("grpc.max_send_message_length", size),
            ("grpc.use_local_subchannel_pool", 1),  # a channel to a process that came back must dial anew
            ("grpc.so_reuseport", 0),
            # A peer that went silent with its machine or its network is noticed within 3 s.
            ("grpc.keepalive_time_ms", 1000),
            ("grpc.keepalive_timeout_ms", 2000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.http2.min_ping_interval_without_data_ms", 500),
            ("grpc.http2.max_ping_strikes", 0),
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 500),
        ]


class _ServerStream:
    """A stream that the other side opened. gRPC ends it when its handler does."""

    def __init__(self, context: Any) -> None:
        self.read = context.read
        self.write = context.write
        self._handler = asyncio.current_task()

    def cancel(self) -> None:
        if self._handler is not None and self._handler is not asyncio.current_task():
            self._handler.cancel()


def certified_name(context: Any) -> str | None:
    """The process name that the peer's certificate proves; None without one."""
    for uri in context.auth_context().get("x509_subject_alternative_name", ()):
        text: str = uri.decode(errors="replace")
        if text.startswith("flowray://"):
            return text.rpartition("/")[2]
    return None


def _brief(error: BaseException) -> str:
    details = getattr(error, "details", None)
    text = details() if callable(details) else str(error)
    return f"{text or type(error).__name__}"[:300]
