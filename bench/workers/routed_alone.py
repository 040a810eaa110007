"""The core and the router alone under a virtual clock: who waits how long when agents differ and load comes in bursts.

Six classes of agents are equally good and differ in speed, each at one of two kinds of task more than at the other. The
router learns that from the run times that it sees. Everything else (queue, arrivals, run times) is the same for both
sides, draw by draw.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bench.measure import percentile
from bench.workers.common import main
from flowray.core.commands import RequestEstimates, ResolveTask, StartAttempt
from flowray.core.coordination import Coordination
from flowray.core.events import AgentReady, AgentsAdded, AttemptFinished, EstimatesReady, Event, TaskSubmitted
from flowray.core.model import AgentId, AgentSpec, Task, TaskId
from flowray.core.naming import class_of
from flowray.core.policy import CorePolicy
from flowray.core.routing import RoutingPolicy
from flowray.routing.estimates import AgentBatch, Estimates, Floats, Histories, Labelled, TaskBatch
from flowray.routing.live import LiveRouter
from flowray.routing.queries import Query

KINDS = ("short", "long")
SPEEDS = {  # class -> seconds that a task of each kind takes it, in the middle
    "all-round": (0.5, 2.0),
    "all-round-2": (0.6, 2.4),
    "sprinter": (0.2, 6.0),
    "marathon": (2.0, 1.0),
    "slow": (1.5, 6.0),
    "slowest": (4.0, 12.0),
}
AGENTS = 4  # of each class
SPREAD = 0.5  # standard deviation of the logarithm of a run time
BURST = 3.0  # times the usual rate, a quarter of the time
UTILISATION = 0.55  # of what the agents could do if each kind were spread evenly


def work(settings: dict[str, Any]) -> dict[str, float]:
    figures: dict[str, float] = {}
    ratios = []
    for seed in range(settings["seeds"]):
        times = {routed: run(routed, settings["tasks"], seed) for routed in (True, False)}
        ratios.append(percentile(times[True], 0.99) / percentile(times[False], 0.99))
    figures["p99_vs_p2c_ratio"] = percentile(ratios, 0.5)
    figures["p99_vs_p2c_worst_ratio"] = max(ratios)
    return figures


class TellsKinds:
    """Knows nothing but the kind of a task, which is its text."""

    def estimate(self, tasks: TaskBatch, agents: AgentBatch, histories: Histories) -> Estimates:
        nothing = np.zeros((len(tasks), 0), np.float32)
        shares: Floats = np.array([[text == kind for kind in KINDS] for text in tasks.texts], np.float32)
        return Estimates(
            success=nothing,
            quality=nothing,
            latency_s=nothing,
            cost_usd=nothing,
            confidence=nothing,
            capabilities={"task": Labelled(labels=KINDS, probabilities=shares)},
        )


def run(routed: bool, tasks: int, seed: int) -> Sequence[float]:
    """Seconds from each task's arrival to its outcome; the first fifth, in which the router learns, is left out."""
    policy = CorePolicy(routing=RoutingPolicy(enabled=routed))
    core = Coordination(epoch=1, rng=random.Random(seed), policy=policy)
    router = LiveRouter(TellsKinds())
    agenda: list[tuple[float, int, Event]] = []
    number = itertools.count()
    for name in SPEEDS:
        heapq.heappush(agenda, (0.0, next(number), AgentsAdded(AgentSpec(name=name, tier="primary", count=AGENTS))))
        for agent in range(AGENTS):
            heapq.heappush(agenda, (0.0, next(number), AgentReady(AgentId(f"{name}-{agent}"), 1)))
    luck: dict[str, float] = {}
    kind_of: dict[str, str] = {}
    for at, task_id, kind, factor in arrivals(tasks, seed):
        luck[task_id], kind_of[task_id] = factor, kind
        heapq.heappush(agenda, (at, next(number), TaskSubmitted(Task(id=TaskId(task_id), prompt=kind))))
    took: dict[str, float] = {}
    while agenda:
        now, _, event = heapq.heappop(agenda)
        for command in core.handle(event, now):
            if isinstance(command, RequestEstimates):
                query = Query(kind_of[command.task_id], command.candidates)
                answers = router.estimate([command.task_id], [query])
                ready = EstimatesReady(((command.task_id, answers[0]),), "local", router.version)
                heapq.heappush(agenda, (now, next(number), ready))
            elif isinstance(command, StartAttempt):
                middle = SPEEDS[class_of(command.agent_id)][KINDS.index(kind_of[command.task_id])]
                run_s = middle * luck[command.task_id]
                finished = AttemptFinished(command.task_id, command.attempt, 1, command.agent_id, run_s=run_s)
                heapq.heappush(agenda, (now + run_s, next(number), finished))
            elif isinstance(command, ResolveTask):
                outcome = command.outcome
                took[outcome.task_id] = outcome.resolved_at - outcome.accepted_at
                router.learn(outcome.task_id, class_of(outcome.agent_id), True, run_s=outcome.run_s)
                router.forget(outcome.task_id)
    return list(took.values())[tasks // 5 :]


def arrivals(tasks: int, seed: int) -> Iterator[tuple[float, str, str, float]]:
    """(when, task, kind, how much longer than usual it takes): bursts of about ten seconds."""
    rng = random.Random(f"{seed}/arrivals")
    capacity = sum(AGENTS / (sum(each) / len(each)) for each in SPEEDS.values())  # tasks per second
    usual = UTILISATION * capacity / (0.75 + 0.25 * BURST)
    now, until, bursting = 0.0, 0.0, True
    for number in range(tasks):
        if now >= until:
            bursting = not bursting
            until = now + rng.expovariate(1 / (10.0 if bursting else 30.0))
        now += rng.expovariate(usual * (BURST if bursting else 1.0))
        yield now, f"t{number}", rng.choice(KINDS), rng.lognormvariate(0.0, SPREAD)


if __name__ == "__main__":
    main(work)
