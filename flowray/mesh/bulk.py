"""Large payloads over gRPC streams, for callers that neither share a disk nor a Ray cluster with the runtime.

    Put:  size, chunks, checksum  ->  reference, once the bytes are on disk
    Get:  reference, offset       ->  size, chunks from there on, checksum

The serving side moves bytes and decodes no value. Both sides hold a chunk of each transfer and what gRPC's windows
hold, however large the payload is. The checksum (CRC-32) is of the bytes of this transfer; that the content is right is
the store's business, which hashes it when it is written and when it is read.

A Get that breaks goes on where it was, a Put begins again: the bytes are still in the caller's memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
from msgspec import Struct

from flowray.errors import FlowrayError, MeshError, PayloadError, StoreCorrupt, StoreError
from flowray.mesh.grpc_tuned import grpc

_SERVICE = "flowray.Bulk"
_TOKEN = "authorization"
_BEARER = "Bearer "
_KEEPALIVE = [("grpc.keepalive_time_ms", 10_000), ("grpc.keepalive_timeout_ms", 5_000)]
_PINGS_FROM_MS = [("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000)]
_SLOWEST_BYTES_PER_S = 1 << 20  # a transfer that is slower than this on the whole is given up
_ATTEMPTS = 5  # in a row without a byte more
_RETRY_S = 0.1  # before the first repetition; twice as long before each further one
_REFERENCE_CHARACTERS = 200

Buffer = bytes | bytearray | memoryview
T = TypeVar("T")


class Limits(Struct, frozen=True, kw_only=True):
    """How much one side takes of the other."""

    payload_bytes: int = 1 << 30
    chunk_bytes: int = 1 << 20  # of one message; gRPC's own limit is 4 MiB
    transfers: int = 8  # at once, of all callers together; more are asked to come again
    idle_s: float = 30.0  # without a chunk; then the transfer ends


class Draft(Protocol):
    """A payload that is being written."""

    def append(self, part: Buffer) -> None:
        """Write the next bytes. Raises StoreError or OSError."""
        ...


D = TypeVar("D", bound=Draft)


class Store(Protocol[D]):
    """Where payloads are kept: what `store.PayloadStore` offers. Every method may block."""

    def draft(self, size_bytes: int) -> AbstractContextManager[D]:
        """Room for a payload, to be filled bit by bit; gone after the block unless it was adopted."""
        ...

    def adopt(self, draft: D) -> str:
        """Make it a payload; its reference."""
        ...

    def sync(self, refs: Iterable[str]) -> None:
        """Return once these are on disk."""
        ...

    def map(self, ref: str) -> memoryview:
        """The bytes of a payload, verified."""
        ...


class _Size(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    size_bytes: int


class _End(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    crc32: int


class _Wanted(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    ref: str
    offset_bytes: int


class _Refusal(Exception):
    """Ends a call with this status."""

    def __init__(self, code: Any, detail: str) -> None:
        super().__init__(code, detail)
        self.code, self.detail = code, detail


class BulkService:
    """The serving side. Made and used on one event loop; the store is used in threads."""

    def __init__(self, store: Store[Any], admit: Callable[[str, str], object], limits: Limits | None = None) -> None:
        """`admit(token, peer)` raises MeshError for callers that may not; `peer` is gRPC's address of the caller."""
        self._store, self._admit, self._limits = store, admit, limits or Limits()
        self._transfers = 0
        self._servers: list[Any] = []

    def handler(self) -> Any:
        """For a gRPC server (aio) that offers more than this service."""
        return grpc.method_handlers_generic_handler(
            _SERVICE,
            {
                "Put": grpc.stream_unary_rpc_method_handler(self._put),
                "Get": grpc.unary_stream_rpc_method_handler(self._get),
            },
        )

    async def serve(self, target: str, credentials: Any = None) -> int:
        """Listen on "unix:PATH", or with TLS credentials on "HOST:PORT". The port. Raises MeshError."""
        if credentials is None and not target.startswith("unix:"):
            raise MeshError(f"listening on {target} needs TLS credentials: payloads and tokens would be in the clear")
        server = grpc.aio.server(options=_PINGS_FROM_MS)
        server.add_generic_rpc_handlers((self.handler(),))
        try:
            secure = credentials is not None
            port = server.add_secure_port(target, credentials) if secure else server.add_insecure_port(target)
        except RuntimeError as error:
            raise MeshError(f"cannot listen on {target}: {error}") from error
        await server.start()
        if target.startswith("unix:"):
            Path(target.removeprefix("unix:")).chmod(0o600)
        self._servers.append(server)
        return int(port)

    async def stop(self, grace_s: float = 1.0) -> None:
        """Stop listening; transfers under way have `grace_s` to end."""
        servers, self._servers = self._servers, []
        await asyncio.gather(*(server.stop(grace_s) for server in servers))

    async def _put(self, _: Any, context: Any) -> bytes:
        async with self._transfer(context):
            size = _decoded(await self._next(context), _Size).size_bytes
            self._check_size(size)
            with contextlib.ExitStack() as held:  # has the draft even if the call ends while it is made
                draft = await _in_thread(lambda: held.enter_context(self._store.draft(size)))
                crc, received = 0, 0
                while received < size:
                    chunk = await self._next(context)
                    received += len(chunk)
                    if not chunk or received > size:
                        raise _Refusal(grpc.StatusCode.INVALID_ARGUMENT, f"{received} bytes of {size} announced ones")
                    crc = await _in_thread(_append, draft, chunk, crc)
                if _decoded(await self._next(context), _End).crc32 != crc:
                    raise _Refusal(grpc.StatusCode.ABORTED, "the bytes that came have another checksum")
                ref = await _in_thread(self._store.adopt, draft)
            await _in_thread(self._store.sync, [ref])
            return msgspec.msgpack.encode(ref)

    async def _get(self, request: bytes, context: Any) -> None:
        async with self._transfer(context):
            wanted = _decoded(request, _Wanted)
            if len(wanted.ref) > _REFERENCE_CHARACTERS:
                raise _Refusal(grpc.StatusCode.INVALID_ARGUMENT, "not a payload reference")
            data = await _in_thread(self._store.map, wanted.ref)
            self._check_size(len(data))
            if not 0 <= wanted.offset_bytes <= len(data):
                detail = f"offset {wanted.offset_bytes} in a payload of {len(data)} bytes"
                raise _Refusal(grpc.StatusCode.INVALID_ARGUMENT, detail)
            await self._send(context, msgspec.msgpack.encode(_Size(len(data))))
            crc = 0
            for at in range(wanted.offset_bytes, len(data), self._limits.chunk_bytes):
                chunk, crc = await _in_thread(_cut, data, at, self._limits.chunk_bytes, crc)
                await self._send(context, chunk)
            await self._send(context, msgspec.msgpack.encode(_End(crc)))

    @contextlib.asynccontextmanager
    async def _transfer(self, context: Any) -> Any:
        """Count it, and turn what goes wrong into a status."""
        code = grpc.StatusCode
        counted = False
        try:
            self._admit(_token(context.invocation_metadata()), context.peer())
            if self._transfers >= self._limits.transfers:
                raise _Refusal(code.RESOURCE_EXHAUSTED, f"{self._transfers} transfers are under way already")
            self._transfers += 1
            counted = True
            yield
        except _Refusal as refusal:
            await context.abort(refusal.code, refusal.detail)
        except StoreCorrupt as error:
            await context.abort(code.DATA_LOSS, str(error))
        except StoreError as error:
            await context.abort(code.FAILED_PRECONDITION, str(error))
        except MeshError as error:
            await context.abort(code.UNAUTHENTICATED, str(error))
        except TimeoutError:
            await context.abort(code.DEADLINE_EXCEEDED, f"nothing moved within {self._limits.idle_s:g} s")
        except OSError as error:
            await context.abort(code.FAILED_PRECONDITION, f"the payload cannot be written: {error}")
        finally:
            self._transfers -= counted

    async def _next(self, context: Any) -> bytes:
        data = await asyncio.wait_for(context.read(), self._limits.idle_s)
        if data is grpc.aio.EOF:
            raise _Refusal(grpc.StatusCode.INVALID_ARGUMENT, "the stream ended too early")
        return bytes(data)

    async def _send(self, context: Any, data: bytes) -> None:
        await asyncio.wait_for(context.write(data), self._limits.idle_s)

    def _check_size(self, size: int) -> None:
        if not 0 <= size <= self._limits.payload_bytes:
            detail = f"{size} bytes; the limit is {self._limits.payload_bytes} (limits.payload_bytes)"
            raise _Refusal(grpc.StatusCode.OUT_OF_RANGE, detail)


