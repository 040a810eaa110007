"""Many flowray agents: time to ready, memory, tasks, and all of them asking."""

from __future__ import annotations

import time
from typing import Any

import flowray as fr
from bench.measure import say
from bench.workers.common import Moment, between, main, private_mb
from bench.workers.flowray_tasks import Load
from bench.workers.messengers import MEMBER
from bench.workers.ring import SETTLE_S, begin_at

_IN_FLIGHT = 1_000


def work(settings: dict[str, Any]) -> dict[str, float]:
    agents = settings["agents"]
    began_at = time.perf_counter()
    # The tier's share is for as many agents as there are, and the one that is kept warm.
    with fr.Runtime.start(overrides={"ray.agent_output": False, "tiers.secondary.agents": agents + 1}) as rt:
        started_at = time.perf_counter()
        rt.agents.add("bench.workers.messengers:Member", name=MEMBER, count=agents)
        rt.wait_ready(timeout_s=400, agents=agents)
        ready_at = time.perf_counter()
        time.sleep(SETTLE_S)
        status = rt.status()
        figures = {
            "cluster_start_s": started_at - began_at,
            "ready_s": ready_at - began_at,
            "added_s": ready_at - started_at,
            "private_mb": private_mb([agent.pid for agent in status.agents]),
        }
        figures |= _tasks(rt, status.pid, settings)
        figures |= _asks(rt, settings)
    return figures


def _tasks(rt: fr.Runtime, coordinator_pid: int, settings: dict[str, Any]) -> dict[str, float]:
    """Throughput with tasks that do nothing, and what each costs the coordinator."""
    load = Load(rt, _IN_FLIGHT, MEMBER)
    load.run_until(time.perf_counter() + settings["seconds"] / 2)
    groups = {"coordinator": [coordinator_pid]}
    start = Moment.now(load.done, groups)
    load.run_until(time.perf_counter() + settings["seconds"])
    figures = between(start, Moment.now(load.done, groups))
    load.drain()
    return figures


def _asks(rt: fr.Runtime, settings: dict[str, Any]) -> dict[str, float]:
    """Answers per second, all agents taken together; nothing where agents cannot ask."""
    payload = settings | {"begin_at": begin_at(settings["agents"])}
    tasks = rt.map([""] * settings["agents"], payload=payload, needs={MEMBER})
    done: list[int | None] = tasks.results(timeout_s=120)
    if None in done:
        say("no messages between agents here: what asking costs is left out")
        return {}
    return {"asks_per_s": sum(number for number in done if number is not None) / settings["seconds"]}


if __name__ == "__main__":
    main(work)
