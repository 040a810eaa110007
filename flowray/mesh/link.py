"""One link between two processes, as a protocol without IO: numbered messages, credit, and resumption.

Messages are numbered in each direction. A sender keeps what it sent until the other side says that it has it, so a
link outlives its streams: a new one begins with a greeting in which each side says what it received, and what was
lost with the old stream is sent again. What arrives twice is dropped by its number. A receiver grants credit, in
messages and in bytes counted from the beginning of the link; it moves on as messages are consumed, so that nothing
piles up on either side (the scheme of sliding windows: RFC 9293, 3.8; absolute limits as in QUIC, RFC 9000, 4.1).

A link is the pair of its two ends, each a name that is never used again. So neither side can go on with half of a
link: a process that was replaced, or has forgotten the other, comes with another end, and the link is over for both.
Greetings are numbered, so that one which was long on its way is known as out of date.

Bounds, with W the windows of `Limits`, in messages and in bytes alike:
- sent and not confirmed: at most W; all that `send` takes after `has_room`: less than 2 W, and one message;
- received and not consumed, over all links that one peer had in turn: at most W.
"""

from __future__ import annotations

from collections import deque
from enum import Enum

from flowray.errors import InvariantBroken
from flowray.mesh.frames import BadFrame, Frame, Hello, Limits


class Verdict(Enum):
    """What a greeting means for a link."""

    GOES_ON = "both ends fit: open the link on this stream"
    OUT_OF_DATE = "a later greeting of this process has been heard: the stream is to be ended, the link waits"
    OVER = "the other end is a new one: nothing more comes from the old one, a new link is needed"
    FORGOTTEN = "the other side speaks of an end that is no more: it must begin anew, this link waits for that"


