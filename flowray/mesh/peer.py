"""One other process as this one sees it: a link, and whichever stream carries it now."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from flowray.errors import MeshError
from flowray.mesh.frames import Hello, Limits
from flowray.mesh.link import Link, Verdict

if TYPE_CHECKING:
    from flowray.mesh.streams import Conversation, DialledStream

_FORMER_ENDS = 16  # of a peer's links that are over: their greetings may still be on their way


class Way(Struct, frozen=True):
    """How to reach a peer."""

    target: str  # "unix:PATH" or "HOST:PORT"
    credentials: Any = None  # for a channel, or a function that returns them when a connection is made
    server_name: str = ""  # to demand of its certificate; "" the one that belongs to its process name


class Peer:
    """Use only from the event loop of its endpoint."""

    __slots__ = (
        "_former_ends",
        "_limits",
        "_new_end",
        "_released",
        "_waiting",
        "broken_at",
        "connected",
        "conversation",
        "dialler",
        "gone",
        "link",
        "name",
        "nudge",
        "pending",
        "refused",
        "unwelcome",
        "wake",
        "way",
    )

    def __init__(self, name: str, limits: Limits, new_end: Callable[[], str]) -> None:
        """`new_end` makes a name for an end of a link, another one each time."""
        self.name = name
        self._limits = limits
        self._new_end = new_end
        self._former_ends: deque[str] = deque(maxlen=_FORMER_ENDS)
        self.link = Link(limits, new_end())
        self.conversation: Conversation | None = None  # the one that carries the link, once both sides have greeted
        self.pending: DialledStream | None = None  # opened by this side, not answered yet
        self.way: Way | None = None
        self.dialler: asyncio.Task[None] | None = None
        self.nudge = asyncio.Event()  # the dialler should look: the stream was lost, or there is another way
        self.connected = asyncio.Event()
        self.wake = asyncio.Event()  # there may be something to write
        self.broken_at = 0.0  # loop time at which the last stream was lost
        self.refused = ""  # why the last dial came to nothing
        self.unwelcome = False  # because the other side does not let this process in
        self.gone = ""  # why nothing can be sent any more; "" while it can
        self._released = asyncio.Event()  # only ever set to be cleared at once
        self._waiting = 0  # for room

    def send(self, message: bytes) -> bool:
        """Queue a message. False when there is no room: wait for `room` and try again.

        Raises:
            MeshError: it is larger than the limit, or this peer is gone.
        """
        if self.gone:
            raise MeshError(f"{self.name} is gone: {self.gone}")
        if not self.link.has_room():
            return False
        self._queue(message)
        return True

    def send_anyway(self, message: bytes) -> None:
        """Queue a message whatever the room: for answers, which the requests they belong to bound already.

        Nothing happens when this peer is gone: whoever asked is gone too.

        Raises:
            MeshError: it is larger than the limit.
        """
        if not self.gone:
            self._queue(message)

    def _queue(self, message: bytes) -> None:
        limit = self._limits.message_bytes
        if len(message) > limit:
            raise MeshError(f"a message of {len(message)} bytes to {self.name}; the limit is {limit}: send a reference")
        self.link.send(message)
        self.wake.set()

    def consumed(self, items: int, size_bytes: int) -> None:
        """Received messages have been dealt with: the peer may send as many more.

        Each message is to be counted once, whatever becomes of the peer meanwhile: what is not counted takes up the
        window, of later links too.

        Raises:
            InvariantBroken: more than were received.
        """
        if self.link.consumed(items, size_bytes):
            self.wake.set()

    async def room(self) -> None:
        """Wait until `send` may be tried again. Raises MeshError when the peer is gone."""
        if not self.gone and not self.link.has_room():
            self._waiting += 1
            try:
                await self._released.wait()
            finally:
                self._waiting -= 1
        if self.gone:
            raise MeshError(f"{self.name} is gone: {self.gone}")

    # ── for the endpoint ─────────────────────────────────────────────────────────────────────────────────────────

    def release_room(self) -> None:
        """Let those go on who wait for room, if there is some."""
        if self._waiting and self.link.has_room():
            self._released.set()
            self._released.clear()

    def beat(self) -> None:
        """Let the other side know that this one lives, and what it has received and consumed."""
        self.link.beat()
        self.wake.set()

    def judge(self, hello: Hello) -> Verdict:
        """What this greeting means for the link (see there). Raises BadFrame.

        One of a link that was given up for another is not the news of a third: it may have been on its way for long.
        If it is no echo, its process begins anew when it is told; so two of one name cannot take turns unnoticed.
        """
        return Verdict.FORGOTTEN if hello.end in self._former_ends else self.link.judge(hello)

    def rename(self) -> bool:
        """Give this end another name. False when it had a stream: what it knows belongs to its name then."""
        if not self.link.other_end:
            self.link.end = self._new_end()
        return not self.link.other_end

    def renew(self) -> int:
        """The other process was replaced or has forgotten us: begin anew. How many messages were not confirmed."""
        old = self.link
        old.broken()
        if old.other_end:
            self._former_ends.append(old.other_end)
        self.link = Link(self._limits, self._new_end(), old.backlog)
        self.release_room()
        return old.held

    def end(self, reason: str) -> int:
        """Nothing can be sent from now on. How many messages were not confirmed."""
        unconfirmed = self.link.held
        self.gone = reason
        self.link.broken()
        self.connected.clear()
        self.wake.set()
        self.nudge.set()
        self._released.set()
        return unconfirmed

    def __repr__(self) -> str:
        return f"<Peer {self.name!r} {'connected' if self.link.greeted else self.gone or 'not connected'}>"


Handler = Callable[[Peer, list[bytes]], None]
