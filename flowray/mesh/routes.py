"""The ways out of a process: what waits to leave for another one, and how much an agent lets it send."""

from __future__ import annotations

from collections import deque

from flowray.mesh.envelopes import OVERHEAD_BYTES, Answer, Ask, Confirm, Envelope, Probe, Tell, encode_parcel

_PARCEL_BYTES = 64 << 10  # a parcel is closed when it has so many
_PARCEL_ENVELOPES = 1_024


class Outbox:
    """What waits to leave for one process."""

    __slots__ = ("envelopes", "listed", "peer", "size_bytes")

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.envelopes: deque[Envelope] = deque()
        self.size_bytes = 0
        self.listed = False  # is it in `flushable`?

    def take_parcel(self) -> bytes | None:
        """The next parcel; None when nothing waits."""
        waiting = self.envelopes
        if not waiting:
            self.listed = False
            return None
        if self.size_bytes <= _PARCEL_BYTES and len(waiting) <= _PARCEL_ENVELOPES:
            parcel = encode_parcel(list(waiting))
            waiting.clear()
            self.size_bytes = 0
            return parcel
        some: list[Envelope] = []
        size = 0
        while waiting and size < _PARCEL_BYTES and len(some) < _PARCEL_ENVELOPES:
            envelope = waiting.popleft()
            size += counted_bytes(envelope)
            some.append(envelope)
        self.size_bytes -= size
        return encode_parcel(some)


class Outboxes:
    """What waits to leave this process. `flushable`: for which processes a parcel can be taken."""

    __slots__ = ("_of", "flushable")

    def __init__(self) -> None:
        self._of: dict[str, Outbox] = {}
        self.flushable: deque[Outbox] = deque()

    def of(self, peer: str) -> Outbox:
        """That of one process."""
        found = self._of.get(peer)
        if found is None:
            found = self._of[peer] = Outbox(peer)
        return found

    def post(self, peer: str, envelope: Envelope) -> None:
        """Something is to be said to a process."""
        outbox = self._of.get(peer) or self.of(peer)
        outbox.envelopes.append(envelope)
        outbox.size_bytes += counted_bytes(envelope)
        if not outbox.listed:
            outbox.listed = True
            self.flushable.append(outbox)

    def drop(self, peer: str) -> None:
        """A process is gone: nothing leaves for it."""
        outbox = self._of.pop(peer, None)
        if outbox is not None:
            outbox.envelopes.clear()
            outbox.size_bytes = 0


class Route:
    """The way to one agent, and how much may be sent along it."""

    __slots__ = ("closed", "limit_bytes", "outbox", "peer", "receiver", "sent_bytes", "waiting")

    def __init__(self, receiver: str, outbox: Outbox, first_window_bytes: int) -> None:
        self.receiver = receiver
        self.peer = outbox.peer
        self.outbox = outbox
        self.sent_bytes = 0
        self.limit_bytes = first_window_bytes
        self.waiting: dict[Waiter, None] = {}  # for room, first come first served
        # "" while it can be used, "unlisted" when the directory has dropped the agent (the lane may still be there, so
        # its window goes on if it comes back), "absent" when its process says that it is not there.
        self.closed = ""


class Waiter:
    """A one-way message that waits for room. `token` is its caller's own and comes back in `settled`."""

    __slots__ = ("message", "route", "token")

    def __init__(self, route: Route, message: Tell, token: object) -> None:
        self.route = route
        self.message = message
        self.token = token


_WITH_BODY = (Tell, Ask, Answer)


def counted_bytes(envelope: Envelope) -> int:
    """What an envelope counts for while it waits."""
    if isinstance(envelope, _WITH_BODY):
        return OVERHEAD_BYTES + len(envelope.body)
    if isinstance(envelope, Probe):
        return OVERHEAD_BYTES * len(envelope.path)
    if isinstance(envelope, Confirm):
        return OVERHEAD_BYTES * len(envelope.cycle)
    return OVERHEAD_BYTES
