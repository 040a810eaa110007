"""From 24 agents to 120, and to 10,000 in the core alone: how soon they are there, what they weigh, what more of them
cost the others.

From nothing means from before the cluster: its start and the agents' start, until each agent has answered. All agents
then ask at the same time, each its neighbour in a ring with a few questions under way, and two cores are shared by
them all: what is lost from 24 to 120 is what the larger number itself costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from bench.measure import FLOWRAY, Figures, Found, Plan, alternate, compared
from bench.members.core import one_case
from bench.processes import run_worker
from bench.sides import Side, versions

AGENTS = (24, 120)
_QUICK_AGENTS = (2, 4)
CORE_AGENTS = (24, 10_000)
_TIMEOUT_S = 600.0
# What a worker says of one size -> the metric and its unit; `{}` is the number of agents.
_METRICS = {
    "ready_s": ("agents{}_ready_s", "s"),  # from nothing
    "added_s": ("agents{}_added_s", "s"),  # the cluster is there
    "private_mb": ("agent_private_mb_{}", "MB"),
    "asks_per_s": ("asks_{}_per_s", "messages/s"),
    "tasks_per_s": ("tasks_{}_per_s", "tasks/s"),
    "coordinator_us_per_task": ("coordinator_us_per_task_{}", "us/task"),
}
_GROWTH = {"asks": "asks_per_s", "tasks": "tasks_per_s", "coordinator_us": "coordinator_us_per_task"}
SIDES = {
    FLOWRAY: Side("flowray_scale"),
    "ray": Side("ray_scale", {"task_events": True}),
    "ray_no_task_events": Side("ray_scale", {"task_events": False}),
    "xoscar": Side("xoscar_scale", environment="xoscar"),
}


class Scale:
    """See the module. AutoGen is not here: it starts no processes, and its agents have none of their own."""

    name = "scale"
    description = "24 and 120 agents: time to ready, memory, throughput when all ask; the core with up to 10,000"
    peers = tuple(side for side in SIDES if side != FLOWRAY)

    def run(self, plan: Plan) -> Found:
        few, many = _QUICK_AGENTS if plan.quick else AGENTS
        length: dict[str, Any] = {"bytes": 100, "each": 4, "seconds": 1 if plan.quick else 5}
        sides: dict[str, Callable[[], Figures]] = {
            name: partial(_turn, name, (few, many), length, plan.quick) for name in SIDES if plan.wants(name)
        }
        turns = alternate(sides, plan.repeats or (1 if plan.quick else 3))
        units = {"agent_private_mb": "MB", "cluster_start_s": "s"}
        units |= {metric.format(size): unit for metric, unit in _METRICS.values() for size in (few, many)}
        units |= {f"{what}_{many}_to_{few}": "times" for what in _GROWTH}
        units |= {f"core_us_per_task_{size}": "us/task" for size in CORE_AGENTS}
        return Found(
            measurements=compared(turns.figures, units),
            absent=turns.absent,
            settings=length | {"agents": [few, many]},
            versions=versions(SIDES, turns.figures),
        )


def _turn(name: str, sizes: tuple[int, int], length: Mapping[str, Any], quick: bool) -> Figures:
    """One side, with few agents and then with many, as one turn."""
    few, many = (SIDES[name].turn({**length, "agents": size}, _TIMEOUT_S) for size in sizes)
    figures = {"agent_private_mb": few["private_mb"], "cluster_start_s": few["cluster_start_s"]}
    for size, found in zip(sizes, (few, many), strict=True):
        figures |= {metric.format(size): found[key] for key, (metric, _) in _METRICS.items() if key in found}
    for what, key in _GROWTH.items():
        if key in few:
            figures[f"{what}_{sizes[1]}_to_{sizes[0]}"] = many[key] / few[key]
    if name == FLOWRAY:
        for size in CORE_AGENTS:
            core = run_worker("core_alone", one_case(size, 0, quick=quick), timeout_s=120)
            figures[f"core_us_per_task_{size}"] = core["us_per_task"]
    return figures
