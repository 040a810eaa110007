"""Endpoints that write down what happens to them, a client that says what it likes, and a bad network."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from flowray.mesh import frames
from flowray.mesh.endpoint import Endpoint, MeshEvent, SharedSecret
from flowray.mesh.frames import Bye, Frame, Hello, Limits
from flowray.mesh.grpc_tuned import grpc
from flowray.mesh.peer import Peer

RUNTIME, TOKEN = "r", "secret"


class Node:
    """An endpoint, what came to it by peer, and what it was told."""

    def __init__(self, name: str, *, consumes: bool = True, token: str = TOKEN, **settings: Any) -> None:
        self.name = name
        self.consumes = consumes
        self.error: Exception | None = None  # to raise once, instead of taking a message
        self.got: dict[str, list[bytes]] = {}
        self.events: list[MeshEvent] = []
        self._changed = asyncio.Event()
        self.sent: dict[str, int] = {}
        self.endpoint = Endpoint(
            name,
            **{"runtime": RUNTIME, "gate": SharedSecret(TOKEN), "token": token, **settings},
            on_messages=self._on_messages,
            on_event=self._on_event,
        )

    def _on_messages(self, peer: Peer, messages: list[bytes]) -> None:
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        self.got.setdefault(peer.name, []).extend(messages)
        if self.consumes:
            peer.consumed(len(messages), sum(map(len, messages)))
        self._changed.set()

    def _on_event(self, event: MeshEvent) -> None:
        self.events.append(event)
        self._changed.set()

    async def until(self, true: Callable[[], bool]) -> None:
        """Something has come, or happened. The test's own time limit ends it otherwise."""
        while not true():
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.2):  # not all that is asked about rings a bell
                    await self._changed.wait()

    async def until_told(self, kind: type, peer: str, after: int = 0) -> Any:
        """The first such event about this peer from number `after` on."""

        def found() -> list[MeshEvent]:
            return [event for event in self.events[after:] if type(event) is kind and event.peer == peer]

        await self.until(lambda: bool(found()))
        return found()[0]

    async def say(self, to: str, count: int, size: int = 0) -> None:
        """Numbered messages, which go on from the last ones."""
        peer = self.endpoint.peer(to)
        begin = self.sent.get(to, 0)
        self.sent[to] = begin + count
        for number in range(begin, begin + count):
            while not peer.send(b"%d" % number + b"." * size):
                await peer.room()
            if number % 64 == 0:
                await asyncio.sleep(0)

    def heard(self, of: str) -> list[int]:
        """The numbers of what came from this peer."""
        return [int(message.rstrip(b".")) for message in self.got.get(of, [])]


def have_all(sender: Node, receiver: Node) -> bool:
    """Has all come that was sent? If more or other things came, this fails."""
    heard = receiver.heard(sender.name)
    assert heard == list(range(len(heard)))
    return len(heard) == sender.sent.get(receiver.name, 0)


class Raw:
    """A gRPC stream without an endpoint behind it."""

    def __init__(self, channel: Any) -> None:
        self.call = channel.stream_stream("/flowray.Mesh/Stream")()
        self._numbers = itertools.count(1)

    def hello(self, to: str, **changes: Any) -> Hello:
        fields = {
            "version": frames.VERSION, "runtime": RUNTIME, "name": "raw", "to": to, "end": "raw-1", "knows": "",
            "number": next(self._numbers), "received": 0, "limit_items": 1000, "limit_bytes": 1 << 20, "token": TOKEN,
        }  # fmt: skip
        return Hello(**{**fields, **changes})

    async def write(self, what: Hello | Frame | Bye | bytes) -> None:
        await self.call.write(what if isinstance(what, bytes) else frames.encode(what))

    async def read(self) -> Hello | Frame | Bye | None:
        """What comes; None when the stream was ended."""
        data = await self.call.read()
        return None if data is grpc.aio.EOF else frames.decode(data)

    async def rest(self) -> list[Hello | Frame | Bye]:
        """All that comes until the stream is ended."""
        return [one async for one in self._each()]

    async def _each(self) -> AsyncIterator[Hello | Frame | Bye]:
        while (one := await self.read()) is not None:
            yield one


@contextlib.asynccontextmanager
async def raw(target: str, credentials: Any = None, options: list[tuple[str, Any]] | None = None) -> AsyncIterator[Raw]:
    """A stream to whoever listens there."""
    chosen = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1), *(options or [])]
    if credentials is None:
        channel = grpc.aio.insecure_channel(target, options=chosen)
    else:
        channel = grpc.aio.secure_channel(target, credentials, options=chosen)
    async with channel:
        yield Raw(channel)


class Network:
    """Between those who dial `path` and the socket `target`: bytes pass as they like, or as this says."""

    def __init__(self, path: Path, target: Path) -> None:
        self.path, self._target = path, target
        self._server: asyncio.Server | None = None
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.piece_bytes = 1 << 16  # that pass at once
        self.delay_s = 0.0  # for each piece
        self.lose_at = 0  # after so many bytes the connection they belong to is cut; 0 never
        self.passed = 0
        self.refusing = False

    async def open(self) -> None:
        self._server = await asyncio.start_unix_server(self._meet, self.path)

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_unix_connection(self._target)
        except OSError:
            writer.transport.abort()
            return
        pair = (writer, far_writer)
        self._pairs.add(pair)
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(self._pass_on(source, sink, pair))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, pair: Any) -> None:
        try:
            while data := await source.read(self.piece_bytes):
                await self._flowing.wait()
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                self.passed += len(data)
                if self.lose_at and self.passed >= self.lose_at:
                    sink.write(data[: len(data) // 2])  # in the middle of whatever it is
                    self.lose_at = 0
                    break
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            self._cut(pair)

    def _cut(self, pair: tuple[asyncio.StreamWriter, asyncio.StreamWriter]) -> None:
        self._pairs.discard(pair)
        for writer in pair:
            writer.transport.abort()

    def cut(self) -> None:
        """All connections break."""
        for pair in list(self._pairs):
            self._cut(pair)

    def stall(self) -> None:
        """Nothing passes, and nobody is told: what is written is kept."""
        self._flowing.clear()

    def flow(self) -> None:
        self._flowing.set()

    async def close(self) -> None:
        self.flow()
        self.cut()
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def small(**changes: int) -> Limits:
    """Limits that are soon reached."""
    fields = {"window_items": 64, "window_bytes": 64_000, "frame_bytes": 8_000, "message_bytes": 32_000}
    return Limits(**{**fields, **changes})
