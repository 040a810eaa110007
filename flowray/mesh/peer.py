"""One other process as this one sees it: a link, and whichever stream carries it now."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from flowray.errors import MeshError
from flowray.mesh.frames import Limits
from flowray.mesh.link import Link


class Stream(Protocol):
    """One gRPC stream, from either of its ends."""

    def read(self) -> Awaitable[Any]: ...

    def write(self, data: bytes) -> Awaitable[None]: ...

    def cancel(self) -> Any: ...


class Peer:
    """Use only from the event loop of its endpoint."""

    __slots__ = (
        "_limits",
        "_room",
        "broken_at",
        "connected",
        "dialled",
        "dialler",
        "gone",
        "link",
        "name",
        "pending",
        "refused",
        "stream",
        "wake",
    )

    def __init__(self, name: str, limits: Limits) -> None:
        self.name = name
        self._limits = limits
        self.link = Link(limits)
        self.stream: Stream | None = None  # the one that carries the link, once both sides have greeted
        self.dialled = False  # was it this side that opened it?
        self.pending: Stream | None = None  # dialled by this side, not greeted yet
        self.dialler: asyncio.Task[None] | None = None
        self.connected = asyncio.Event()
        self.wake = asyncio.Event()  # there may be something to write
        self.broken_at = 0.0  # loop time at which the last stream was lost
        self.refused = ""  # why the last dial came to nothing
        self.gone = ""  # why nothing can be sent any more; "" while it can
        self._room: list[asyncio.Future[None]] = []

    def send(self, message: bytes) -> bool:
        """Queue a message. False when there is no room: wait for `room` and try again.

        Raises:
            MeshError: it is larger than the limit, or this peer is gone.
        """
        if self.gone:
            raise MeshError(f"{self.name} is gone: {self.gone}")
        if len(message) > self._limits.message_bytes:
            limit = self._limits.message_bytes
            raise MeshError(f"a message of {len(message)} bytes to {self.name}; the limit is {limit}: send a reference")
        if not self.link.has_room():
            return False
        self.link.send(message)
        self.wake.set()
        return True

    def send_anyway(self, message: bytes) -> None:
        """Queue a message whatever the room: for answers, which the requests they belong to bound already."""
        if not self.gone:
            self.link.send(message)
            self.wake.set()

    def consumed(self, items: int, size_bytes: int) -> None:
        """Received messages have been dealt with: the peer may send as many more."""
        if self.link.consumed(items, size_bytes):
            self.wake.set()

    async def room(self) -> None:
        """Wait until `send` may be tried again. Raises MeshError when the peer is gone."""
        if self.gone:
            raise MeshError(f"{self.name} is gone: {self.gone}")
        if self.link.has_room():
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._room.append(waiter)
        await waiter

    # ── for the endpoint ─────────────────────────────────────────────────────────────────────────────────────────

    def release_room(self) -> None:
        """Let those go on who wait for room, if there is some."""
        if self._room and self.link.has_room():
            waiters, self._room = self._room, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def renew(self) -> int:
        """The other process was replaced or has forgotten us: begin anew. How many messages were not confirmed."""
        unconfirmed = self.link.held
        self.link = Link(self._limits)
        self.release_room()
        return unconfirmed

    def end(self, reason: str) -> int:
        """Nothing can be sent from now on. How many messages were not confirmed."""
        unconfirmed = self.link.held
        self.gone = reason
        self.link.broken()
        self.connected.clear()
        self.wake.set()
        waiters, self._room = self._room, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(MeshError(f"{self.name} is gone: {reason}"))
        return unconfirmed

    def __repr__(self) -> str:
        return f"<Peer {self.name!r} {'connected' if self.link.greeted else self.gone or 'not connected'}>"


Handler = Callable[[Peer, list[bytes]], None]
