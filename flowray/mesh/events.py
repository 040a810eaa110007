"""What an endpoint tells its owner about its peers, and where a process can be reached."""

from __future__ import annotations

from msgspec import Struct


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
