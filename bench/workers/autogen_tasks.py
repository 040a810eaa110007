"""No-op calls on AutoGen core's agents: all in this process, or each in a worker of its own behind the gRPC host."""

from __future__ import annotations

import itertools
import os
import tempfile
from pathlib import Path
from typing import Any

import uvloop
from autogen_core import AgentId, SingleThreadedAgentRuntime

from bench.workers.autogen_agents import KEY, NOOP, Noop, asking, know_messages
from bench.workers.calls import no_op_calls
from bench.workers.children import children
from bench.workers.common import main

os.environ["AUTOGEN_DISABLE_RUNTIME_TRACING"] = "true"


def work(settings: dict[str, Any]) -> dict[str, float]:
    kinds = [f"{NOOP}{number}" for number in range(settings["agents"])]
    if not settings["grpc"]:
        return uvloop.run(_in_process(kinds, settings))
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        address = f"unix:{Path(directory) / 's'}"
        one_each = [{"address": address, "kind": kind} for kind in kinds]
        with children("autogen_host", [{"address": address}]) as hosts, children("autogen_worker", one_each) as workers:
            others = {"coordinator": [host.pid for host in hosts], "agents": [worker.pid for worker in workers]}
            return uvloop.run(_over_grpc(address, kinds, settings, others))


async def _in_process(kinds: list[str], settings: dict[str, Any]) -> dict[str, float]:
    runtime = SingleThreadedAgentRuntime()
    for kind in kinds:
        await Noop.register(runtime, kind, Noop)
    runtime.start()
    figures = await _measure(runtime, kinds, settings, {})
    await runtime.stop()
    return figures


async def _over_grpc(
    address: str, kinds: list[str], settings: dict[str, Any], others: dict[str, list[int]]
) -> dict[str, float]:
    from autogen_ext.runtimes.grpc import GrpcWorkerAgentRuntime

    runtime = GrpcWorkerAgentRuntime(host_address=address)
    await runtime.start()
    know_messages(runtime)
    figures = await _measure(runtime, kinds, settings, others)
    await runtime.stop()
    return figures


async def _measure(
    runtime: Any, kinds: list[str], settings: dict[str, Any], others: dict[str, list[int]]
) -> dict[str, float]:
    calls = itertools.cycle([asking(runtime.send_message, AgentId(kind, KEY)) for kind in kinds])

    async def call(body: bytes) -> None:
        await next(calls)(body)

    return await no_op_calls(call, settings, others)


if __name__ == "__main__":
    main(work)
