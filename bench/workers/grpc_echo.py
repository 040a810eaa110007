"""The far end of a bare gRPC stream: gives each message back, or counts them and gives the count for an empty one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

from bench.workers.children import serve


async def work(settings: dict[str, Any], say_ready: Callable[[], None]) -> None:
    if settings["experiments"]:
        os.environ["GRPC_EXPERIMENTS"] = settings["experiments"]
    import grpc
    from grpc import aio

    async def echo(_: Any, context: Any) -> None:
        while (message := await context.read()) is not aio.EOF:
            await context.write(message)

    async def count(_: Any, context: Any) -> None:
        there = 0
        while (message := await context.read()) is not aio.EOF:
            if message:
                there += 1
            else:
                await context.write(str(there).encode())

    server = aio.server()
    handlers = {
        "Echo": grpc.stream_stream_rpc_method_handler(echo),
        "Count": grpc.stream_stream_rpc_method_handler(count),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench", handlers),))
    server.add_insecure_port(f"unix:{settings['socket']}")
    await server.start()
    say_ready()
    await asyncio.Event().wait()


if __name__ == "__main__":
    serve(work)
