"""The core alone: what one task costs it, with more and more agents, and with more and more tasks waiting."""

from __future__ import annotations

from functools import partial

from bench.measure import Found, Measurement, Plan, alternate
from bench.processes import run_worker

AGENTS = (24, 120, 1_000, 10_000)
WAITING = (10_000, 90_000)  # at the first number of agents; below the core's bound of 100,000 open tasks


class Core:
    """See the module. The goal: 20,000 tasks/s on one core, and within a factor of two from 24 to 10,000 agents."""

    name = "core"
    description = "the pure core alone: cost of a task with 24 to 10,000 agents, and with up to 90,000 tasks waiting"
    peers: tuple[str, ...] = ()

    def run(self, plan: Plan) -> Found:
        cases = {f"{agents}": one_case(agents, 0, quick=plan.quick) for agents in AGENTS}
        cases |= {f"waiting_{waiting}": one_case(AGENTS[0], waiting, quick=plan.quick) for waiting in WAITING}
        sides = {name: partial(run_worker, "core_alone", case, timeout_s=120) for name, case in cases.items()}
        found = alternate(sides, plan.repeats or (1 if plan.quick else 7), required=tuple(sides)).figures
        us = {name: [figures["us_per_task"] for figures in runs] for name, runs in found.items()}
        few, many = us[str(AGENTS[0])], us[str(AGENTS[-1])]
        measurements = [
            *(
                Measurement(metric=f"core_tasks_per_s_{n}", unit="tasks/s", flowray=[1e6 / v for v in us[n]])
                for n in us
            ),
            *(Measurement(metric=f"core_us_per_task_{n}", unit="us/task", flowray=us[n]) for n in us),
            Measurement(
                metric=f"core_growth_{AGENTS[0]}_to_{AGENTS[-1]}",
                unit="times",
                flowray=[b / a for a, b in zip(few, many, strict=True)],
            ),
        ]
        return Found(measurements=measurements, settings={"tasks_measured": cases[f"{AGENTS[0]}"]["measured"]})


def one_case(agents: int, waiting: int, *, quick: bool) -> dict[str, int]:
    """Settings of the worker: so many agents, all busy, and so many tasks that wait."""
    warm, measured = (500, 2_000) if quick else (20_000, 60_000)
    return {
        "agents": agents,
        "waiting": waiting,
        "warm": warm,
        "measured": measured,
        "tasks": agents + waiting + warm + measured + 8,
    }
