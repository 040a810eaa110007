"""Who is asked about, which tasks wait for an answer, and what was decided for those that wait for an agent.

A team may have thousands of classes of agents: only a shortlist is asked about, so a decision costs the same. It holds
those of best standing (a moving average of what came of their attempts), found anew now and then, and a few drawn at
random, or nobody would ever hear of the others.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

from msgspec import structs

from flowray.core.book import Entry
from flowray.core.events import EstimatesReady
from flowray.core.model import Choice, Estimate, Receipt, TaskId
from flowray.core.naming import class_of
from flowray.core.queueing import Lane
from flowray.core.registry import AgentClass
from flowray.core.retry import Rng
from flowray.core.routing import RoutingPolicy, draw, expected, run_times, value_of, weighed

_RANKED_FOR = 256  # questions of a lane that one ranking of its classes serves


class Candidate(NamedTuple):
    """A class of agents that could take a task."""

    estimate: Estimate
    one: AgentClass
    wait_s: float  # until one of its agents would begin


class Standing(NamedTuple):
    """What was decided for a task: its class of agents, and why."""

    receipt: Receipt | None  # None where no router was asked: the last attempt of a task with a fallback
    policy: str  # routed | taken_over | fallback
    chosen: str  # name of the class

    def as_choice(self, considered: tuple[tuple[str, float], ...]) -> Choice:
        """For the attempt that follows, on one of the agents considered."""
        return Choice(self.policy, 1 if self.receipt is None else len(self.receipt.estimates), considered, self.receipt)


class Asking:
    """Questions under way, and decisions that wait for an agent. Keeps nothing of tasks that are neither."""

    __slots__ = ("_asked", "_decided", "_policy", "_unrouted")

    def __init__(self, policy: RoutingPolicy) -> None:
        self._policy = policy
        self._asked: dict[TaskId, float] = {}  # -> when, the oldest first
        self._decided: dict[TaskId, Standing] = {}
        self._unrouted: dict[TaskId, tuple[str, str]] = {}  # -> why the router had no word, and the same in words

    def about(self, lane: Lane, rng: Rng) -> tuple[str, ...]:
        """The candidates to ask about, sorted; fewer than two where there is nothing to choose."""
        policy, classes = self._policy, lane.classes
        if not policy.enabled or len(classes) < 2:
            return ()
        if len(classes) <= policy.shortlist:
            found = [one for one in classes if one.ready_slots]
        else:
            found = self._shortlist(lane, rng)
        return tuple(sorted(one.spec.name for one in found))

    def _shortlist(self, lane: Lane, rng: Rng) -> list[AgentClass]:
        policy = self._policy
        if lane.questions % _RANKED_FOR == 0:
            lane.ranking = heapq.nlargest(
                policy.shortlist - policy.newcomers, lane.classes, key=lambda one: one.standing
            )
        lane.questions += 1
        found = [one for one in lane.ranking if one.ready_slots]
        among = lane.free if len(lane.free) > policy.newcomers else lane.classes
        for _ in range(2 * policy.newcomers):
            if len(found) >= policy.shortlist:
                break
            one = among[int(rng.random() * len(among))]
            if one.ready_slots and one not in found:
                found.append(one)
        return found

    def pays(self, entry: Entry, lane: Lane, rng: Rng) -> bool:
        """Shall a router be asked about this task, given what asking brought lately (`flowray.core.worth`)?

        Always about one whose caller wants more of the choice than that it is made, and after a failure.
        """
        sampled = self._policy.sampled
        return lane.worth.pays or sampled >= 1.0 or _is_particular(entry) or rng.random() < sampled

    def ask(self, task_id: TaskId, now: float) -> None:
        """A question is under way."""
        self._asked[task_id] = now

    def answered(self, task_id: TaskId) -> float | None:
        """It is over: when it was asked, or None where nobody waits for it any more."""
        return self._asked.pop(task_id, None)

    def late(self, now: float) -> list[TaskId]:
        """Questions that nobody waits for any longer, the oldest first: they are over."""
        found: list[TaskId] = []
        for task_id, asked_at in self._asked.items():
            if asked_at + self._policy.within_s > now:
                break
            found.append(task_id)
        for task_id in found:
            del self._asked[task_id]
        return found

    def next_late(self) -> float | None:
        """When the oldest question will be late; None where none is under way."""
        for asked_at in self._asked.values():
            return asked_at + self._policy.within_s
        return None

    def decide(self, task_id: TaskId, standing: Standing) -> None:
        """The task waits for an agent of the class that was chosen."""
        self._decided[task_id] = standing

    def leave_out(self, task_id: TaskId, why: str, detail: str = "") -> None:
        """The task waits for any agent, because there is no estimate."""
        self._unrouted[task_id] = why, detail

    def standing(self, task_id: TaskId) -> Standing | None:
        """What was decided for a waiting task."""
        return self._decided.get(task_id)

    def take(self, task_id: TaskId) -> tuple[Standing | None, str, str]:
        """The task waits no longer: what was decided, or why nothing was (as `Choice` has it)."""
        return self._decided.pop(task_id, None), *self._unrouted.pop(task_id, ("", ""))

    def choose(
        self,
        entry: Entry,
        lane: Lane,
        candidates: Sequence[Candidate],
        event: EstimatesReady,
        now: float,
        took_s: float,
        rng: Rng,
    ) -> tuple[AgentClass, Standing]:
        """One of the candidates (at least one) that serve the task's lane."""
        estimates = tuple(candidate.estimate for candidate in candidates)
        waits_s = [candidate.wait_s for candidate in candidates]
        # Thrift is for the first attempt: once that was not enough, the best of the others is.
        thrift = entry.task.quality if not entry.failures else None
        limit = entry.task.max_cost_usd
        remaining_s = entry.remaining_s(now)
        extras = [self._extra(candidate.one) for candidate in candidates]
        runs_s = run_times(estimates)
        drawn = draw(
            estimates,
            runs_s,
            waits_s,
            remaining_s,
            weighed(self._policy, entry.task.weights),
            rng,
            extras=extras,
            quality=thrift,
            max_cost_usd=limit,
        )
        chosen = candidates[drawn.place]
        lane.worth.note(
            drawn.values,
            drawn.propensities,
            [candidate.one.ready_slots for candidate in candidates],
            runs_s[drawn.place] + chosen.wait_s,
            took_s,
            self._policy,
        )
        receipt = Receipt(
            event.path,
            event.version,
            estimates,
            drawn.values,
            drawn.propensities,
            chosen.estimate.candidate,
            drawn.explored,
            drawn.confidence,
            chosen.wait_s,
            took_s,
            tuple(waits_s) if any(waits_s) else (),
            remaining_s,
            thrift,
            limit,
            tuple(extras) if any(extras) else (),
            entry.task.weights,
            event.detail,
        )
        return chosen.one, Standing(receipt, "routed", receipt.chosen)

    def given_up(
        self, fallback: str, candidates: Sequence[Candidate], event: EstimatesReady, took_s: float
    ) -> Receipt | None:
        """The receipt of a task that goes to its fallback because nobody is expected to do it: nothing was drawn.

        None where nothing is estimated of the fallback.
        """
        estimates = tuple(candidate.estimate for candidate in candidates)
        if all(estimate.candidate != fallback for estimate in estimates):
            return None
        values = tuple(expected(estimate, self._policy) for estimate in estimates)
        return Receipt(
            event.path, event.version, estimates, values, (), fallback, False, 1.0, 0.0, took_s, detail=event.detail
        )

    def taken_over(self, entry: Entry, one: AgentClass, waited_for: AgentClass, now: float) -> Standing | None:
        """What stands when an idle class takes a task that waits for another one; None where that is worth less.

        It was not drawn, so its receipt has no propensities.
        """
        standing = self.standing(entry.task.id)
        if standing is None or standing.receipt is None or standing.policy == "fallback":
            return None
        estimates = standing.receipt.estimates
        by_name = {e.candidate: (e, run_s) for e, run_s in zip(estimates, run_times(estimates), strict=True)}
        if one.spec.name not in by_name:
            return None
        remaining_s = entry.remaining_s(now)
        chosen, run_s = by_name[standing.receipt.chosen]
        policy = weighed(self._policy, entry.task.weights)
        wait_s, extra = waited_for.wait_s(0, run_s), self._extra(waited_for)
        theirs = value_of(chosen, run_s, wait_s, remaining_s, policy, extra=extra)
        mine, run_s = by_name[one.spec.name]
        if value_of(mine, run_s, 0.0, remaining_s, policy, extra=self._extra(one)) < theirs - policy.good:
            return None
        receipt = structs.replace(standing.receipt, chosen=one.spec.name, propensities=(), wait_s=0.0)
        return Standing(receipt, "taken_over", receipt.chosen)

    def _extra(self, one: AgentClass) -> float:
        """What the policy adds to the value of its agents."""
        policy, free = self._policy, one.free_memory
        if free >= policy.roomy and not policy.tiers:
            return 0.0
        extra = policy.tiers.get(one.spec.tier, 0.0)
        return extra if free >= policy.roomy else extra - policy.short_of_memory * (1.0 - free / policy.roomy)

    def is_asked(self, task_id: TaskId) -> bool:
        """Is a question about it under way?"""
        return task_id in self._asked

    def __len__(self) -> int:
        return len(self._asked) + len(self._decided) + len(self._unrouted)


def _is_particular(entry: Entry) -> bool:
    task = entry.task
    return bool(
        entry.failures
        or task.quality is not None
        or task.least_quality is not None
        or task.max_cost_usd is not None
        or task.weights
        or task.fallback
        or task.builds_on
        or task.idempotent
    )


def tried_by(entry: Entry) -> tuple[tuple[str, float], ...]:
    """(class of agents, what came of it) of earlier attempts at this very task that failed by the agent's own code."""
    if not entry.failures:
        return ()
    names = (class_of(line.agent_id) for line in entry.story if line.what == "attempt_failed")
    return tuple((name, 0.0) for name in dict.fromkeys(names) if name)
