"""Agent asks agent with AutoGen core: in one process, or as two workers of its gRPC host.

Every message of a gRPC worker passes through the host, so an answer takes four hops over three processes. Host and
workers use a Unix socket, which is quicker than the TCP port of its documentation; tracing is off. It has no message
without an answer to one agent, so throughput is that of questions in flight.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import uvloop
from autogen_core import AgentId, SingleThreadedAgentRuntime

from bench.workers.autogen_agents import ASKER, ECHO, KEY, Asker, Echo, Go, know_messages
from bench.workers.children import children
from bench.workers.common import main

os.environ["AUTOGEN_DISABLE_RUNTIME_TRACING"] = "true"


def work(settings: dict[str, Any]) -> dict[str, float]:
    if not settings["grpc"]:
        return uvloop.run(_in_process(settings))
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        address = f"unix:{Path(directory) / 's'}"
        host, worker = {"address": address}, {"address": address, "kind": ECHO}
        with children("autogen_host", [host]), children("autogen_worker", [worker]):
            return uvloop.run(_over_grpc(address, settings))


async def _in_process(settings: dict[str, Any]) -> dict[str, float]:
    runtime = SingleThreadedAgentRuntime()
    await Echo.register(runtime, ECHO, Echo)
    await Asker.register(runtime, ASKER, Asker)
    runtime.start()
    figures = await _ask(runtime, settings)
    await runtime.stop()
    return figures


async def _over_grpc(address: str, settings: dict[str, Any]) -> dict[str, float]:
    from autogen_ext.runtimes.grpc import GrpcWorkerAgentRuntime

    runtime = GrpcWorkerAgentRuntime(host_address=address)
    await runtime.start()
    know_messages(runtime)
    await Asker.register(runtime, ASKER, Asker)
    figures = await _ask(runtime, settings)
    await runtime.stop()
    return figures


async def _ask(runtime: Any, settings: dict[str, Any]) -> dict[str, float]:
    answer = await asyncio.wait_for(runtime.send_message(Go(json.dumps(settings)), AgentId(ASKER, KEY)), 300)
    figures: dict[str, float] = json.loads(answer.text)
    return figures


if __name__ == "__main__":
    main(work)
