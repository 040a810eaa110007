"""The core alone under a virtual clock: how much of a long tail a hedge cuts off, and what that costs.

Agents of one class do tasks whose run times are log-normal; now and then one takes many times as long. Either the agent
is stuck, and another would not be (`blame: agent`), or the task is that long, and a hedge is wasted (`blame: task`).
Both sides get the same tasks at the same moments; one may run them twice.

    p99_hedged_ratio     the 99th percentile of the seconds from arrival to outcome, relative to that without hedges
    p50_hedged_ratio     the same of the median
    extra_busy_ratio     agents' time that was spent beyond that without hedges, relative to it
    hedges_ratio         hedges for each task
"""

from __future__ import annotations

import heapq
import itertools
import random
from typing import Any, NamedTuple

from bench.measure import percentile
from bench.workers.common import main
from flowray.core.acting import ActingPolicy
from flowray.core.commands import CancelAttempt, ResolveTask, StartAttempt
from flowray.core.coordination import Coordination
from flowray.core.events import AgentReady, AgentsAdded, AttemptFinished, Event, TaskSubmitted, Ticked
from flowray.core.model import AgentId, AgentSpec, Failure, Task, TaskId
from flowray.core.policy import CorePolicy

AGENTS = 24
SPREAD = 0.5  # standard deviation of the logarithm of a run time, whose median is a second
STUCK = 0.02  # share of runs that take
TIMES = 20.0  # so many times as long
STOP_S = 0.05  # until an attempt that is told to stop has stopped


class Found(NamedTuple):
    """What one side measured."""

    seconds: list[float]  # from arrival to outcome
    busy_s: float  # of all agents
    hedges: int


def work(settings: dict[str, Any]) -> dict[str, float]:
    policy = ActingPolicy(hedge_factor=settings.get("factor", ActingPolicy().hedge_factor))
    ratios: dict[str, list[float]] = {"p99": [], "p50": [], "busy": [], "hedges": []}
    for seed in range(settings["seeds"]):
        plain, hedged = (
            run(policy, yes, settings["tasks"], seed, settings["load"], settings["blame"]) for yes in (False, True)
        )
        for name, share in (("p99", 0.99), ("p50", 0.5)):
            ratios[name].append(percentile(hedged.seconds, share) / percentile(plain.seconds, share))
        ratios["busy"].append(hedged.busy_s / plain.busy_s - 1.0)
        ratios["hedges"].append(hedged.hedges / settings["tasks"])
    middle = {name: percentile(values, 0.5) for name, values in ratios.items()}
    return {
        "p99_hedged_ratio": middle["p99"],
        "p50_hedged_ratio": middle["p50"],
        "extra_busy_ratio": middle["busy"],
        "hedges_ratio": middle["hedges"],
    }


def run(policy: ActingPolicy, hedged: bool, tasks: int, seed: int, load: float, blame: str) -> Found:
    """Do all tasks; the first fifth, in which the mean run time becomes known, is left out of the seconds."""
    core = Coordination(epoch=1, rng=random.Random(seed), policy=CorePolicy(acting=policy))
    luck, number = random.Random(f"{seed}/luck"), itertools.count()
    agenda: list[tuple[float, int, Event]] = []

    def plan(at: float, event: Event) -> None:
        heapq.heappush(agenda, (at, next(number), event))

    plan(0.0, AgentsAdded(AgentSpec(name="agent", tier="primary", count=AGENTS)))
    for agent in range(AGENTS):
        plan(0.0, AgentReady(AgentId(f"agent-{agent}"), 1))
    mean_s = 1.13 * (1.0 + STUCK * (TIMES - 1.0))
    arrivals, at = random.Random(f"{seed}/arrivals"), 0.0
    for task in range(tasks):
        at += arrivals.expovariate(load * AGENTS / mean_s)
        plan(at, TaskSubmitted(Task(id=TaskId(f"t{task}"), idempotent=hedged)))
    seconds: list[float] = []
    begun: dict[tuple[str, int], float] = {}  # attempts under way -> since when
    busy_s, hedges, due = 0.0, 0, None
    while agenda:
        now, _, event = heapq.heappop(agenda)
        if isinstance(event, AttemptFinished):
            since = begun.pop((event.task_id, event.attempt), None)
            if since is None:
                continue  # it was stopped
            busy_s += now - since
        elif isinstance(event, Ticked):
            due = None
        for command in core.handle(event, now):
            if isinstance(command, StartAttempt):
                hedges += command.beside
                dice = luck if blame == "agent" else random.Random(f"{seed}/{command.task_id}")
                run_s = luck.lognormvariate(0.0, SPREAD) * (TIMES if dice.random() < STUCK else 1.0)
                begun[command.task_id, command.attempt] = now
                plan(now + run_s, AttemptFinished(command.task_id, command.attempt, 1, command.agent_id, run_s=run_s))
            elif isinstance(command, CancelAttempt):
                stopped = Failure(kind="cancelled")
                plan(
                    now + STOP_S,
                    AttemptFinished(command.task_id, command.attempt, 1, command.agent_id, failure=stopped),
                )
            elif isinstance(command, ResolveTask):
                seconds.append(command.outcome.resolved_at - command.outcome.accepted_at)
        wanted = core.next_due()
        if wanted is not None and (due is None or wanted < due):
            due = wanted
            plan(max(now, wanted), Ticked())
    return Found(seconds[tasks // 5 :], busy_s, hedges)


if __name__ == "__main__":
    main(work)
