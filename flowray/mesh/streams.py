"""gRPC streams, from either end, and the conversation that one of them carries while it lasts.

While one frame is being written the next fills: an idle link sends each message at once, a busy one shares a write
among all that came meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol

from flowray.mesh import frames
from flowray.mesh.frames import BadFrame, Bye, Frame, Limits
from flowray.mesh.grpc_tuned import grpc
from flowray.mesh.peer import Handler, Peer

SERVICE, METHOD = "flowray.Mesh", "Stream"
_PARTING_S = 1.0  # for the last words of a stream to get across

# What a read or write raises when the stream is not there any more.
StreamLost = (grpc.aio.AioRpcError, asyncio.InvalidStateError)


class Stream(Protocol):
    """One gRPC stream, from either of its ends."""

    async def read(self) -> Any: ...

    async def write(self, data: bytes) -> None: ...

    async def done_writing(self) -> None:
        """The other side may end the stream now, having read all."""

    def cancel(self) -> None:
        """End it, whatever is on its way."""


class DialledStream:
    """A stream that this side opens, with the channel that is its own."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._call = channel.stream_stream(f"/{SERVICE}/{METHOD}")()
        self.read = self._call.read
        self.write = self._call.write
        self.done_writing = self._call.done_writing
        self.cancel = self._call.cancel

    @property
    def reaches(self) -> bool:
        """Is there a connection that it goes over?"""
        return bool(self._channel.get_state() is grpc.ChannelConnectivity.READY)


class AcceptedStream:
    """A stream that the other side opened. gRPC ends it when its handler returns, which is what `carry` is for."""

    def __init__(self, context: Any) -> None:
        self.read = context.read
        self.write = context.write
        self._carrying: asyncio.Task[None] | None = None
        self._cancelled = False

    async def done_writing(self) -> None:
        """Nothing to do: all that was written goes out before the stream ends."""

    def cancel(self) -> None:
        self._cancelled = True
        if self._carrying is not None and self._carrying is not asyncio.current_task():
            self._carrying.cancel()

    async def carry(self, conversation: Coroutine[Any, Any, None]) -> None:
        """Until the conversation is over or the stream is cancelled.

        A handler that is cancelled itself would leave the stream open: gRPC tells the other side nothing of it.
        """
        self._carrying = asyncio.current_task()
        try:
            await conversation
        except asyncio.CancelledError:
            if not self._cancelled:
                raise
        finally:
            self._carrying = None


class Conversation:
    """A link on one stream, from the greetings to the end of either."""

    __slots__ = (
        "_farewell",
        "_handler",
        "_link",
        "_opening",
        "_peer",
        "_stream",
        "_thorough",
        "read_frames",
        "silent_s",
    )

    def __init__(self, peer: Peer, stream: Stream, handler: Handler, opening: bytes = b"") -> None:
        """The link is open already. `opening` goes out before anything else."""
        self._peer = peer
        self._link = peer.link
        self._stream = stream
        self._handler = handler
        self._opening = opening
        self._farewell: bytes | None = None
        self.read_frames = 0  # since the sweep of `Peers` looked last
        self.silent_s = 0.0  # for how long it has found none
        self._thorough = False  # does all that is queued go out before the farewell?

    async def carry(self) -> str:
        """Read and write until the stream ends; why it did. The handler's own errors come out."""
        writing = asyncio.get_running_loop().create_task(self._write())
        try:
            try:
                return await self._read(writing)
            except BadFrame as error:
                self._say(frames.farewell(str(error)), thorough=False)
                await self._part(writing)
                return str(error)
        except StreamLost as error:
            return brief(error)
        finally:
            writing.cancel()
            self._stream.cancel()

    def leave(self, reason: str) -> None:
        """Say what is queued and then farewell; the other side confirms what it has and ends the stream."""
        self._say(frames.farewell(reason), thorough=True)

    def end(self) -> None:
        """Break the stream off."""
        self._peer.wake.set()  # the writer leaves
        self._stream.cancel()

    def _say(self, farewell: bytes, *, thorough: bool) -> None:
        self._farewell, self._thorough = farewell, thorough
        self._peer.wake.set()

    async def _read(self, writing: asyncio.Task[None]) -> str:
        peer, link, handler = self._peer, self._link, self._handler
        read, decode = self._stream.read, frames.decode
        eof = grpc.aio.EOF
        while True:
            data = await read()
            if data is eof:
                return "the peer ended the stream"
            if peer.conversation is not self:
                return "another stream has taken over"
            self.read_frames += 1
            frame = decode(data)
            if type(frame) is not Frame:
                if isinstance(frame, Bye):
                    link.tell()
                    self._say(frames.farewell("as you wish"), thorough=False)
                    await self._part(writing)
                    return frame.reason[: frames.REASON_CHARACTERS]
                raise BadFrame("a second greeting")
            messages = link.receive(frame)
            if link.wants_to_write():
                peer.wake.set()
            peer.release_room()
            if messages:
                handler(peer, messages)

    async def _write(self) -> None:
        peer, link = self._peer, self._link
        write, wake, encode = self._stream.write, peer.wake, frames.encode
        try:
            if self._opening:
                await write(self._opening)
            while peer.conversation is self:
                wake.clear()
                while peer.conversation is self and (frame := link.next_frame()) is not None:
                    await write(encode(frame))
                    if self._farewell is not None and not self._thorough:
                        break
                if self._farewell is not None and not (self._thorough and link.queued):
                    await write(self._farewell)
                    await self._stream.done_writing()
                    return
                await wake.wait()
        except StreamLost:
            pass  # the reader sees it and tells
        except BaseException:
            self._stream.cancel()  # or the reader would wait for ever
            raise

    async def _part(self, writing: asyncio.Task[None]) -> None:
        """Wait for our last words to be said, and for the other side to have heard them; not for long."""
        try:
            async with asyncio.timeout(_PARTING_S):
                await asyncio.wait([writing])
                if isinstance(self._stream, DialledStream):
                    while await self._stream.read() is not grpc.aio.EOF:
                        pass  # what still comes is not confirmed, so it comes again on the next stream
        except (TimeoutError, *StreamLost):
            return  # the stream is over, which is all that was wanted


def options(limits: Limits) -> list[tuple[str, Any]]:
    """Of every channel and server."""
    size = limits.wire_bytes
    return [
        ("grpc.max_receive_message_length", size),
        ("grpc.max_send_message_length", size),
        ("grpc.use_local_subchannel_pool", 1),  # a channel to a process that came back must dial anew
        ("grpc.so_reuseport", 0),
        # A machine or a network that went away is noticed within 3 s, by TCP: this timeout is TCP's own as well, and
        # `Peers` says something every second. But no pings of gRPC's: they were seen not to end a stream on which
        # nothing moves (grpcio 1.85, the older poller), and each wakes its threads some ten times more (0.8 ms of
        # processor time a second in an idle process).
        ("grpc.keepalive_timeout_ms", 2000),
        ("grpc.keepalive_time_ms", 3_600_000),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 4 << 20),  # what the probes would find out: a frame fits in whole
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.max_reconnect_backoff_ms", 500),
        # A connection on which nobody opens a stream, or too many, is not kept.
        ("grpc.server_handshake_timeout_ms", 10_000),
        ("grpc.max_connection_idle_ms", 10_000),
        ("grpc.max_concurrent_streams", 8),
    ]


def brief(error: BaseException) -> str:
    """What gRPC says of a failed call, without its wrapping."""
    details = getattr(error, "details", None)
    text = details() if callable(details) else str(error)
    return f"{text or type(error).__name__}"[: frames.REASON_CHARACTERS]
