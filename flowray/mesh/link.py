"""One link between two processes, as a protocol without IO: numbered messages, credit, and resumption.

Messages are numbered in each direction. A sender keeps what it sent until the other side says that it has it, so a
link outlives its streams: a new one begins with a greeting in which each side says what it received, and what was
lost with the old stream is sent again. What arrives twice is dropped by its number. A receiver grants credit, in
messages and in bytes counted from the beginning of the link; it moves on as messages are consumed, so that nothing
piles up on either side (the scheme of sliding windows: RFC 9293, 3.8; absolute limits as in QUIC, RFC 9000, 4.1).

All sizes are bounded by `Limits`: a side holds at most a window of messages that the other has not confirmed, a
window of those that wait for credit, and a window of those received and not consumed.
"""

from __future__ import annotations

from collections import deque

from flowray.mesh.frames import BadFrame, Frame, Hello, Limits


class Link:
    """Everything one process knows about its conversation with one instance of another."""

    __slots__ = (
        "_acknowledged",
        "_announced_bytes",
        "_announced_items",
        "_announced_received",
        "_consumed",
        "_consumed_bytes",
        "_credit_bytes",
        "_credit_items",
        "_held_bytes",
        "_limits",
        "_queue",
        "_received",
        "_received_bytes",
        "_sent",
        "_sent_bytes",
        "_unconfirmed",
        "_want_update",
        "greeted",
        "instance",
    )

    def __init__(self, limits: Limits, instance: str = "") -> None:
        self._limits = limits
        self.instance = instance  # of the peer; "" until it has greeted
        self.greeted = False  # is a stream open on which both sides have greeted?
        # Outgoing. Messages are numbered from 1; number `_sent` was the last to leave.
        self._queue: deque[bytes] = deque()  # not sent on this stream yet
        self._unconfirmed: deque[bytes] = deque()  # sent, numbers _acknowledged+1 .. _sent
        self._held_bytes = 0  # of both
        self._sent = 0
        self._sent_bytes = 0
        self._acknowledged = 0
        self._credit_items = 0  # what the peer lets us send, counted from the beginning
        self._credit_bytes = 0
        # Incoming.
        self._received = 0
        self._received_bytes = 0
        self._consumed = 0
        self._consumed_bytes = 0
        self._announced_received = 0  # what we told the peer last
        self._announced_items = 0
        self._announced_bytes = 0
        self._want_update = False

    # ── outgoing ─────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def held(self) -> int:
        """Messages that wait here: to be sent, or to be confirmed."""
        return len(self._queue) + len(self._unconfirmed)

    @property
    def held_bytes(self) -> int:
        """Bytes of those."""
        return self._held_bytes

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
            room = min(self._limits.frame_bytes, self._credit_bytes - self._sent_bytes)
            unconfirmed = self._unconfirmed
            size = 0
            while items > 0:
                message = queue[0]
                size += len(message)
                if size > room and (messages or size > self._credit_bytes - self._sent_bytes):
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

    def _announce(self) -> tuple[int, int, int]:
        self._announced_received = self._received
        self._announced_items = self._consumed + self._limits.window_items
        self._announced_bytes = self._consumed_bytes + self._limits.window_bytes
        return self._announced_received, self._announced_items, self._announced_bytes

    # ── incoming ─────────────────────────────────────────────────────────────────────────────────────────────────

    def receive(self, frame: Frame) -> list[bytes]:
        """Take a frame in: its messages that are new, in order.

        Raises:
            BadFrame: it confirms what was never sent, has a gap, or exceeds the credit given.
        """
        if not self.greeted:
            raise BadFrame("a frame before the greeting")
        self._confirm(frame.received)
        # Credit only grows: an older frame that comes again must not take any back.
        self._credit_items = max(self._credit_items, frame.limit_items)
        self._credit_bytes = max(self._credit_bytes, frame.limit_bytes)
        messages = frame.messages
        if not messages:
            return messages
        known = self._received + 1 - frame.first
        if known < 0:
            raise BadFrame(f"message {frame.first} came after message {self._received}: some are missing")
        if known:
            messages = messages[known:]
            if not messages:
                return messages
        size = sum(map(len, messages))
        self._received += len(messages)
        self._received_bytes += size
        if self._received > self._announced_items or self._received_bytes > self._announced_bytes:
            raise BadFrame("more messages than it was given credit for")
        # The sender holds a copy of each until it hears of it, so it must hear in time.
        if (self._received - self._announced_received) * 4 >= self._limits.window_items:
            self._want_update = True
        return messages

    def consumed(self, items: int, size_bytes: int) -> bool:
        """Received messages have been dealt with. True when the peer should be told now: write the next frame."""
        self._consumed += items
        self._consumed_bytes += size_bytes
        limits = self._limits
        if (
            4 * (self._consumed + limits.window_items - self._announced_items) >= limits.window_items
            or 4 * (self._consumed_bytes + limits.window_bytes - self._announced_bytes) >= limits.window_bytes
        ):
            self._want_update = True
        return self._want_update

    def _confirm(self, received: int) -> None:
        if received > self._sent:
            raise BadFrame(f"it confirms message {received}; {self._sent} were sent")
        for _ in range(received - self._acknowledged):
            self._held_bytes -= len(self._unconfirmed.popleft())
        self._acknowledged = max(self._acknowledged, received)

    # ── streams ──────────────────────────────────────────────────────────────────────────────────────────────────

    def greeting(self, *, runtime: str, name: str, instance: str, to: str, version: int, token: str = "") -> Hello:
        """The first thing to say on a new stream."""
        received, items, size = self._announce()
        return Hello(version, runtime, name, instance, to, self.instance, received, items, size, token)

    def resumes(self, hello: Hello, own_instance: str) -> bool:
        """Does this greeting go on with this link? If not, the link is over and a new one is needed."""
        if self.instance and self.instance != hello.instance:
            return False  # another process under the same name
        if hello.knows != own_instance:
            # The peer has nothing of us: fine as long as it never had to.
            return hello.received == 0 and self._acknowledged == 0 and self._received == 0
        return self._acknowledged <= hello.received <= self._sent

    def open(self, hello: Hello) -> None:
        """Both sides have greeted on a new stream. What the peer did not receive goes out again, first."""
        self.instance = hello.instance
        self.greeted = True
        self._confirm(hello.received)
        self._credit_items, self._credit_bytes = hello.limit_items, hello.limit_bytes
        while self._unconfirmed:
            message = self._unconfirmed.pop()
            self._queue.appendleft(message)
            self._sent_bytes -= len(message)
        self._sent = self._acknowledged

    def broken(self) -> None:
        """The stream is gone; the link waits for another."""
        self.greeted = False
