"""A process that joins AutoGen's gRPC host with one agent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from autogen_ext.runtimes.grpc import GrpcWorkerAgentRuntime

from bench.workers.autogen_agents import ECHO, Echo, Noop, know_messages
from bench.workers.children import serve


async def work(settings: dict[str, Any], say_ready: Callable[[], None]) -> None:
    runtime = GrpcWorkerAgentRuntime(host_address=settings["address"])
    await runtime.start()
    know_messages(runtime)
    if settings["kind"] == ECHO:
        await Echo.register(runtime, ECHO, Echo)
    else:
        await Noop.register(runtime, settings["kind"], Noop)
    say_ready()
    await asyncio.Event().wait()


if __name__ == "__main__":
    serve(work)
