"""What travels on a stream: a greeting in each direction, then frames, each with all that was queued for the peer.

Everything is msgpack made by msgspec with checked types; bytes that are anything else are refused with `BadFrame`.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from flowray.errors import MeshError

VERSION = 1  # of the protocol: both sides of a stream must speak the same


class BadFrame(MeshError):
    """A peer sent something that this protocol does not allow. The stream is ended."""


class Limits(Struct, frozen=True):
    """Bounds of one link, in each direction. Every buffer of a link stays within them."""

    window_items: int = 16_384  # messages that may be on their way or not consumed yet
    window_bytes: int = 16 << 20
    frame_bytes: int = 256 << 10  # a frame is closed when the next message would make it larger
    message_bytes: int = 8 << 20  # of one message; a larger one than `frame_bytes` travels in a frame of its own

    def __post_init__(self) -> None:
        if self.window_bytes < self.message_bytes:
            raise ValueError("window_bytes: must be at least message_bytes, or a large message could never be sent")
        if self.window_items < 1 or self.frame_bytes < 1 or self.message_bytes < 1:
            raise ValueError("limits: every bound must be at least 1")

    @property
    def wire_bytes(self) -> int:
        """The largest frame as it travels, with its headers."""
        return max(self.frame_bytes, self.message_bytes) + 64 + 5 * self.window_items


class Hello(Struct, frozen=True, array_like=True, tag=0):
    """The first thing on a stream, in each direction."""

    version: int
    runtime: str
    name: str  # of the process that speaks
    instance: str  # changes when a process of this name is a new one
    to: str  # the process that it wants to speak to
    knows: str  # the instance of the other side that it has something of already; "" none
    received: int  # messages received from that instance so far
    limit_items: int  # the other side may send messages up to this number,
    limit_bytes: int  # and up to this many bytes in all
    token: str = ""

    def __repr__(self) -> str:
        return f"Hello({self.name!r} to {self.to!r}, runtime {self.runtime!r}, version {self.version})"


class Frame(Struct, frozen=True, array_like=True, tag=1):
    """Messages number `first`, `first` + 1, ..., and what the sender has taken in of the other direction."""

    received: int
    limit_items: int
    limit_bytes: int
    first: int
    messages: list[bytes]


class Bye(Struct, frozen=True, array_like=True, tag=2):
    """The speaker ends this stream, and why."""

    reason: str


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Hello | Frame | Bye)


def encode(frame: Hello | Frame | Bye) -> bytes:
    """Any of the three, as bytes."""
    return _encode(frame)


def decode(data: bytes) -> Hello | Frame | Bye:
    """The frame back. Raises BadFrame for anything else."""
    try:
        frame: Hello | Frame | Bye = _decoder.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadFrame(f"not a frame: {error}") from None
    if isinstance(frame, Frame) and (frame.first < 1 or min(frame.received, frame.limit_items, frame.limit_bytes) < 0):
        raise BadFrame("a frame with negative numbers")
    return frame
