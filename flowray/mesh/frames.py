"""What travels on a stream: a greeting in each direction, then frames, each with all that was queued for the peer.

Everything is msgpack made by msgspec with checked types; bytes that are anything else are refused with `BadFrame`.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from flowray.errors import MeshError

VERSION = 1  # of the protocol: both sides of a stream must speak the same
REASON_CHARACTERS = 500  # of a farewell
_GREETING_BYTES = 16 << 10  # more than the longest greeting or farewell

_Count = Annotated[int, Meta(ge=0, le=1 << 62)]
_Number = Annotated[int, Meta(ge=1, le=1 << 62)]
_Name = Annotated[str, Meta(max_length=200)]
_End = Annotated[str, Meta(max_length=64)]


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
        return max(self.frame_bytes, self.message_bytes) + _GREETING_BYTES + 5 * self.window_items


class Hello(Struct, frozen=True, array_like=True, tag=0):
    """The first thing on a stream, in each direction."""

    version: int
    runtime: _Name
    name: _Name  # of the process that speaks
    to: _Name  # the process that it wants to speak to
    end: _End  # the speaker's end of the link: another one for each link and each process
    knows: _End  # the other end of that link; "" while the speaker has not heard of it
    number: _Number  # this is the speaker's so-manieth greeting on this link: a higher one is a later one
    received: _Count  # messages received on this link so far
    limit_items: _Count  # the other side may send messages up to this number,
    limit_bytes: _Count  # and up to this many bytes in all
    token: Annotated[str, Meta(max_length=4096)] = ""

    def __repr__(self) -> str:
        return f"Hello({self.name!r} to {self.to!r}, runtime {self.runtime!r}, version {self.version})"


class Frame(Struct, frozen=True, array_like=True, tag=1):
    """Messages number `first`, `first` + 1, ..., and what the sender has taken in of the other direction."""

    received: _Count
    limit_items: _Count
    limit_bytes: _Count
    first: _Number
    messages: list[bytes]


class Bye(Struct, frozen=True, array_like=True, tag=2):
    """The speaker ends this stream, and why."""

    reason: str
    unwelcome: bool = False  # its gate does not let the other side in: to dial again as before is of no use


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Hello | Frame | Bye).decode


def encode(frame: Hello | Frame | Bye) -> bytes:
    """Any of the three, as bytes."""
    return _encode(frame)


def farewell(reason: str, *, unwelcome: bool = False) -> bytes:
    """The last thing to say on a stream. A reason may quote what a peer sent, so it is cut to a bearable length."""
    return _encode(Bye(reason[:REASON_CHARACTERS], unwelcome))


def decode(data: bytes) -> Hello | Frame | Bye:
    """The frame back. Raises BadFrame for anything else."""
    try:
        frame: Hello | Frame | Bye = _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadFrame(f"not a frame: {error}") from None
    return frame
