"""The core and the router alone under a virtual clock: who waits how long when agents differ and load comes in bursts.

Six classes of agents are equally good and differ in speed, each at one of two kinds of task more than at the other. The
router learns that from the run times that it sees. Everything else (queue, arrivals, run times) is the same for all
sides, draw by draw. The two others know nothing of speeds:

    p2c             a task waits until any agent is idle; of two idle ones, drawn at random, it gets the less loaded one
    least_loaded    a task goes, when it comes, to the class with the fewest tasks that have not ended (of equals, any),
                    and waits there for one of its agents: what a gateway does that sees exact loads

`*_success_ratio` is the share of each side's tasks that succeeded.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from msgspec import structs

from bench.measure import percentile
from bench.workers.common import main
from flowray.core.commands import RequestEstimates, ResolveTask, StartAttempt
from flowray.core.coordination import Coordination
from flowray.core.events import AgentReady, AgentsAdded, AttemptFinished, EstimatesReady, Event, TaskSubmitted
from flowray.core.model import AgentId, AgentSpec, Task, TaskId
from flowray.core.naming import class_of
from flowray.core.policy import CorePolicy
from flowray.core.routing import RoutingPolicy
from flowray.core.states import TaskState
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


ROUTED, P2C, LEAST_LOADED = "routed", "p2c", "least_loaded"
SIDES = (ROUTED, P2C, LEAST_LOADED)


def work(settings: dict[str, Any]) -> dict[str, float]:
    runs = [{side: run(side, settings["tasks"], seed) for side in SIDES} for seed in range(settings["seeds"])]
    figures: dict[str, float] = {}
    for other in (P2C, LEAST_LOADED):
        ratios = [percentile(one[ROUTED].took_s, 0.99) / percentile(one[other].took_s, 0.99) for one in runs]
        figures[f"p99_vs_{other}_ratio"] = percentile(ratios, 0.5)
        figures[f"p99_vs_{other}_worst_ratio"] = max(ratios)
    for side in SIDES:
        figures[f"alone_{side}_success_ratio"] = sum(one[side].succeeded for one in runs) / len(runs)
    return figures


class Waited(NamedTuple):
    """What became of the tasks of one side."""

    took_s: Sequence[float]  # from arrival to outcome, without the first fifth, in which the router learns
    succeeded: float  # share of all


class Loads:
    """Tasks of each class that have not ended, known exactly."""

    def __init__(self, classes: Iterable[str], seed: int) -> None:
        self._open = dict.fromkeys(classes, 0)
        self._rng = random.Random(f"{seed}/loads")

    def took(self) -> str:
        """A task has come: the class that gets it."""
        least = min(self._open.values())
        name = self._rng.choice([name for name, load in self._open.items() if load == least])
        self._open[name] += 1
        return name

    def ended(self, name: str) -> None:
        """One of its tasks has."""
        self._open[name] -= 1


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


def run(side: str, tasks: int, seed: int) -> Waited:
    """One side, all tasks."""
    policy = CorePolicy(routing=RoutingPolicy(enabled=side == ROUTED))
    loads = Loads(SPEEDS, seed)
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
    succeeded = 0
    while agenda:
        now, _, event = heapq.heappop(agenda)
        if side == LEAST_LOADED and isinstance(event, TaskSubmitted):
            event = TaskSubmitted(structs.replace(event.task, agent=loads.took()))
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
                succeeded += outcome.state is TaskState.SUCCEEDED
                router.learn(outcome.task_id, class_of(outcome.agent_id), True, run_s=outcome.run_s)
                router.forget(outcome.task_id)
                if side == LEAST_LOADED:
                    loads.ended(class_of(outcome.agent_id))
    return Waited(list(took.values())[tasks // 5 :], succeeded / tasks)


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
