"""Whole tasks, beside plain Ray: what durability, choice and accounting cost, and what batching gives back.

Both sides have the same number of processes on an embedded Ray with the same settings. Ray's side has no journal, no
queue and no choice of agent: calls go round the actors in turn, straight from the driver.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from bench.measure import FLOWRAY, Measurement, alternate, compared
from bench.processes import run_worker

AGENTS = 24
IN_FLIGHT = 1_000
_UNITS = {
    "tasks_per_s": "tasks/s",
    "one_task_p50_ms": "ms",
    "one_task_p99_ms": "ms",
    "coordinator_us_per_task": "us/task",
    "driver_us_per_task": "us/task",
    "agents_us_per_task": "us/task",
    "agents24_ready_s": "s",
    "runtime_start_s": "s",
    "agent_private_mb": "MB",
    "durable_tasks_lost": "tasks",
}
_SIDES: dict[str, tuple[str, dict[str, Any]]] = {
    FLOWRAY: ("flowray_tasks", {}),
    "ray": ("ray_tasks", {"task_events": True}),
    "ray_no_task_events": ("ray_tasks", {"task_events": False}),
}


class Tasks:
    """See the module."""

    name = "tasks"
    description = f"no-op tasks on {AGENTS} agents: throughput, latency, start, memory and CPU, beside plain Ray"

    def run(self, quick: bool, repeats: int | None = None) -> list[Measurement]:
        length: dict[str, Any] = {"agents": AGENTS, "in_flight": IN_FLIGHT}
        length |= (
            {"warm_s": 1, "measure_s": 2, "single": 200} if quick else {"warm_s": 3, "measure_s": 10, "single": 2000}
        )
        sides = {
            name: partial(run_worker, worker, length | settings, timeout_s=400)
            for name, (worker, settings) in _SIDES.items()
        }
        return compared(alternate(sides, repeats or (1 if quick else 3)), _UNITS)