class BulkClient:
    """The calling side, for ordinary (sync) code in any number of threads. From a coroutine: in `asyncio.to_thread`."""

    def __init__(
        self,
        target: str,
        *,
        token: str,
        credentials: Any = None,
        server_options: Iterable[tuple[str, str]] = (),
        limits: Limits | None = None,
    ) -> None:
        """`target` is "unix:PATH", or "HOST:PORT" with TLS `credentials`; nothing is dialled before the first call.

        `server_options` name the process that the certificate must be of (`identities.target_options`).
        """
        if credentials is None and not target.startswith("unix:"):
            raise MeshError(f"{target} needs TLS credentials: payloads and the token would be in the clear")
        self._target, self._limits = target, limits or Limits()
        self._metadata = ((_TOKEN, _BEARER + token),)
        options = [*_KEEPALIVE, *server_options]
        self._channel = (
            grpc.insecure_channel(target, options=options)
            if credentials is None
            else grpc.secure_channel(target, credentials, options=options)
        )
        self._put_call = self._channel.stream_unary(f"/{_SERVICE}/Put")
        self._get_call = self._channel.unary_stream(f"/{_SERVICE}/Get")
        self._closed = threading.Event()

    def put(self, *parts: Buffer) -> str:
        """Keep these bytes, one part after the other; their reference, once they are on the other side's disk.

        Raises:
            PayloadError: more than the limit of either side.
            StoreError: the other side cannot keep them.
            MeshError: it refuses the token, or cannot be reached.
        """
        views = [memoryview(part).cast("B") for part in parts]
        size = sum(map(len, views))
        self._check_size(size)
        deadline_s = self._deadline_s(size)

        def once() -> str:
            answer = self._put_call(self._messages(views, size), timeout=deadline_s, metadata=self._metadata)
            return msgspec.msgpack.decode(answer, type=str)

        return self._persistently(once, lambda: False)

    write = put

    def sync(self, refs: Iterable[str]) -> None:
        """Nothing is left to be done: `put` has returned."""

    def get(self, ref: str) -> memoryview:
        """The bytes, in memory of the caller's own. Raises as `put` does; StoreCorrupt when they are damaged there."""
        got = _Received()

        def once() -> memoryview:
            self._receive(ref, got)
            return got.data

        return self._persistently(once, got.has_grown)

    map = get

    def close(self) -> None:
        """Transfers under way end with a MeshError."""
        self._closed.set()
        self._channel.close()

    def __enter__(self) -> BulkClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _messages(self, views: list[memoryview], size: int) -> Iterator[bytes]:
        yield msgspec.msgpack.encode(_Size(size))
        crc = 0
        for view in views:
            for at in range(0, len(view), self._limits.chunk_bytes):
                chunk, crc = _cut(view, at, self._limits.chunk_bytes, crc)
                yield chunk
        yield msgspec.msgpack.encode(_End(crc))

    def _receive(self, ref: str, got: _Received) -> None:
        request = msgspec.msgpack.encode(_Wanted(ref, got.size_bytes))
        deadline_s = self._deadline_s(self._limits.payload_bytes)
        call = self._get_call(request, timeout=deadline_s, metadata=self._metadata)
        crc = 0
        try:
            size = _decoded(next(call), _Size).size_bytes
            self._check_size(size)
            got.expect(size)
            while got.size_bytes < size:
                chunk = next(call)
                crc = zlib.crc32(chunk, crc)
                got.append(chunk)
            if _decoded(next(call), _End).crc32 != crc:
                raise MeshError(f"payload {ref} came with another checksum from {self._target}")
        except StopIteration:
            raise MeshError(f"{self._target} ended payload {ref} after {got.size_bytes} bytes") from None
        except _Refusal as refusal:
            raise MeshError(f"{self._target} does not speak this protocol: {refusal.detail}") from None
        finally:
            call.cancel()

    def _persistently(self, once: Callable[[], T], has_grown: Callable[[], bool]) -> T:
        failures = 0
        while True:
            try:
                return once()
            except (grpc.RpcError, ValueError) as error:  # ValueError: the channel is closed
                if self._closed.is_set():
                    raise MeshError("this client is closed") from error
                if not isinstance(error, grpc.RpcError):
                    raise
                failures = 1 if has_grown() else failures + 1
                again = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
                if not again or failures >= _ATTEMPTS:
                    raise self._meaning(error) from error
            time.sleep(_RETRY_S * 2 ** (failures - 1))

    def _meaning(self, error: Any) -> FlowrayError:
        code, detail = error.code(), error.details() or ""
        match code:
            case grpc.StatusCode.DATA_LOSS:
                return StoreCorrupt(detail)
            case grpc.StatusCode.FAILED_PRECONDITION:
                return StoreError(detail)
            case grpc.StatusCode.OUT_OF_RANGE:
                return PayloadError("payload", detail)
            case grpc.StatusCode.UNAVAILABLE:
                return MeshError(f"{self._target} cannot be reached: {detail}")
        return MeshError(f"{self._target}: {detail} ({code.name.lower()})")

    def _check_size(self, size: int) -> None:
        if size > self._limits.payload_bytes:
            raise PayloadError(
                "payload", f"{size} bytes; the limit is {self._limits.payload_bytes} (limits.payload_bytes)"
            )

    def _deadline_s(self, size: int) -> float:
        return self._limits.idle_s + size / _SLOWEST_BYTES_PER_S


