"""THE machine: `handle(event, now) -> commands`. Nothing is decided outside it, and nothing else emits commands.

It does no IO and reads no clock. Whoever drives it (the Ray shell, the simulator, a test) tells it what happened and
the time, and does what it says. Times are seconds on one time-line that never goes back.

A task is in exactly one place: a lane (queued), an agent's `outstanding` (running; where it is idempotent perhaps a
second agent's as well, see `flowray.core.acting`), a back-off timer, or gone with an outcome. Every change of a task is
a durable command, applied to the book as it is emitted; what else is kept here (lanes, loads, timers) can be made again
from the book and from what the agents say they are running.

Here events come in, tasks are accepted and end, and a new epoch begins. What happens in between is done by parts, which
share the book, the timers and the registry, and call one another:

    placing     where a task goes until it runs            lives       agents: wanted, ready, lost, stopped
    attempts    what runs, and what follows from its end   draining    who leaves its process
    recording   steps and chunks of what runs              escalation  who dies again and again
    stopping    what was told to stop and is not over      stateful    agents with a state, their inputs
    adopting    what an earlier epoch has left running
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from msgspec import structs

from flowray.core.acting import Acting
from flowray.core.admission import Admission
from flowray.core.adopting import Adopting
from flowray.core.asking import Asking
from flowray.core.attempts import Attempts
from flowray.core.book import Book, Entry, asked_of, outcome_of
from flowray.core.commands import (
    AcceptTask,
    AnswerCancel,
    Command,
    DurableCommand,
    GradeTask,
    KnownTask,
    RecordVersion,
    RefuseTask,
    ResolveTask,
)
from flowray.core.draining import Draining
from flowray.core.escalation import Escalation
from flowray.core.events import (
    AgentLost,
    AgentReady,
    AgentsAdded,
    AgentsDrained,
    AgentStartFailed,
    AttemptFinished,
    AttemptReturned,
    CancelRequested,
    ChunksMade,
    EstimatesFailed,
    EstimatesReady,
    Event,
    GradeGiven,
    MemoryTold,
    NodeDrained,
    OutputGiven,
    SnapshotMade,
    StateRefused,
    StepFinished,
    TaskSubmitted,
    Ticked,
    VersionDecided,
)
from flowray.core.invariants import check_coordination
from flowray.core.lives import Lives
from flowray.core.model import AgentId, Failure, Snapshot, Task, TaskId
from flowray.core.placing import Placing
from flowray.core.policy import CorePolicy
from flowray.core.queueing import Queue
from flowray.core.recording import Recording
from flowray.core.refusal import retry_after_s, why_nobody
from flowray.core.registry import AgentClass, Registry
from flowray.core.retry import Rng
from flowray.core.stateful import Stateful
from flowray.core.states import AgentState, TaskState
from flowray.core.stopping import Stopping
from flowray.core.streaming import Streaming
from flowray.core.timers import Timers


class Coordination:
    """One team's tasks and agents in one epoch."""

    def __init__(self, *, epoch: int, rng: Rng, policy: CorePolicy | None = None) -> None:
        self.epoch = epoch
        self.policy = policy or CorePolicy()
        self.rng = rng
        self.now = 0.0
        self.book = Book()
        self.registry = Registry(self.policy.restart)
        self.queue = Queue()
        self.admission = Admission(self.policy.admission)
        self.timers = Timers()
        self.asking = Asking(self.policy.routing)
        self.acting = Acting(self.policy.acting, self.policy.routing)
        self.streaming = Streaming(self.policy.streaming)
        self.placing = Placing(self)
        self.attempts = Attempts(self)
        self.recording = Recording(self)
        self.lives = Lives(self)
        self.adopting = Adopting(self)
        self.stopping = Stopping(self)
        self.stateful = Stateful(self)
        self.draining = Draining(self)
        self.escalation = Escalation(self)
        self._out: list[Command] = []
        self._handlers: dict[type, Callable[[Any], None]] = {
            TaskSubmitted: self._on_submitted,
            CancelRequested: self._on_cancel,
            AttemptFinished: self.attempts.on_finished,
            AttemptReturned: self.attempts.on_returned,
            GradeGiven: self._on_graded,
            StepFinished: self.recording.on_step,
            ChunksMade: self.recording.on_chunks,
            OutputGiven: self.stateful.output,
            SnapshotMade: self.stateful.snapshot_made,
            StateRefused: self.stateful.refused,
            EstimatesReady: self.placing.on_estimates,
            EstimatesFailed: self.placing.on_no_estimates,
            AgentsAdded: self.lives.on_added,
            AgentReady: self.lives.on_ready,
            AgentLost: self.lives.on_lost,
            AgentStartFailed: self.lives.on_start_failed,
            MemoryTold: self._on_memory_told,
            VersionDecided: self._on_version,
            AgentsDrained: self.draining.on_agents,
            NodeDrained: self.draining.on_node,
            Ticked: self._on_tick,
        }
        self._timer_handlers: dict[str, Callable[[str], None]] = {
            "deadline": self._deadline_passed,
            "backoff": self.attempts.backoff_over,
            "attempt": self.attempts.timed_out,
            "hedge": self.attempts.hedge_due,
            "estimates": self.placing.estimates_late,
            "grace": self.stopping.grace_over,
            "restart": self.lives.restart_due,
            "start": self.lives.start_timed_out,
            "adoption": self.adopting.overdue,
            "hopeless": self.lives.hopeless_found,
            "inbox": self.stateful.look,
            "snapshot": self.stateful.snapshot_due,
            "drain": self.draining.overdue,
        }

    # ── the doors ────────────────────────────────────────────────────────────────────────────────────────────────

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take one event in; what to do about it, in order. `now` may repeat but time never goes back."""
        if now > self.now:
            self.now = now
        self._handlers[type(event)](event)
        out, self._out = self._out, []
        return out

    def next_due(self) -> float | None:
        """When a Ticked is wanted next; None while nothing is timed."""
        return self.timers.next_due()

    def task(self, task_id: TaskId) -> Task | None:
        """An open task."""
        entry = self.book.open.get(task_id)
        return entry.task if entry is not None else None

    def may_lease(self, agent_id: AgentId, incarnation: int) -> bool:
        """Is this life of the agent one that is given attempts, and has it not been given up?"""
        agent = self.registry.agent(agent_id)
        alive = agent is not None and agent.state in (AgentState.READY, AgentState.DRAINING)
        return alive and agent is not None and agent.incarnation == incarnation

    def snapshot(self) -> Snapshot:
        """The durable part, for the store."""
        return self.book.snapshot(self.now)

    def check(self) -> None:
        """Raise InvariantBroken if the state contradicts itself. Costs as much as everything open."""
        check_coordination(self)

    @classmethod
    def recover(
        cls,
        *,
        epoch: int,
        rng: Rng,
        now: float,
        policy: CorePolicy | None = None,
        snapshot: Snapshot | None = None,
        commands: Iterable[DurableCommand] = (),
        keep_agents: bool = True,
    ) -> Coordination:
        """Rebuild from what the store has.

        Attempts that were running stay running, unconfirmed: their agents have `adoption_s` to say so (AgentReady
        with `running`). The driver reports the agents that it finds first, then ticks. With `keep_agents=False` (a
        new run on an old journal) the agents are gone and not wanted back; the tasks wait for those added next.
        """
        core = cls(epoch=epoch, rng=rng, policy=policy)
        core.now = now
        book = core.book
        if snapshot is not None:
            book.restore(snapshot)
        for command in commands:
            book.apply(command)
        if not keep_agents:
            book.specs.clear()
        grace_s = core.policy.adoption_s if keep_agents else 0.0
        core.stateful.recover()
        core.lives.recover(now + grace_s)
        core.timers.set_all(
            "deadline",
            ((task_id, entry.deadline_at) for task_id, entry in book.open.items() if entry.deadline_at is not None),
        )
        for task_id, entry in book.open.items():
            core.admission.opened(entry.task)
            core.admission.grew(entry.grown_bytes)
            core.streaming.open_bytes += entry.stream.size_bytes if entry.stream is not None else 0
            if entry.state is TaskState.QUEUED and core.stateful.has(entry.task):
                core.stateful.recovered(entry)
            elif entry.state is TaskState.QUEUED:
                core.placing.recovered(entry)
            elif entry.state is TaskState.BACKING_OFF:
                # Its last attempt may have been told to stop, and not have said yet that it did.
                fence_s = core.policy.fence_s if entry.task.exclusive and keep_agents else 0.0
                core.timers.set("backoff", task_id, max(entry.not_before, now + fence_s))
            else:
                for held in entry.running():
                    core.adopting.expect(task_id, held, now + grace_s)
        return core

    # ── tasks: in ────────────────────────────────────────────────────────────────────────────────────────────────

    def _on_submitted(self, event: TaskSubmitted) -> None:
        task = event.task
        if task.id in self.book.open or self.admission.recent(task.id):
            self.emit(KnownTask(task.id, task.id))
            return
        owner = self.admission.by_key(task.key)
        if owner is not None:
            if owner[1] == task.fingerprint:
                self.emit(KnownTask(task.id, owner[0]))
            else:
                detail = f"key {task.key!r} belongs to task {owner[0]}, which asks for something else"
                self.emit(RefuseTask(task.id, "conflict", detail))
            return
        lane = self.placing.lane(task)
        if (stateful := self.stateful.has(task)) or task.entity:
            why = self.stateful.why_not(task) if stateful else f"entity: no stateful agents called {task.agent!r}"
            if why:
                self.emit(RefuseTask(task.id, "unknown_capability", why))
                return
        elif lane.hopeless:
            self.emit(RefuseTask(task.id, "unknown_capability", why_nobody(lane, self.registry)))
            return
        if task.fallback and not self.placing.fallback_of(task):
            self.emit(RefuseTask(task.id, "unknown_capability", f"no agents called {task.fallback!r} (fallback)"))
            return
        full = self.admission.full(task)
        if full:
            self.emit(RefuseTask(task.id, "queue_full", full, retry_after_s(self.registry, self.admission.open_tasks)))
            return
        self.commit(AcceptTask(task, self.now, self.book.next_seq))
        self.admission.opened(task)
        entry = self.book.open[task.id]
        if entry.deadline_at is not None:
            self.timers.set("deadline", task.id, entry.deadline_at)
        if stateful:
            self.stateful.arrive(entry)
        else:
            self.placing.place(entry, lane)

    # ── tasks: out ───────────────────────────────────────────────────────────────────────────────────────────────

    def give_up(self, entry: Entry, failure: Failure) -> None:
        """The task is a dead letter, because of this."""
        self.resolve(entry, TaskState.DEAD, failure=failure)

    def resolve(
        self,
        entry: Entry,
        state: TaskState,
        *,
        answer: AttemptFinished | None = None,
        failure: Failure | None = None,
    ) -> None:
        """The task has its outcome. Of two attempts the other one is told to stop."""
        task = entry.task
        if answer is not None and failure is None:
            self.recording.end_stream(entry, answer)
        outcome = outcome_of(entry, state, self.now, answer=answer, failure=failure)
        asked = asked_of(entry, self.policy.routing.keep_text)
        self.commit(ResolveTask(outcome, task if state is TaskState.DEAD else None, asked))
        self.admission.closed(task, entry.grown_bytes)
        self.streaming.open_bytes -= entry.stream.size_bytes if entry.stream is not None else 0
        if entry.deadline_at is not None:
            self.timers.clear("deadline", task.id)
        if entry.extra is not None:
            self.stopping.stop_all(entry)
        if self.stateful.has(task):
            self.stateful.ended(task)

    def _on_graded(self, event: GradeGiven) -> None:
        """An open task has no answer yet that a grade could be about."""
        if event.task_id not in self.book.open:
            self.commit(GradeTask(event.task_id, event.quality, self.now, event.by))

    def _on_cancel(self, event: CancelRequested) -> None:
        entry = self.book.open.get(event.task_id)
        if entry is None:
            self.emit(AnswerCancel(event.task_id, None))
            return
        if self.stateful.is_logged(entry):  # some process may have applied it already, and all will
            self.emit(AnswerCancel(event.task_id, TaskState.RUNNING))
            return
        self._withdraw(entry, TaskState.CANCELLED, Failure(kind="cancelled", message="cancelled by its caller"))
        self.emit(AnswerCancel(event.task_id, TaskState.CANCELLED))

    def _withdraw(self, entry: Entry, state: TaskState, failure: Failure) -> None:
        """End an open task from outside: take it from wherever it is."""
        task_id, was = entry.task.id, entry.state
        if was is TaskState.QUEUED:
            self.placing.leave(entry)
        elif was is TaskState.BACKING_OFF:
            self.timers.clear("backoff", task_id)
        self.resolve(entry, state, failure=failure)
        if was is TaskState.RUNNING and entry.extra is None:
            self.stopping.stop_all(entry)

    # ── told from outside ────────────────────────────────────────────────────────────────────────────────────────

    def _on_version(self, event: VersionDecided) -> None:
        self.commit(RecordVersion(structs.replace(event.record, at=self.now)))

    def _on_memory_told(self, event: MemoryTold) -> None:
        touched: dict[AgentClass, None] = {}
        for agent_id in event.agent_ids:
            agent = self.registry.agent(agent_id)
            if agent is not None:
                agent.free_memory = event.free
                touched[agent.agent_class] = None
        for one in touched:
            one.memory_told()

    # ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _on_tick(self, event: Ticked) -> None:
        while (due := self.timers.pop_due(self.now)) is not None:
            self._timer_handlers[due[0]](due[1])

    def _deadline_passed(self, key: str) -> None:
        entry = self.book.open[TaskId(key)]
        message = f"not finished within {entry.task.deadline_s:g} s"
        if self.stateful.is_logged(entry):
            message += "; it has its number, so the state will have it all the same"
        self._withdraw(entry, TaskState.EXPIRED, Failure(kind="deadline", message=message))

    # ── the one way out ──────────────────────────────────────────────────────────────────────────────────────────

    def commit(self, command: DurableCommand) -> None:
        """Emit a durable command: applied to the book here, to the journal by the driver."""
        self.book.apply(command)
        self._out.append(command)

    def emit(self, command: Command) -> None:
        """Emit a command that changes nothing of the book."""
        self._out.append(command)
