"""The attempts of a task, from the start of each to what follows from its end.

    started ▶ answered            ▶ the task has its outcome
            ▶ failed              ▶ tried again after a back-off, or a dead letter
            ▶ lost, handed back   ▶ tried again at once (an exclusive task when it must be over), or a dead letter
            ▶ not over in time    ▶ told to stop; it has failed
            ▶ takes long, or may well fail ▶ a second one beside it (`flowray.core.acting`)

Attempts are told apart by (attempt, epoch). An answer that is not from a running attempt changes nothing but the
load of the agent that sent it, so late, duplicate and reordered answers need no special case. Of two running attempts
either may answer; the other is then told to stop. One that ends without an outcome while the other runs is over and
counts, and that is all: only when none runs is the task tried again, or given up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

from flowray.core.acting import may_join
from flowray.core.asking import tried_by
from flowray.core.commands import RequeueTask, StartAttempt, WakeTask
from flowray.core.events import AttemptFinished, AttemptReturned, ChunksMade, StepFinished
from flowray.core.model import Choice, Failure, Held, Receipt, Task, TaskId
from flowray.core.naming import attempt_key
from flowray.core.states import AgentState, TaskState

if TYPE_CHECKING:
    from flowray.core.book import Entry
    from flowray.core.coordination import Coordination
    from flowray.core.registry import Agent

_SOON_S = 0.05  # an attempt that cannot be hedged now is not looked at again before


class Attempts:
    """A part of Coordination: what runs, and what is tried again."""

    __slots__ = ("_acting", "_book", "_core", "_policy", "_registry", "_timers")

    def __init__(self, core: Coordination) -> None:
        self._core = core
        self._policy, self._registry, self._timers, self._acting = core.policy, core.registry, core.timers, core.acting
        self._book = core.book

    # ── they start ───────────────────────────────────────────────────────────────────────────────────────────────

    def start(self, entry: Entry, agent: Agent, choice: Choice) -> None:
        """Start the one attempt of a waiting task; where that is not enough, a second one beside it."""
        self.start_on(
            entry, agent, choice, "first" if not entry.attempts else "retry" if entry.failures else "failover"
        )
        task = entry.task
        if choice.policy == "fallback" or not may_join(task, entry.failures):
            return
        core = self._core
        self._acting.started()
        remaining_s, tried = entry.remaining_s(core.now), {name for name, _ in tried_by(entry)}
        second = self._acting.copy(core.placing.lane(task), choice.receipt, agent.id, tried, remaining_s, core.rng)
        if second is not None:
            self.start_on(entry, second.agent, second.choice, "copy", beside=True)
        else:
            self._time_hedge(entry, agent, choice.receipt)

    def start_on(self, entry: Entry, agent: Agent, choice: Choice, reason: str, *, beside: bool = False) -> None:
        """Start an attempt on this agent, `beside` one that runs."""
        core, task, attempt = self._core, entry.task, entry.attempts + 1
        now = core.now
        remaining_s = entry.remaining_s(now)
        core.commit(
            StartAttempt(
                task.id, attempt, core.epoch, agent.id, agent.incarnation, now, reason, choice, remaining_s, beside
            )
        )
        self._hold(agent, task, attempt)
        agent.agent_class.update(agent)

    def confirm(self, entry: Entry, agent: Agent, attempt: int) -> None:
        """The agent has what the book says. How long it has been at it is not known: its time begins now."""
        self._hold(agent, entry.task, attempt)
        if attempt == entry.attempt and entry.extra is None and may_join(entry.task, entry.failures):
            choice = entry.choice()
            if choice is not None and choice.policy != "fallback":
                self._time_hedge(entry, agent, choice.receipt)

    def _hold(self, agent: Agent, task: Task, attempt: int) -> None:
        """The agent has this attempt from now on."""
        agent.outstanding[task.id] = attempt
        if task.attempt_timeout_s is not None:
            self._timers.set("attempt", attempt_key(task.id, attempt), self._core.now + task.attempt_timeout_s)

    def _time_hedge(self, entry: Entry, agent: Agent, receipt: Receipt | None) -> None:
        after_s = self._acting.hedge_after_s(receipt, agent.agent_class)
        if after_s is not None:
            self._timers.set("hedge", entry.task.id, self._core.now + after_s)

    def hedge_due(self, key: str) -> None:
        """The attempt runs longer than was expected."""
        core, entry = self._core, self._book.open[TaskId(key)]
        if entry.stream is not None:
            return  # it is seen to go on, and another one would have to give the same chunks
        choice = entry.choice()
        tried = {name for name, _ in tried_by(entry)}
        receipt = None if choice is None else choice.receipt
        second = self._acting.hedge(core.placing.lane(entry.task), receipt, entry.agent_id, tried, core.rng)
        if second is not None:
            self.start_on(entry, second.agent, second.choice, "hedge", beside=True)
        else:  # looked at again when it has run for twice as long
            self._timers.set("hedge", key, core.now + max(_SOON_S, core.now - entry.started_at))

    # ── they end ─────────────────────────────────────────────────────────────────────────────────────────────────

    def on_finished(self, event: AttemptFinished) -> None:
        """An agent has done with an attempt: here is what came of it."""
        agent = self._registry.agent(event.agent_id)
        entry = self._book.open.get(event.task_id)
        current = entry is not None and self._is_current(entry, event)
        if agent is not None:
            self._free_slot(agent, event, current, event.run_s)
        if entry is not None and current:
            attempt = event.attempt
            self.over(entry.task, attempt, event.agent_id)
            least = entry.task.least_quality
            if event.failure is None and least is not None and event.quality is not None and event.quality < least:
                self._failed(entry, attempt, _not_enough(event.quality, least), event)
            elif event.failure is None:
                self._core.resolve(entry, TaskState.SUCCEEDED, answer=event)
            elif event.failure.kind == "cancelled":
                # Told to stop by an earlier coordinator, whose reason was in a lost tail: so there is none.
                self.lost(entry, attempt, event.failure, "losses")
            else:
                self._failed(entry, attempt, event.failure)
        if agent is not None:
            self._core.placing.fill(agent)

    def on_returned(self, event: AttemptReturned) -> None:
        """An agent that got stuck hands back what it has not begun."""
        core, agent = self._core, self._registry.agent(event.agent_id)
        entry = self._book.open.get(event.task_id)
        current = entry is not None and self._is_current(entry, event)
        if agent is not None:
            # Whatever its average says, this agent is not quick now.
            agent.service_s = max(agent.service_s, self._policy.placement.prefetch_s)
            agent.prefetch = 0
            agent.agent_class.update(agent)
            self._free_slot(agent, event, current, None)
        if entry is not None and current:
            self.over(entry.task, event.attempt, event.agent_id)
            self._go_on(entry, RequeueTask(event.task_id, event.attempt, core.now, "requeued", None))
        if agent is not None:
            core.placing.fill(agent)

    def _is_current(self, entry: Entry, event: AttemptFinished | AttemptReturned) -> bool:
        return (
            entry.state is TaskState.RUNNING
            and entry.attempt == event.attempt
            and entry.epoch == event.epoch
            and entry.agent_id == event.agent_id
        ) or (entry.extra is not None and is_of(entry.extra, event))

    def _free_slot(
        self, agent: Agent, event: AttemptFinished | AttemptReturned, current: bool, run_s: float | None
    ) -> None:
        token = (event.task_id, event.attempt, event.epoch)
        if event.epoch < self._core.epoch:
            agent.is_over(token)  # also where it was told to stop: a report from before may still come
        if current and event.task_id in agent.outstanding:
            del agent.outstanding[event.task_id]
        elif token in agent.stopping:
            self._core.stopping.ended(agent, token)
            run_s = None  # how long it ran until it was stopped says nothing of its agent
        else:
            return
        if run_s is not None:
            assert isinstance(event, AttemptFinished)
            worth = event.quality if event.quality is not None else 1.0
            agent.agent_class.graded(worth if event.failure is None else 0.0)
            agent.resolved += 1
            agent.losses = 0
            agent.observe(run_s, self._policy.placement.prefetch_s, self._policy.placement.max_prefetch)
        agent.agent_class.update(agent)
        if agent.state is AgentState.DRAINING and not agent.held:
            self._core.draining.emptied(agent)

    def over(self, task: Task, attempt: int, agent_id: str) -> None:
        """Nothing is expected of this attempt any more: neither its end in time nor its agent's word that it has it."""
        if task.attempt_timeout_s is not None:
            self._timers.clear("attempt", attempt_key(task.id, attempt))
        if task.idempotent:
            self._timers.clear("hedge", task.id)
        self._core.adopting.release(task.id, attempt, agent_id)

    def meant(self, key: str) -> tuple[Entry, Held]:
        """The attempt that a timer of this key is about."""
        task_id, _, attempt = key.rpartition("#")
        entry = self._book.open[TaskId(task_id)]
        return entry, entry.numbered(int(attempt))

    def timed_out(self, key: str) -> None:
        """The attempt of this key has had its time."""
        entry, held = self.meant(key)
        message = f"attempt {held.attempt} did not end within {entry.task.attempt_timeout_s:g} s"
        self.over(entry.task, held.attempt, held.agent_id)
        self._core.stopping.stop(entry.task.id, held)
        failure = Failure(kind="timeout", type="TimeoutError", message=message, retryable=True)
        self._failed(entry, held.attempt, failure)

    # ── and what follows ─────────────────────────────────────────────────────────────────────────────────────────

    def _failed(self, entry: Entry, attempt: int, failure: Failure, answer: AttemptFinished | None = None) -> None:
        """The agent's own code failed, or its answer is not enough: retry or give up. Only a failure needs a pause."""
        core, alone = self._core, entry.extra is None
        if alone and (not failure.retryable or entry.failures + 1 >= entry.task.max_attempts):
            core.resolve(entry, TaskState.DEAD, answer=answer, failure=failure)
            return
        task_id, not_before = entry.task.id, core.now
        if alone and answer is None:
            not_before += self._policy.retry.delay_s(entry.failures + 1, core.rng)
        failed = RequeueTask(task_id, attempt, core.now, "failed", failure, "failures", not_before)
        if answer is not None:
            failed = structs.replace(failed, quality=answer.quality, cost_usd=answer.cost_usd, run_s=answer.run_s)
        self._go_on(entry, failed)

    def lost(self, entry: Entry, attempt: int, failure: Failure, counts: str, over_in_s: float = 0.0) -> None:
        """The attempt ended without an answer, through no fault of the agent's code: again, elsewhere, at once.

        Where it may go on for `over_in_s`, or was told to stop and has not answered, an exclusive task waits.
        """
        core, task, retry = self._core, entry.task, self._policy.retry
        self.over(task, attempt, entry.numbered(attempt).agent_id)
        if counts == "kills" and entry.kills + 1 >= retry.poison_kills:
            message = f"{entry.kills + 1} agents died while running it; the last: {failure.message}"
            core.give_up(entry, Failure(kind="poison", message=message))
        elif counts and entry.losses + 1 >= retry.max_losses:
            message = f"{entry.losses + 1} attempts were lost; the last: {failure.message}"
            core.give_up(entry, Failure(kind="agent_lost", message=message))
        elif task.exclusive and (over_in_s or core.stopping.goes_on(task.id)):
            not_before = core.now + over_in_s
            why = f"waits {over_in_s:g} s until it must be over" if over_in_s else "waits until it says that it is over"
            failure = structs.replace(failure, message=f"{failure.message}; its task is exclusive and {why}")
            self._go_on(entry, RequeueTask(task.id, attempt, core.now, "held_back", failure, counts, not_before))
        else:
            self._go_on(entry, RequeueTask(task.id, attempt, core.now, "requeued", failure, counts))

    def _go_on(self, entry: Entry, over: RequeueTask) -> None:
        """An attempt is over without an outcome: the one beside it goes on, or the task waits for the next."""
        core = self._core
        if entry.extra is not None:
            core.commit(structs.replace(over, arrow="outlived", not_before=0.0))
            return
        core.commit(over)
        if over.arrow == "requeued":
            core.placing.place(entry, core.placing.lane(entry.task))
        else:
            self._timers.set("backoff", entry.task.id, over.not_before)

    def backoff_over(self, key: str) -> None:
        """A task has waited for its next attempt."""
        core, entry = self._core, self._book.open[TaskId(key)]
        if entry.task.exclusive and core.stopping.goes_on(entry.task.id):
            # Looked at again when it says that it is over, or its agent is lost: within this time.
            self._timers.set("backoff", key, core.now + self._policy.cancel_grace_s)
            return
        core.commit(WakeTask(entry.task.id, core.now))
        core.placing.place(entry, core.placing.lane(entry.task))


def is_of(held: Held, event: AttemptFinished | AttemptReturned | StepFinished | ChunksMade) -> bool:
    """Is this event from that attempt?"""
    return (held.attempt, held.epoch, held.agent_id) == (event.attempt, event.epoch, event.agent_id)


def _not_enough(quality: float, least: float) -> Failure:
    message = f"the answer was reported to be worth {quality:g}; at least {least:g} is asked for"
    return Failure(kind="quality", message=message, retryable=True)