class _Received:
    """The bytes of one payload, as far as they have come."""

    def __init__(self) -> None:
        self.data = memoryview(b"")
        self.size_bytes = 0
        self._is_known = False
        self._seen_bytes = 0

    def expect(self, size: int) -> None:
        """The payload has this size. Raises MeshError when it had another before."""
        if self._is_known and size != len(self.data):
            raise MeshError(f"a payload of {len(self.data)} bytes has {size} now")
        if not self._is_known:
            self._is_known = True
            self.data = memoryview(mmap.mmap(-1, size) if size else bytearray())

    def append(self, chunk: bytes) -> None:
        """Raises MeshError when it is more than there is room for, or nothing."""
        end = self.size_bytes + len(chunk)
        if not chunk or end > len(self.data):
            raise MeshError(f"{end} bytes of a payload of {len(self.data)}")
        self.data[self.size_bytes : end] = chunk
        self.size_bytes = end

    def has_grown(self) -> bool:
        """Since this was last asked?"""
        grown, self._seen_bytes = self.size_bytes > self._seen_bytes, self.size_bytes
        return grown


S = TypeVar("S", bound=Struct)


def _decoded(data: bytes, kind: type[S]) -> S:
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except msgspec.MsgspecError as error:
        raise _Refusal(grpc.StatusCode.INVALID_ARGUMENT, f"malformed: {error}") from None


def _token(metadata: Any) -> str:
    """From "authorization: Bearer ..."; "" when there is none."""
    for name, value in metadata or ():
        if name == _TOKEN and isinstance(value, str) and value.startswith(_BEARER):
            return value.removeprefix(_BEARER)
    return ""


async def _in_thread(call: Callable[..., T], *arguments: Any) -> T:
    """Call in a thread, and be over no sooner than it: what it uses (a draft's file) is closed after this."""
    work = asyncio.ensure_future(asyncio.to_thread(call, *arguments))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.gather(work, return_exceptions=True)
        raise


def _append(draft: Draft, chunk: bytes, crc: int) -> int:
    draft.append(chunk)
    return zlib.crc32(chunk, crc)


def _cut(data: memoryview, at: int, chunk_bytes: int, crc: int) -> tuple[bytes, int]:
    chunk = bytes(data[at : at + chunk_bytes])
    return chunk, zlib.crc32(chunk, crc)
