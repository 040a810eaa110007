"""Whole tasks, beside calls that promise less: what durability, choice and accounting cost, and what batching gives.

Every side has the same number of agents, each a process of its own (AutoGen in process has one for all). The peers
have no journal, no queue and no choice of agent: calls go round the agents in turn, straight from the driver.
"""

from __future__ import annotations

from typing import Any

from bench.measure import FLOWRAY, Found, Plan, alternate, compared
from bench.sides import Side, turns_of, versions

AGENTS = 24
IN_FLIGHT = 1_000
_TIMEOUT_S = 400.0
_UNITS = {
    "tasks_per_s": "tasks/s",
    "one_task_p50_ms": "ms",
    "one_task_p99_ms": "ms",
    "coordinator_us_per_task": "us/task",  # for AutoGen: its host, through which every message goes
    "driver_us_per_task": "us/task",
    "agents_us_per_task": "us/task",
    "durable_tasks_lost": "tasks",
}
SIDES = {
    FLOWRAY: Side("flowray_tasks"),
    "ray": Side("ray_tasks", {"task_events": True}),
    "ray_no_task_events": Side("ray_tasks", {"task_events": False}),
    "xoscar": Side("xoscar_tasks", environment="xoscar"),
    "autogen": Side("autogen_tasks", {"grpc": False}, "autogen"),
    "autogen_grpc": Side("autogen_tasks", {"grpc": True}, "autogen"),
}


class Tasks:
    """See the module."""

    name = "tasks"
    description = f"no-op tasks on {AGENTS} agents: throughput, latency and CPU; beside plain Ray, xoscar and AutoGen"
    peers = tuple(side for side in SIDES if side != FLOWRAY)

    def run(self, plan: Plan) -> Found:
        length: dict[str, Any] = {"agents": AGENTS, "in_flight": IN_FLIGHT}
        length |= (
            {"warm_s": 1, "measure_s": 2, "single": 200}
            if plan.quick
            else {"warm_s": 3, "measure_s": 10, "single": 2_000}
        )
        sides = turns_of(SIDES, plan, length, _TIMEOUT_S)
        turns = alternate(sides, plan.repeats or (1 if plan.quick else 3))
        return Found(
            measurements=compared(turns.figures, _UNITS),
            absent=turns.absent,
            settings=length,
            versions=versions(SIDES, turns.figures),
        )