class Link:
    """Everything one process knows about its conversation with one other."""

    __slots__ = (
        "_acknowledged",
        "_announced_bytes",
        "_announced_items",
        "_announced_received",
        "_consumed",
        "_consumed_bytes",
        "_credit_bytes",
        "_credit_items",
        "_greetings",
        "_heard",
        "_held_bytes",
        "_limits",
        "_queue",
        "_received",
        "_received_bytes",
        "_sent",
        "_sent_bytes",
        "_unconfirmed",
        "_want_update",
        "end",
        "greeted",
        "other_end",
    )

    def __init__(self, limits: Limits, end: str, backlog: tuple[int, int] = (0, 0)) -> None:
        """`end` is a process's instance, which no other process has, and the number of the link: "INSTANCE-NUMBER".

        `backlog`: messages and bytes that came on an earlier link with this peer and are not consumed yet.
        """
        self._limits = limits
        self.end = end
        self.other_end = ""  # until a stream was opened
        self.greeted = False  # is a stream open on which both sides have greeted?
        self._greetings = 0  # made here
        self._heard = 0  # the highest number of the other side's greetings
        # Outgoing. Messages are numbered from 1; number `_sent` was the last to leave.
        self._queue: deque[bytes] = deque()  # not sent on this stream yet
        self._unconfirmed: deque[bytes] = deque()  # sent, numbers _acknowledged+1 .. _sent
        self._held_bytes = 0  # of both
        self._sent = 0
        self._sent_bytes = 0
        self._acknowledged = 0
        self._credit_items = 0  # what the peer lets us send, counted from the beginning
        self._credit_bytes = 0
        # Incoming. The backlog counts as received before the beginning: it takes room until it is consumed.
        self._received = 0
        self._received_bytes = 0
        self._consumed = -backlog[0]
        self._consumed_bytes = -backlog[1]
        self._announced_received = 0  # what we told the peer last
        self._announced_items = 0
        self._announced_bytes = 0
        self._want_update = False

    @property
    def instance(self) -> str:
        """Of the process at the other end, which is what the names of its ends begin with; "" before it has greeted."""
        return self.other_end.rpartition("-")[0]

    # ── outgoing ─────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def held(self) -> int:
        """Messages that wait here: to be sent, or to be confirmed."""
        return len(self._queue) + len(self._unconfirmed)

    @property
    def held_bytes(self) -> int:
        """Bytes of those."""
        return self._held_bytes

    @property
    def queued(self) -> int:
        """Messages that have not been sent on this stream."""
        return len(self._queue)

    def has_room(self) -> bool:
        """May another message be sent now?"""
        limits = self._limits
        return self._held_bytes < 2 * limits.window_bytes and (
            len(self._queue) + len(self._unconfirmed) < 2 * limits.window_items
        )

    def send(self, message: bytes) -> None:
        """Queue a message. The caller has asked `has_room`, or knows that what it sends is bounded otherwise."""
        self._queue.append(message)
        self._held_bytes += len(message)

    def next_frame(self) -> Frame | None:
        """What to write now: messages within credit and frame size, or news about the other direction; else None."""
        if not self.greeted:
            return None
        messages: list[bytes] = []
        queue = self._queue
        first = self._sent + 1
        if queue:
            items = min(self._credit_items - self._sent, len(queue))
            credit_bytes = self._credit_bytes - self._sent_bytes
            room = min(self._limits.frame_bytes, credit_bytes)
            unconfirmed = self._unconfirmed
            size = 0
            while items > 0:
                message = queue[0]
                size += len(message)
                if size > room and (messages or size > credit_bytes):  # a large message goes in a frame of its own
                    size -= len(message)
                    break
                queue.popleft()
                messages.append(message)
                unconfirmed.append(message)
                items -= 1
            self._sent += len(messages)
            self._sent_bytes += size
        if not messages and not self._want_update:
            return None
        self._want_update = False
        return Frame(*self._announce(), first, messages)

    def wants_to_write(self) -> bool:
        """May `next_frame` have something?"""
        return self._want_update or bool(self._queue)

    def beat(self) -> None:
        """Let the next frame go out even without messages or news: it says that this process lives."""
        self._want_update = True

    def tell(self) -> bool:
        """Let the next frame go out even without messages, if there is news for the peer. Is there?"""
        limits = self._limits
        self._want_update = (
            self._want_update
            or self._received != self._announced_received
            or self._consumed + limits.window_items != self._announced_items
            or self._consumed_bytes + limits.window_bytes != self._announced_bytes
        )
        return self._want_update

    def _announce(self) -> tuple[int, int, int]:
        self._announced_received = self._received
        self._announced_items = self._consumed + self._limits.window_items
        self._announced_bytes = self._consumed_bytes + self._limits.window_bytes
        return self._announced_received, self._announced_items, self._announced_bytes

    # ── incoming ─────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def backlog(self) -> tuple[int, int]:
        """Messages and bytes that were received and not consumed."""
        return self._received - self._consumed, self._received_bytes - self._consumed_bytes

    def receive(self, frame: Frame) -> list[bytes]:
        """Take a frame in: its messages that are new, in order.

        Raises:
            BadFrame: it confirms what was never sent, has a gap, or exceeds the credit given. Nothing of it counts.
        """
        if not self.greeted:
            raise BadFrame("a frame before the greeting")
        if frame.received > self._sent:
            raise BadFrame(f"it confirms message {frame.received}; {self._sent} were sent")
        messages = frame.messages
        if messages:
            known = self._received + 1 - frame.first
            if known < 0:
                raise BadFrame(f"message {frame.first} came after message {self._received}: some are missing")
            if known:
                messages = messages[known:]
            received = self._received + len(messages)
            received_bytes = self._received_bytes + sum(map(len, messages))
            if received > self._announced_items or received_bytes > self._announced_bytes:
                raise BadFrame("more messages than it was given credit for")
            self._received, self._received_bytes = received, received_bytes
            # The sender holds a copy of each until it hears of it, so it must hear in time.
            if (received - self._announced_received) * 4 >= self._limits.window_items:
                self._want_update = True
        self._confirm(frame.received)
        # Credit only grows: an older frame that comes again must not take any back.
        self._credit_items = max(self._credit_items, frame.limit_items)
        self._credit_bytes = max(self._credit_bytes, frame.limit_bytes)
        return messages

    def consumed(self, items: int, size_bytes: int) -> bool:
        """Received messages have been dealt with. True when the peer should be told now: write the next frame.

        Raises:
            InvariantBroken: more than were received.
        """
        if items < 0 or self._consumed + items > self._received:
            raise InvariantBroken(f"{items} messages consumed; {self._received - self._consumed} were there")
        if size_bytes < 0 or self._consumed_bytes + size_bytes > self._received_bytes:
            raise InvariantBroken(f"{size_bytes} bytes consumed; {self._received_bytes - self._consumed_bytes} were")
        self._consumed += items
        self._consumed_bytes += size_bytes
        limits = self._limits
        news_bytes = self._consumed_bytes + limits.window_bytes - self._announced_bytes
        if (
            4 * (self._consumed + limits.window_items - self._announced_items) >= limits.window_items
            or 4 * news_bytes >= limits.window_bytes
            or news_bytes > limits.window_bytes - limits.message_bytes  # or the largest message could wait for ever
        ):
            self._want_update = True
        return self._want_update

    def _confirm(self, received: int) -> None:
        for _ in range(received - self._acknowledged):
            self._held_bytes -= len(self._unconfirmed.popleft())
        self._acknowledged = max(self._acknowledged, received)

    # ── streams ──────────────────────────────────────────────────────────────────────────────────────────────────

    def greeting(self, *, runtime: str, name: str, to: str, version: int, token: str = "") -> Hello:
        """The first thing to say on a new stream. No other stream may be opened before this one is, or is given up."""
        self._greetings += 1
        announced = self._announce()
        self._want_update = False
        return Hello(version, runtime, name, to, self.end, self.other_end, self._greetings, *announced, token)

    def judge(self, hello: Hello) -> Verdict:
        """What this greeting means.

        Raises:
            BadFrame: no process that keeps to the protocol could say this.
        """
        if self.other_end and hello.end != self.other_end:
            return Verdict.OUT_OF_DATE if _is_earlier(hello.end, self.other_end) else Verdict.OVER
        if hello.knows not in ("", self.end):
            return Verdict.FORGOTTEN
        if hello.number <= self._heard:
            return Verdict.OUT_OF_DATE
        # An end that has not heard of ours never had a stream with it, so nothing can have passed.
        highest = self._sent if hello.knows else 0
        if not self._acknowledged <= hello.received <= highest or (self._received and not hello.knows):
            raise BadFrame(
                f"its greeting says that it received {hello.received} messages; it confirmed {self._acknowledged} "
                f"of {self._sent} that were sent"
            )
        return Verdict.GOES_ON

    def open(self, hello: Hello) -> None:
        """A stream begins, by a greeting that goes on. What the peer did not receive goes out again, first."""
        self.other_end = hello.end
        self._heard = hello.number
        self.greeted = True
        self._confirm(hello.received)
        self._credit_items = max(self._credit_items, hello.limit_items)
        self._credit_bytes = max(self._credit_bytes, hello.limit_bytes)
        while self._unconfirmed:
            message = self._unconfirmed.pop()
            self._queue.appendleft(message)
            self._sent_bytes -= len(message)
        self._sent = self._acknowledged

    def broken(self) -> None:
        """The stream is gone; the link waits for another."""
        self.greeted = False


def _is_earlier(end: str, than: str) -> bool:
    """Did one process give this end to a link before the other?"""
    return end.rpartition("-")[0] == than.rpartition("-")[0] and (len(end), end) < (len(than), than)
