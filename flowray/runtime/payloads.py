"""Payloads: small values inline, and where the large ones are kept.

How a value becomes bytes is `flowray.values`' business; pickles travel only between processes of one cluster, whose
members trust each other. What is larger than `limits.inline_bytes` becomes a content-addressed file beside the
journal before anyone refers to it, so that a reference in the journal outlives every process. There are three ways to
these files, none of which leads through the coordinator:

    on the journal's node               the files themselves (`store.PayloadStore`)
    on other nodes of the cluster       Ray's object store and a keeper beside the files (`payload_keeper`)
    outside, without Ray                streams to a process beside the files (`mesh.bulk`)

Where the journal is in PostgreSQL so are they, and the second way is that of all nodes; from outside there is none.

Neither Ray nor anything of it is imported before it is needed.
"""

from __future__ import annotations

import asyncio
import functools
import io
import sys
import threading
from collections.abc import Iterable
from typing import Any, Protocol

from flowray.core.model import Payload
from flowray.errors import PayloadError, StoreError
from flowray.values import (
    Buffer,
    BufferCallback,
    Encoded,
    decode_value,
    encode_parts,
    require_plain,
    tensor_reduction,
)

IN_DATABASE = "database:"  # in place of the files' directory


class Shelf(Protocol):
    """A way to the files. Every method may block, and raises StoreError; any thread may call it."""

    def put(self, *parts: Buffer) -> str:
        """Keep these bytes; their reference, once they are on disk."""
        ...

    def write(self, *parts: Buffer) -> str:
        """Keep these bytes; their reference, once whoever is on the journal's node can read them."""
        ...

    def sync(self, refs: Iterable[str]) -> None:
        """Return once what these name is on disk."""
        ...

    def get(self, ref: str) -> Any:
        """The bytes, as bytes or a buffer."""
        ...

    def map(self, ref: str) -> Any:
        """The bytes, in a buffer that need not have been copied."""
        ...


class NoShelf:
    """For a process that has no way to them."""

    def put(self, *parts: Buffer) -> str:
        """Raises StoreError."""
        raise StoreError(
            "a runtime whose journal is in PostgreSQL takes no large payloads from outside the cluster: send at most "
            "limits.inline_bytes, or where it can be read"
        )

    write = put

    def sync(self, refs: Iterable[str]) -> None:
        """There are none."""

    def get(self, ref: str) -> Any:
        """Raises StoreError."""
        raise StoreError(
            f"{ref}: a runtime whose journal is in PostgreSQL gives no large results to clients outside the cluster"
        )

    map = get


