"""Where a task goes: to an agent at once, to a router with a question, or into a lane to wait.

    wants an agent ▶ no choice, or asking does not pay ▶ an agent with room, or the lane of all that can do it
                   ▶ a choice ▶ asked about ▶ answered   ▶ an agent of the chosen class, or the lane bound to that
                                            ▶ late, failed ▶ as if there were no router
                   ▶ its last attempt, or nobody is expected to do it ▶ its fallback, or the lane of that

An agent with room takes the best of what waits in the lanes of its class; one without work takes over what waits for
another class, where that is worth as much by now. When a class has nobody left who takes attempts, what was bound to it
is placed again; when nobody of it will ever come, what waits for nobody else ends.

How agents and classes are chosen stands in `flowray.core.placement`, `asking`, `acting` and `routing`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

from flowray.core.acting import is_last
from flowray.core.asking import Candidate, Standing, tried_by
from flowray.core.commands import RequestEstimates
from flowray.core.events import EstimatesFailed, EstimatesReady
from flowray.core.model import Choice, Estimate, Failure, Receipt, Task, TaskId
from flowray.core.placement import choose_agent
from flowray.core.refusal import why_nobody
from flowray.core.routing import run_times

if TYPE_CHECKING:
    from flowray.core.book import Entry
    from flowray.core.coordination import Coordination
    from flowray.core.queueing import Lane
    from flowray.core.registry import Agent, AgentClass

_LANES_LOOKED_AT = 4  # of those that wait for other classes, by an agent without work


class Placing:
    """A part of Coordination: tasks without an attempt that runs, from the wish for one to its start."""

    __slots__ = ("_asking", "_core", "_placement", "_queue", "_rng", "_timers")

    def __init__(self, core: Coordination) -> None:
        self._core = core
        self._asking, self._queue, self._timers, self._rng = core.asking, core.queue, core.timers, core.rng
        self._placement = core.policy.placement

    # ── a task wants an agent ────────────────────────────────────────────────────────────────────────────────────

    def lane(self, task: Task) -> Lane:
        """The lane of all tasks with the same needs."""
        found = self._queue.find(task)  # which is falsy when nobody waits there
        return found if found is not None else self._queue.lane(task, self._core.registry.classes())

    def place(self, entry: Entry, lane: Lane) -> None:
        """Find an agent for the task: at once, or with a router's help where there is a choice."""
        if entry.failures and is_last(entry.task, entry.failures) and self.fall_back(entry, None):
            return
        candidates = self._asking.about(lane, self._rng)
        if len(candidates) < 2:
            self._place_anywhere(entry, lane)
            return
        if not self._asking.pays(entry, lane, self._rng):
            self._place_anywhere(entry, lane, "not_worth")
            return
        core, task_id = self._core, entry.task.id
        self._asking.ask(task_id, core.now)
        if ("estimates", "") not in self._timers:
            self._timers.set("estimates", "", core.now + core.policy.routing.within_s)
        core.emit(RequestEstimates(task_id, candidates, tried_by(entry)))

    def recovered(self, entry: Entry) -> None:
        """A task that waited when an earlier coordinator ended waits again; nobody is there yet to start it."""
        if is_last(entry.task, entry.failures) and self.fall_back(entry, None):
            return
        if self._core.policy.routing.enabled:
            self._asking.leave_out(entry.task.id, "recovered")
        self.lane(entry.task).push(entry.task, entry.seq)

    def _place_anywhere(self, entry: Entry, lane: Lane, why: str = "", detail: str = "") -> None:
        """Start the task where there is room, or let it wait. Older and more urgent tasks of its lane go first.

        `why` and `detail` say what kept the router from having a word, where it should have had one.
        """
        core = self._core
        chosen = None if len(lane) else choose_agent(lane, self._placement, core.now, self._rng)
        if chosen is not None:
            choice = structs.replace(chosen[1], unrouted=why, detail=detail) if why else chosen[1]
            core.attempts.start(entry, chosen[0], choice)
        elif lane.classes and lane.hopeless:
            if not self.fall_back(entry, None):
                core.give_up(entry, Failure(kind="no_agent", message=why_nobody(lane, core.registry)))
        else:
            if why:
                self._asking.leave_out(entry.task.id, why, detail)
            lane.push(entry.task, entry.seq)

    # ── estimates ────────────────────────────────────────────────────────────────────────────────────────────────

    def on_estimates(self, event: EstimatesReady) -> None:
        """A router has answered."""
        core = self._core
        for task_id, estimates in event.answers:
            asked_at = self._asking.answered(task_id)
            if asked_at is not None:
                self._route(core.book.open[task_id], estimates, event, core.now - asked_at)
        self._forget_late()

    def on_no_estimates(self, event: EstimatesFailed) -> None:
        """A router will not answer."""
        for task_id in event.task_ids:
            if self._asking.answered(task_id) is not None:
                entry = self._core.book.open[task_id]
                self._place_anywhere(entry, self.lane(entry.task), "failed", event.reason)
        self._forget_late()

    def estimates_late(self, key: str) -> None:
        """Some questions are as old as a question may be."""
        for task_id in self._asking.late(self._core.now):
            entry = self._core.book.open[task_id]
            self._place_anywhere(entry, self.lane(entry.task), "late")
        if (at := self._asking.next_late()) is not None:
            self._timers.set("estimates", "", at)

    def _forget_late(self) -> None:
        """One timer serves all questions: it is not wanted while none is under way."""
        if self._asking.next_late() is None:
            self._timers.clear("estimates", "")

    def _route(self, entry: Entry, estimates: tuple[Estimate, ...], event: EstimatesReady, took_s: float) -> None:
        """Choose a class of agents, and start the task on one of them or let it wait for one."""
        core, task, lane = self._core, entry.task, self.lane(entry.task)
        candidates: list[Candidate] = []
        for estimate, run_s in zip(estimates, run_times(estimates), strict=True):
            one = lane.by_name.get(estimate.candidate)
            if one is not None and one.ready_slots:
                queued = lane.waiting.get(estimate.candidate)
                wait_s = one.wait_s(len(queued) if queued is not None else 0, run_s)
                candidates.append(Candidate(estimate, one, wait_s))
        if not candidates:
            self._place_anywhere(entry, lane, "failed")
            return
        if task.fallback:
            expectations = [(each.estimate, each.wait_s) for each in candidates]
            if core.acting.is_lost(expectations, entry.remaining_s(core.now)):
                receipt = self._asking.given_up(task.fallback, candidates, event, took_s)
                if self.fall_back(entry, receipt):
                    return
        if entry.failures:
            failed = {name for name, _ in tried_by(entry)}
            candidates = [each for each in candidates if each.estimate.candidate not in failed] or candidates
        chosen, standing = self._asking.choose(entry, lane, candidates, event, core.now, took_s, self._rng)
        bound = self._queue.bound(lane, chosen)
        found = None if len(bound) else choose_agent(bound, self._placement, core.now, self._rng)
        if found is not None:
            core.attempts.start(entry, found[0], standing.as_choice(found[1].considered))
        else:
            self._asking.decide(task.id, standing)
            bound.push(task, entry.seq)
            lane.bound.add(bound)

    # ── the fallback ─────────────────────────────────────────────────────────────────────────────────────────────

    def fallback_of(self, task: Task) -> AgentClass | None:
        """The class that a task falls back to; None where there is none that will come."""
        one = self._core.registry.named(task.fallback) if task.fallback else None
        return None if one is None or one.hopeless else one

    def fall_back(self, entry: Entry, receipt: Receipt | None) -> bool:
        """Give the task to its fallback, or let it wait for that; False where there is none that will come."""
        one = self.fallback_of(entry.task)
        if one is None:
            return False
        lane, standing = self._queue.of(one), Standing(receipt, "fallback", one.spec.name)
        found = None if len(lane) else choose_agent(lane, self._placement, self._core.now, self._rng)
        if found is not None:
            self._core.attempts.start(entry, found[0], standing.as_choice(found[1].considered))
        else:
            self._asking.decide(entry.task.id, standing)
            lane.push(entry.task, entry.seq)
        return True

    # ── an agent has room ────────────────────────────────────────────────────────────────────────────────────────

    def fill(self, agent: Agent) -> None:
        """Give an agent with room the best of what waits for its class."""
        one = agent.agent_class
        while agent.room:
            best: Lane | None = None
            best_head: tuple[int, int, TaskId] | None = None
            for lane in one.lanes:
                if len(lane):
                    head = lane.head()
                    if head is not None and (best_head is None or head < best_head):
                        best, best_head = lane, head
            if best is None:
                if agent.room == "free" and self._take_over(agent):
                    continue
                return
            entry = self._core.book.open[best.pop()]
            policy = "next_free" if agent.room == "free" else "prefetch"
            considered = ((agent.id, agent.load),)
            standing, why, detail = self._asking.take(entry.task.id)
            if standing is not None:
                self._core.attempts.start(entry, agent, standing.as_choice(considered))
            else:
                self._core.attempts.start(entry, agent, Choice(policy, 1, considered, None, why, detail))

    def _take_over(self, agent: Agent) -> bool:
        """Give an idle agent a task that waits for another class, where that is worth as much by now."""
        one = agent.agent_class
        for lane in one.lanes:
            for bound in [lane.bound[at] for at in range(min(len(lane.bound), _LANES_LOOKED_AT))]:
                head = bound.head()
                if head is None:
                    lane.bound.discard(bound)
                    continue
                entry = self._core.book.open[head[2]]
                standing = self._asking.taken_over(entry, one, bound.classes[0], self._core.now)
                if standing is not None:
                    bound.pop()
                    self._asking.take(entry.task.id)
                    self._core.attempts.start(entry, agent, standing.as_choice(((agent.id, agent.load),)))
                    return True
        return False

    # ── waits no longer ──────────────────────────────────────────────────────────────────────────────────────────

    def leave(self, entry: Entry) -> None:
        """Take a waiting task from wherever it waits: in a lane, or for estimates."""
        task_id = entry.task.id
        if self._core.stateful.leave(entry):
            return
        if self._asking.answered(task_id) is not None:
            self._forget_late()
            return
        self._lane_of(entry).remove(task_id)
        self._asking.take(task_id)

    def _lane_of(self, entry: Entry) -> Lane:
        """The lane where a waiting task is."""
        lane = self.lane(entry.task)
        standing = self._asking.standing(entry.task.id)
        one = None if standing is None else self._core.registry.named(standing.chosen)
        if standing is None or one is None:
            return lane
        return self._queue.of(one) if standing.policy == "fallback" else self._queue.bound(lane, one)

    def unbind(self, one: AgentClass) -> None:
        """Nobody of the class takes attempts now: what was meant for it is decided again."""
        if one.ready_slots:
            return
        for lane in [lane for lane in one.lanes if lane.key.agent == one.spec.name]:
            for task_id in sorted(lane.ids()):
                if self._asking.standing(task_id) is not None:
                    lane.remove(task_id)
                    self._asking.take(task_id)
                    entry = self._core.book.open[task_id]
                    self.place(entry, self.lane(entry.task))

    def hopeless(self, one: AgentClass) -> None:
        """A class lost an agent for good: end what waits for nobody else."""
        core = self._core
        for lane in list(one.lanes):
            if lane.hopeless:
                for task_id in sorted(lane.ids()):
                    entry = core.book.open[task_id]
                    self.leave(entry)
                    if not self.fall_back(entry, None):
                        core.give_up(entry, Failure(kind="no_agent", message=why_nobody(lane, core.registry)))
