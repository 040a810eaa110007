"""Candidates for a router's place, good and bad, each through its whole trial on recorded tasks.

The router in force is the shipped one over the train outcomes of a set, with the online layer (`LiveRouter`). Tasks are
test tasks at which every agent of a team was seen, drawn with replacement; who is chosen is drawn by the policy as in
service, and only that agent's outcome is seen. The trial is that of service (`VersionedRouter`), with its default
shares. Tasks that both versions are not asked about say nothing in a trial: they are counted and not computed, so the
online layers learn of a tenth of the tasks here.

What candidates say, as the router's estimates changed:

    shuffled   every agent's estimates are another agent's
    optimist   the agent that succeeds least is said to succeed always: nobody who is asked in shadow shows the error
    noisy      log-odds plus normal noise of deviation 1.5 for each agent and kind of task: learned from too little
    same       the same with deviation 0.05: neither better nor worse
    better     the router itself, where the one in force is the noisy one

A trial ends when the candidate is rejected or promoted, or after `most` tasks.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from bench.workers.common import main
from bench.workers.shift_streams import TEAM, Recorded, recorded_of
from flowray.core.model import Choice, Estimate, Receipt, RouterPlace, RouterRecord
from flowray.core.naming import class_names
from flowray.core.rollout import RolloutPolicy
from flowray.core.routing import RoutingPolicy, draw, run_times
from flowray.routing import data, estimator
from flowray.routing.data import OutcomeSet
from flowray.routing.estimates import AgentBatch, Estimates, Histories, Labelled, TaskBatch
from flowray.routing.live import LiveRouter
from flowray.routing.queries import Query
from flowray.runtime.rollout import VersionedRouter

BAD = ("shuffled", "optimist", "noisy")
BATCH = 16  # tasks asked about together
Doubles = npt.NDArray[np.float64]


class Said:
    """An estimator that says what it was given; the text of a task is its number."""

    def __init__(self, world: Recorded, expected: Doubles) -> None:
        self._world, self._expected = world, expected.astype(np.float32)

    def estimate(self, tasks: TaskBatch, agents: AgentBatch, histories: Histories) -> Estimates:
        """As recorded."""
        rows = [int(text) if text.isdecimal() else 0 for text in tasks.texts]
        success = self._expected[rows]
        unknown = np.full_like(success, np.nan)
        kinds = Labelled(labels=self._world.kinds, probabilities=self._world.shares[rows])
        return Estimates(
            success=success,
            quality=success,
            latency_s=unknown,
            cost_usd=unknown,
            confidence=np.ones_like(success),
            capabilities={"task": kinds} if self._world.kinds else {},
        )


class Ended(NamedTuple):
    """A trial."""

    arrow: str  # rejected | promoted | undecided
    stage: str  # in which it was rejected
    tasks: int  # since the offer
    touched: int  # answered by the candidate before it was promoted


def changed(world: Recorded, how: str, rng: np.random.Generator) -> Doubles:
    """What such a candidate says [tasks, agents]."""
    expected = world.expected
    if how == "shuffled":
        return np.roll(expected, 1, axis=1)
    if how == "optimist":
        said = expected.copy()
        said[:, world.success.mean(axis=0).argmin()] = 0.99
        return said
    deviation = {"noisy": 1.5, "same": 0.05}[how]
    bounded = np.clip(expected, 0.01, 0.99)
    noise = rng.normal(0.0, deviation, (int(world.labels.max()) + 1, expected.shape[1]))
    return 1.0 / (1.0 + np.exp(-(np.log(bounded / (1.0 - bounded)) + noise[world.labels])))


def trial(world: Recorded, past: OutcomeSet, how: str, seed: int, most: int, policy: RolloutPolicy) -> Ended:
    """One candidate's way."""
    rng, numbers = np.random.default_rng(seed), Random(seed)
    other = changed(world, "noisy" if how == "better" else how, rng)
    before, after = (other, world.expected) if how == "better" else (world.expected, other)
    live, candidate = (LiveRouter(Said(world, said), past) for said in (before, after))
    routing = RoutingPolicy(enabled=True)
    versions = VersionedRouter(live, RouterPlace("in force"), policy, routing)
    records: list[RouterRecord] = []
    versions.begin(lambda event: records.append(event.record))
    versions.offer(candidate, RouterPlace(f"{how}-{seed}"))
    names = tuple(class_names(past.agents.agent_ids))
    tasks = touched = 0
    while tasks < most:
        batch: list[tuple[str, int, bool]] = []
        while len(batch) < BATCH and tasks < most:
            part = versions.part(f"{tasks}")
            if part.both:
                batch.append((f"{tasks}", numbers.randrange(len(world.success)), part.by_newer))
            tasks += 1
        found = versions.estimate([task for task, _, _ in batch], [Query(str(row), names) for _, row, _ in batch])
        for (task, row, by_newer), estimates in zip(batch, found, strict=True):
            touched += by_newer
            _done(versions, task, world.success[row], estimates, routing, numbers)
            last = records[-1].arrow
            if last in ("rejected", "promoted"):
                heard = any(record.arrow == "passed" for record in records)
                return Ended(last, "canary" if heard else "shadow", tasks, touched)
    return Ended("undecided", versions.stage.value, tasks, touched)


def _done(
    versions: VersionedRouter,
    task: str,
    success: Doubles,
    estimates: tuple[Estimate, ...],
    routing: RoutingPolicy,
    rng: Random,
) -> None:
    """An agent is drawn, and does the task."""
    idle = [0.0] * len(estimates)
    drawn = draw(estimates, run_times(estimates), idle, None, routing, rng)
    agent, good = estimates[drawn.place].candidate, bool(success[drawn.place])
    receipt = Receipt("local", "", estimates, drawn.values, drawn.propensities, agent, drawn.explored, 1.0, 0.0, 0.0)
    versions.learn(task, agent, good)
    versions.saw(task, agent, good, None, [Choice("routed", len(estimates), (), receipt)])
    versions.forget(task)


def work(settings: dict[str, Any]) -> dict[str, list[float]]:
    """Figures by name, one for each seed."""
    torch.set_num_threads(1)
    router = estimator.load(settings["router"], "float32")
    whole = data.load(Path(settings["data"]) / settings["set"])
    recorded = recorded_of(router, whole, "test")
    pool = np.flatnonzero(whole.pool & whole.outcomes.known.any(axis=0))
    found: dict[str, list[float]] = {}
    for seed in range(settings["seeds"]):
        chosen = np.sort(np.random.default_rng(seed).permutation(len(pool))[:TEAM])  # as `team` draws them
        world = recorded.team(np.random.default_rng(seed))
        past = whole.take(slice(0, 0)).of_agents(pool[chosen])
        ends = {how: trial(world, past, how, seed, settings["most"], RolloutPolicy()) for how in settings["candidates"]}
        figures: dict[str, float] = {}
        for how, end in ends.items():
            figures[f"affected_share_{how}"] = end.touched / end.tasks
            figures[f"tasks_{how}"] = end.tasks
            figures[f"promoted_{how}"] = float(end.arrow == "promoted")
            figures[f"ended_in_shadow_{how}"] = float(end.arrow == "rejected" and end.stage == "shadow")
        bad = [ends[how] for how in BAD if how in ends]
        figures["bad_candidate_affected_share"] = max(end.touched / end.tasks for end in bad)
        figures["bad_candidate_caught"] = sum(end.arrow == "rejected" for end in bad) / len(bad)
        for key, value in figures.items():
            found.setdefault(key, []).append(value)
    return found


if __name__ == "__main__":
    main(work)
