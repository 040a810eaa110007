"""Chunks: what a task gives out while it runs, as its reader sees them, and as bytes on their way.

    for item in handle.stream():
        if isinstance(item, fr.Restarted):
            del parts[item.seq:]            # these are void: another attempt gave others
        else:
            parts.append(item.value)        # item.seq is 0, 1, 2, ... without a gap

A batch of chunks travels and lies on disk as one body that only its two ends look into: a msgpack list with the bytes
of each chunk, as payloads are encoded (`flowray.values`), and the codec beside them where it is not msgpack.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from flowray.core.streaming import DIGEST_BYTES

_Piece = bytes | tuple[str, bytes]
_PLAIN = "msgpack"
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[_Piece])


class Chunk(NamedTuple):
    """One chunk. Whoever goes on reading elsewhere begins with `stream(start=seq + 1, restarts=restarts)`."""

    seq: int  # 0 for the task's first one
    value: Any
    restarts: int = 0  # that there had been before it


class Restarted(NamedTuple):
    """Chunks that were shown do not stand any more: those from `seq` on. The next chunk has the number `seq`.

    An attempt was lost, and the one after it gave something else from there on. What came before is the same.
    """

    seq: int
    restarts: int  # that there have been by now


def chunk_digest(codec: str, data: bytes) -> bytes:
    """Tells one chunk from another."""
    return hashlib.blake2b(codec.encode() + b"\0" + data, digest_size=DIGEST_BYTES, person=b"flowray.chunk").digest()


def encode_chunks(chunks: Iterable[tuple[str, bytes]]) -> bytes:
    """The body of a batch, of codecs and bytes."""
    return _encoder.encode([data if codec == _PLAIN else (codec, data) for codec, data in chunks])


def decode_chunks(body: bytes) -> list[tuple[str, bytes]]:
    """The inverse. Raises msgspec.DecodeError for other bytes."""
    return [(_PLAIN, piece) if isinstance(piece, bytes) else piece for piece in _decoder.decode(body)]
