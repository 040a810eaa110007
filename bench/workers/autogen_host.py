"""AutoGen's gRPC host, which passes on every message of its workers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from autogen_ext.runtimes.grpc import GrpcWorkerAgentRuntimeHost

from bench.workers.children import serve


async def work(settings: dict[str, Any], say_ready: Callable[[], None]) -> None:
    host = GrpcWorkerAgentRuntimeHost(address=settings["address"])
    host.start()
    await asyncio.sleep(0)  # it begins to listen in a task of its own
    say_ready()
    try:
        await asyncio.Event().wait()
    finally:
        await host.stop(grace=0)


if __name__ == "__main__":
    serve(work)
