"""Messages of one route on their way out: bounded in number and bytes, kept until the other server confirms them."""

from __future__ import annotations

import asyncio
from collections import deque

from flowray.bridges.topics import TopicMessage
from flowray.errors import FlowrayError


class Sending:
    """One message in an outbox."""

    __slots__ = ("done", "message", "reason")

    def __init__(self, message: TopicMessage, reason: str = "") -> None:
        self.message = message
        self.reason = reason  # why it must go to the dead letters instead; "" when it need not
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Outbox:
    """First in, first out. One reader, any number of writers."""

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self._max_messages, self._max_bytes = max_messages, max_bytes
        self._waiting: deque[Sending] = deque()
        self._in_hand: list[Sending] = []  # given out by `take` and not confirmed
        self._bytes = 0  # of both
        self._writers: deque[tuple[asyncio.Future[None], Sending]] = deque()
        self._filled = asyncio.Event()
        self._closed: FlowrayError | None = None

    def __len__(self) -> int:
        return len(self._waiting) + len(self._in_hand)

    @property
    def held_bytes(self) -> int:
        """Bytes of all bodies here."""
        return self._bytes

    async def deliver(self, sending: Sending) -> None:
        """Wait for room, queue it, and return once it is confirmed. Raises what `close` was given, if that comes first.

        A caller that is cancelled gives up its wait, not the message: that may still be sent.
        """
        if self._closed is not None:
            raise self._closed
        if self._writers or not self._has_room(sending):
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._writers.append((turn, sending))
            try:
                await turn
            except asyncio.CancelledError:
                self._writers = deque(writer for writer in self._writers if writer[0] is not turn)
                self._admit()  # who stood behind may fit
                raise
        else:
            self._put(sending)
        await sending.done  # cancelled with its caller, which `confirm` then leaves alone

    async def take(self, max_messages: int, max_bytes: int) -> list[Sending]:
        """What to send next, at least one; after a failure what is not confirmed yet comes again, in its order."""
        while not self._in_hand and not self._waiting:
            self._filled.clear()
            await self._filled.wait()
        size = sum(len(sending.message.body) for sending in self._in_hand)
        while self._waiting and len(self._in_hand) < max_messages:
            size += len(self._waiting[0].message.body)
            if self._in_hand and size > max_bytes:
                break
            self._in_hand.append(self._waiting.popleft())
        return list(self._in_hand)

    def confirm(self, sent: list[Sending]) -> None:
        """These are safe: forget them and tell whoever waits."""
        gone = set(map(id, sent))
        self._in_hand = [sending for sending in self._in_hand if id(sending) not in gone]
        for sending in sent:
            self._bytes -= len(sending.message.body)
            if not sending.done.done():
                sending.done.set_result(None)
        self._admit()

    def close(self, why: FlowrayError) -> None:
        """Nothing is sent any more: whoever waits gets `why`, now and later."""
        self._closed = why
        for sending in (*self._in_hand, *self._waiting):
            if not sending.done.done():
                sending.done.set_exception(why)
                sending.done.exception()  # a caller that was cancelled no longer looks: that is no lost error
        self._in_hand, self._bytes = [], 0
        self._waiting.clear()
        for turn, _ in self._writers:
            if not turn.done():
                turn.set_exception(why)
        self._writers.clear()

    def _has_room(self, sending: Sending) -> bool:
        if len(self) >= self._max_messages:
            return False
        # One message is let in whatever its size, or a too large one could not even reach the dead letters.
        return not len(self) or self._bytes + len(sending.message.body) <= self._max_bytes

    def _put(self, sending: Sending) -> None:
        self._waiting.append(sending)
        self._bytes += len(sending.message.body)
        self._filled.set()

    def _admit(self) -> None:
        """Let writers in by their turns: nobody overtakes, or messages would lose their order."""
        while self._writers and self._has_room(self._writers[0][1]):
            turn, sending = self._writers.popleft()
            if not turn.done():
                turn.set_result(None)
                self._put(sending)
