"""What agents' conversations put on the wire: envelopes, several to a parcel.

A parcel is one message of the mesh: a msgpack array of envelopes, all from one process to another. Making structs and
encoding a parcel of them in one call costs a third of encoding each by itself, and the same holds for decoding.
Bodies are bytes inside their envelope: they are encoded in the sender's call, so that the sender may change its
objects afterwards, and decoded when their turn comes, so that what waits in a lane is as large as it was counted.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from flowray.mesh.frames import BadFrame

BYTES, MSGPACK, PICKLE = 0, 1, 2  # codecs of a body: bytes as they are; plain data; anything, within one cluster
OVERHEAD_BYTES = 256  # counted for each envelope besides its body: what the objects of an empty one take in memory

_Number = Annotated[int, Meta(ge=0)]
_Codec = Annotated[int, Meta(ge=BYTES, le=PICKLE)]


class Tell(Struct, frozen=True, array_like=True, tag=0, gc=False):
    """A one-way message."""

    receiver: str  # agent ids
    sender: str
    codec: _Codec
    body: bytes
    topic: str = ""  # "" unless it was published
    message_id: str = ""  # of the publisher's choosing: the same message published again carries the same one


class Ask(Struct, frozen=True, array_like=True, tag=1, gc=False):
    """A message that wants an answer. Its number is the asking process's own, and never used twice."""

    number: _Number
    receiver: str
    sender: str
    codec: _Codec
    body: bytes
    budget_s: Annotated[float, Meta(ge=0)]  # left when it was sent
    blocks: bool  # does a lane stand still until it is answered? False for asks of `run` and of drivers


class Answer(Struct, frozen=True, array_like=True, tag=2, gc=False):
    """The answer to an ask of the process that it is sent to."""

    number: _Number
    codec: _Codec
    body: bytes


class Refusal(Struct, frozen=True, array_like=True, tag=3, gc=False):
    """Why there will be no answer."""

    number: _Number
    reason: str  # failed | timeout | unreachable | no_room
    error_type: str = ""  # class name of the exception, when it failed
    detail: str = ""


class Withdrawal(Struct, frozen=True, array_like=True, tag=4, gc=False):
    """Nobody waits for this ask any more: it need not be handled."""

    number: _Number
    receiver: str


class Room(Struct, frozen=True, array_like=True, tag=5, gc=False):
    """The receiver's process may have sent this agent so many bytes, counted from the beginning."""

    agent: str
    limit_bytes: _Number


class Gone(Struct, frozen=True, array_like=True, tag=6, gc=False):
    """This agent is not in the process that says so."""

    agent: str


class Edge(Struct, frozen=True, array_like=True):
    """One ask as an arrow: the asker's lane stands still until the receiver answers."""

    asker: str
    process: str  # of the asker
    number: _Number
    receiver: str
    host: str  # process of the receiver


class Probe(Struct, frozen=True, array_like=True, tag=7):
    """Looks for a circle: a path of asks, each made while the one before waits for its maker (see deadlocks)."""

    path: Annotated[tuple[Edge, ...], Meta(min_length=1)]
    round: _Number  # tells apart the searches that began with the same ask


class Confirm(Struct, frozen=True, array_like=True, tag=8):
    """A circle was seen: is each of its asks still there? Goes once round; the last one asked gives up the first."""

    cycle: Annotated[tuple[Edge, ...], Meta(min_length=1)]
    at: _Number  # which arrow's receiver is asked now
    began: _Number  # which arrow the search began with


class Again(Struct, frozen=True, array_like=True, tag=9):
    """The circle that was seen is dealt with: search for further ones through this ask."""

    edge: Edge


Envelope = Tell | Ask | Answer | Refusal | Withdrawal | Room | Gone | Probe | Confirm | Again

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Envelope]).decode


def encode_parcel(envelopes: list[Envelope]) -> bytes:
    """Several envelopes as one message of the mesh."""
    return _encode(envelopes)


def decode_parcel(parcel: bytes) -> list[Envelope]:
    """The envelopes of a parcel.

    Raises:
        BadFrame: it is none.
    """
    try:
        return _decode(parcel)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadFrame(f"not a parcel of envelopes: {error}") from None


def check_outsider(peer: str, envelopes: list[Envelope]) -> None:
    """What a process outside the cluster may send: plain data, in its own name.

    Raises:
        BadFrame: it sent something else.
    """
    for envelope in envelopes:
        match envelope:
            case Tell() | Ask() if envelope.sender != peer:
                raise BadFrame(f"{peer} speaks in the name of {envelope.sender!r}")
            case Tell() | Ask() | Answer() if envelope.codec == PICKLE:
                raise BadFrame(
                    f"{peer} is outside the cluster and sent a pickle; only plain data is accepted from there"
                )
            case Probe() | Confirm() | Again():
                raise BadFrame(f"{peer} is outside the cluster and has no part in its agents' deadlocks")