class PayloadDesk:
    """Makes payloads in a driver or an agent, and reads them. Any thread may use it."""

    def __init__(
        self,
        *,
        runtime: str,
        node_id: str,
        directory: str,
        inline_bytes: int,
        payload_bytes: int,
        shelf: Shelf | None = None,
        plain_only: bool = False,
    ) -> None:
        """`shelf` None: found by Ray's `node_id` and the `directory` there, when the first large payload comes.

        `plain_only` is for processes outside the cluster: values are refused that only a pickle can hold.
        """
        self._where = (runtime, node_id, directory)
        self._inline_bytes, self._payload_bytes = inline_bytes, payload_bytes
        self._plain_only = plain_only
        self._found = shelf
        self._lock = threading.Lock()

    def pack(self, value: Any, field: str, *, durable: bool = True, inline_bytes: int | None = None) -> Payload | None:
        """Encode a value. None stays None. `inline_bytes` is a lower bound than usual for what is kept inline.

        With `durable=False` a large one is readable but maybe not on disk yet: whoever records its reference first
        calls `PayloadStore.sync` on the journal's node, or `sync` here.

        Raises:
            PayloadError: it cannot be pickled, is larger than `limits.payload_bytes`, or is not plain and has to be.
            StoreError: the disk is full, or does not take it.
        """
        encoded = self._encoded(value, field)
        if encoded is None or encoded.size_bytes <= self._inlined(inline_bytes):
            return _inline(encoded)
        return self._kept(encoded, durable)

    def pack_inline(self, value: Any, field: str, most_bytes: int) -> Payload:
        """Encode a value that has to be small, None as well.

        Raises:
            PayloadError: it cannot be pickled, or is larger than that.
        """
        encoded = encode_parts(value, field, None if self._plain_only else _pickled)
        if encoded.size_bytes > most_bytes:
            raise PayloadError(field, f"{encoded.size_bytes} bytes; {most_bytes} is the most. Make several of it")
        return Payload(codec=encoded.codec, data=b"".join(encoded.parts), size_bytes=encoded.size_bytes)

    async def pack_beside(
        self, value: Any, field: str, *, durable: bool = True, inline_bytes: int | None = None
    ) -> Payload | None:
        """The same for code on an event loop, which goes on while a large payload is written."""
        encoded = self._encoded(value, field)
        if encoded is None or encoded.size_bytes <= self._inlined(inline_bytes):
            return _inline(encoded)
        return await asyncio.to_thread(self._kept, encoded, durable)

    async def unpack_beside(self, payload: Payload | None) -> Any:
        """`unpack` for code on an event loop, which goes on while a large payload is fetched and checked."""
        if payload is None or payload.ref is None:
            return self.unpack(payload)
        return await asyncio.to_thread(self.unpack, payload)

    def _inlined(self, most: int | None) -> int:
        return self._inline_bytes if most is None else min(most, self._inline_bytes)

    def _encoded(self, value: Any, field: str) -> Encoded | None:
        if value is None:
            return None
        encoded = encode_parts(value, field, None if self._plain_only else _pickled)
        if encoded.size_bytes > self._payload_bytes:
            raise PayloadError(
                field,
                f"{encoded.size_bytes} bytes; the limit is {self._payload_bytes} (limits.payload_bytes). Put it where "
                "every agent can read it, and send its path",
            )
        return encoded

    def _kept(self, encoded: Encoded, durable: bool) -> Payload:
        shelf = self._shelf()
        ref = shelf.put(*encoded.parts) if durable else shelf.write(*encoded.parts)
        return Payload(codec=encoded.codec, ref=ref, size_bytes=encoded.size_bytes)

    def sync(self, payloads: Iterable[Payload | None]) -> None:
        """Return once all these are on disk; many at once cost little more than one. Raises StoreError."""
        refs = [payload.ref for payload in payloads if payload is not None and payload.ref is not None]
        if refs:
            self._shelf().sync(refs)

    def unpack(self, payload: Payload | None) -> Any:
        """The value back. Arrays of large ones point into the file's pages, and may be changed: that copies the page.

        Raises:
            StoreError: a referenced payload is gone or damaged.
            PayloadError: it is a pickle, and this process takes none.
        """
        if payload is None:
            return None
        if self._plain_only:
            require_plain(payload.codec, "result")
        data: Any = payload.data
        if data is None:
            if payload.ref is None:
                raise PayloadError("payload", "has neither bytes nor a reference")
            shelf = self._shelf()
            data = shelf.get(payload.ref) if payload.codec == "bytes" else shelf.map(payload.ref)
        return decode_value(payload.codec, data)

    def _shelf(self) -> Shelf:
        with self._lock:
            if self._found is None:
                from flowray.runtime.payload_keeper import shelf_of  # loads Ray

                self._found = shelf_of(*self._where)
            return self._found


def _inline(encoded: Encoded | None) -> Payload | None:
    if encoded is None:
        return None
    return Payload(codec=encoded.codec, data=b"".join(encoded.parts), size_bytes=encoded.size_bytes)


def _pickled(value: Any, apart: BufferCallback | None) -> bytes:
    """By value for what cannot be imported elsewhere: classes and functions of notebooks and scripts."""
    if "torch" in sys.modules:
        file = io.BytesIO()
        _tensor_pickler()(file, protocol=5, buffer_callback=apart).dump(value)
        return file.getvalue()
    from ray import cloudpickle

    data: bytes = cloudpickle.dumps(value, protocol=5, buffer_callback=apart)
    return data


@functools.cache
def _tensor_pickler() -> Any:
    from ray import cloudpickle

    class TensorPickler(cloudpickle.Pickler):
        def reducer_override(self, value: Any) -> Any:
            reduced = tensor_reduction(value)
            return super().reducer_override(value) if reduced is NotImplemented else reduced

    return TensorPickler
