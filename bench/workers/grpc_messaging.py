"""Messages over a bare gRPC stream between two processes over a Unix socket: what there is to win with gRPC at all.

No agents, no addresses, no serialisation, no back pressure but gRPC's own.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections import deque
from pathlib import Path
from typing import Any

import uvloop

from bench.workers.children import children
from bench.workers.common import main
from bench.workers.loads import by_the_clock, one_at_a_time, one_way


def work(settings: dict[str, Any]) -> dict[str, float]:
    if settings["experiments"]:
        os.environ["GRPC_EXPERIMENTS"] = settings["experiments"]  # before grpc is imported
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        far = {"socket": str(Path(directory) / "s"), "experiments": settings["experiments"]}
        with children("grpc_echo", [far]):
            return uvloop.run(_measure(far["socket"], settings))


async def _measure(socket: str, settings: dict[str, Any]) -> dict[str, float]:
    from grpc import aio

    body = b"x" * settings["bytes"]
    async with aio.insecure_channel(f"unix:{socket}") as channel:
        lone = channel.stream_stream("/bench/Echo")()

        async def ask(body: bytes) -> None:
            await lone.write(body)
            await lone.read()

        figures = await one_at_a_time(ask, settings)
        await lone.done_writing()

        pipe = Pipe(channel.stream_stream("/bench/Echo")())
        figures |= await by_the_clock(pipe.ask, settings)
        await pipe.close()

        stream = channel.stream_stream("/bench/Count")()

        async def arrived() -> int:
            await stream.write(b"")
            return int(await stream.read())

        await one_way(stream.write, arrived, body, settings["seconds"] / 5)
        figures["one_way_per_s"] = await one_way(stream.write, arrived, body, settings["seconds"])
        await stream.done_writing()
    return figures


class Pipe:
    """Many questions at a time on one stream; answers come in their order."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._waiting: deque[asyncio.Future[bytes]] = deque()
        self._queue: deque[bytes] = deque()
        self._writing = False
        self._reading = asyncio.create_task(self._read())

    async def ask(self, body: bytes) -> bytes:
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._queue.append(body)
        self._waiting.append(future)
        if not self._writing:  # a stream takes one write at a time: who comes first writes for those who come meanwhile
            self._writing = True
            while self._queue:
                await self._stream.write(self._queue.popleft())
            self._writing = False
        return await future

    async def _read(self) -> None:
        from grpc import aio

        while (answer := await self._stream.read()) is not aio.EOF:
            self._waiting.popleft().set_result(answer)

    async def close(self) -> None:
        await self._stream.done_writing()
        await self._reading


if __name__ == "__main__":
    main(work)
