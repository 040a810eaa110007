"""No-op calls that go round a number of agents, from one driver: what the peers that are asyncio have for tasks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from bench.workers.common import Moment, between
from bench.workers.loads import Ask, closed_loop, in_flight, latency


async def no_op_calls(call: Ask, settings: Mapping[str, Any], others: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Throughput and CPU with calls in flight, and one call at a time.

    `others` are the pids of each group of processes besides this one, which is the driver.
    """
    body = b"x"
    await in_flight(call, body, settings["in_flight"], settings["warm_s"])
    groups = {"driver": [os.getpid()], **others}
    start = Moment.now(0, groups)
    done, _ = await in_flight(call, body, settings["in_flight"], settings["measure_s"])
    figures = between(start, Moment.now(done, groups))
    return figures | latency("one_task", await closed_loop(call, body, settings["single"]))
