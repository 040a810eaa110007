"""The book of open tasks: the durable half of the core, changed by durable commands and by nothing else.

Live operation and recovery go through the same `apply`, so a coordinator rebuilt from snapshot and journal holds
exactly what the dead one had decided. What is not here (lanes, loads, timers) follows from it or from the agents.

A running task has one current attempt, and where it is idempotent perhaps one `extra` beside it. Either may answer.
When the current one ends without an outcome, the extra becomes the current one: so a task that runs always has a
current attempt, and whoever knows nothing of extras still reads the truth. `attempts` counts what was ever started;
without extras it is the number of the current attempt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flowray.core.commands import (
    AcceptTask,
    AddAgents,
    Command,
    GradeTask,
    KeepSnapshot,
    LogInput,
    MarkNode,
    Promote,
    RecordChunks,
    RecordMismatch,
    RecordStep,
    RecordVersion,
    RequeueTask,
    ResolveTask,
    SkipInput,
    StartAgent,
    StartAttempt,
    WakeTask,
)
from flowray.core.events import AttemptFinished
from flowray.core.inboxes import Inboxes
from flowray.core.model import (
    AgentSpec,
    Asked,
    Choice,
    Failure,
    Held,
    NotEnough,
    OpenTask,
    Outcome,
    Payload,
    RouterRecord,
    Snapshot,
    StoryLine,
    Task,
    TaskId,
)
from flowray.core.states import STATE_NAMES, TaskState, next_task_state
from flowray.core.steps import step_bytes
from flowray.core.streaming import Stream
from flowray.errors import InvalidTransition

ROUTER_RECORDS = 256  # decisions about the router that are kept: the newest
DRAINED = 256  # nodes that are remembered to be drained: the newest
STORY_LINES = 64  # kept of one task; what a longer story loses is its middle
_RESOLVED_ARROW = {
    TaskState.SUCCEEDED: "answered",
    TaskState.DEAD: "gave_up",
    TaskState.CANCELLED: "cancelled",
    TaskState.EXPIRED: "expired",
}


class Entry:
    """One open task. Mutable; changed only by `Book.apply`."""

    __slots__ = (
        "accepted_at",
        "agent_id",
        "attempt",
        "attempts",
        "choices",
        "deadline_at",
        "epoch",
        "extra",
        "failures",
        "incarnation",
        "kills",
        "losses",
        "not_before",
        "not_enough",
        "seq",
        "started_at",
        "state",
        "steps",
        "steps_bytes",
        "story",
        "stream",
        "task",
    )

    def __init__(self, task: Task, accepted_at: float, seq: int) -> None:
        self.task = task
        self.state = TaskState.QUEUED
        self.seq = seq  # age: smaller is older
        self.accepted_at = accepted_at
        self.deadline_at = accepted_at + task.deadline_s if task.deadline_s is not None else None
        self.attempts = 0  # started so far: the number of the last one
        self.attempt = 0  # number of the current one, or of the last that was
        self.epoch = 0  # of the coordinator that started it
        self.agent_id = ""  # who runs it; "" unless running
        self.incarnation = 0
        self.started_at = 0.0
        self.extra: Held | None = None  # a second attempt that runs beside the current one
        self.failures = 0  # attempts that failed by the agent's own code
        self.losses = 0  # attempts that ended without an answer
        self.kills = 0  # of those, the ones whose agent died while running it
        self.not_before = 0.0  # end of the back-off; 0.0 unless backing off
        self.story: list[StoryLine] = []
        self.choices: list[Choice] = []
        self.not_enough: list[NotEnough] = []
        self.steps: dict[str, Payload | None] = {}  # recorded, by name; for all attempts
        self.steps_bytes = 0  # memory they take, roughly
        self.stream: Stream | None = None  # of its chunks; None until there are some

    def remaining_s(self, now: float) -> float | None:
        """Until its deadline, never negative; None without one."""
        return None if self.deadline_at is None else max(0.0, self.deadline_at - now)

    @property
    def grown_bytes(self) -> int:
        """Memory that it takes besides its task, roughly."""
        return self.steps_bytes if self.stream is None else self.steps_bytes + self.stream.held_bytes

    def running(self) -> tuple[Held, ...]:
        """The attempts that agents have: none, the current one, or that and the one beside it."""
        if not self.agent_id:
            return ()
        current = Held(self.attempt, self.epoch, self.agent_id, self.incarnation, self.started_at)
        return (current,) if self.extra is None else (current, self.extra)

    def at(self, agent_id: str) -> Held:
        """The attempt that this agent has. There is one, and never two."""
        return next(held for held in self.running() if held.agent_id == agent_id)

    def numbered(self, attempt: int) -> Held:
        """The running attempt of this number. There is one."""
        return next(held for held in self.running() if held.attempt == attempt)

    def agent_of(self, attempt: int) -> str:
        """The agent that had this attempt, running or not; "" where the story does not say."""
        told = (line.agent_id for line in reversed(self.story) if line.attempt == attempt and line.agent_id)
        return next(told, "")

    def choice(self) -> Choice | None:
        """Why the current attempt is where it is; None where that is not known (a lost tail, a very long story)."""
        known = self.attempts == len(self.choices) and self.attempt > 0
        return self.choices[self.attempt - 1] if known else None

    def record(self, name: str, value: Payload | None) -> None:
        """Keep the result of a step."""
        self.steps[name] = value
        self.steps_bytes += step_bytes(name, value)

    def tell(self, line: StoryLine) -> None:
        """Add to the story, dropping from the middle when it is full."""
        if len(self.story) >= STORY_LINES:
            del self.story[STORY_LINES // 2]
        self.story.append(line)


class Book:
    """Open tasks, agent specs and incarnations, as the journal has them."""

    __slots__ = ("_apply", "drained", "inboxes", "incarnations", "next_seq", "open", "routers", "specs")

    def __init__(self) -> None:
        self.open: dict[TaskId, Entry] = {}
        self.specs: dict[str, AgentSpec] = {}
        self.incarnations: dict[str, int] = {}
        self.next_seq = 0
        self.routers: list[RouterRecord] = []
        self.drained: dict[str, None] = {}  # nodes that shall have no agents, the newest last
        self.inboxes = Inboxes()
        self._apply: dict[type, Callable[[Any], None]] = {
            AcceptTask: self._accepted,
            StartAttempt: self._started,
            RequeueTask: self._requeued,
            WakeTask: self._woken,
            RecordStep: self._recorded,
            RecordChunks: self._chunks_recorded,
            ResolveTask: self._resolved,
            AddAgents: self._agents_added,
            StartAgent: self._agent_started,
            GradeTask: self._graded,
            RecordVersion: self._version_recorded,
            MarkNode: self._node_marked,
            LogInput: self._logged,
            Promote: self._promoted,
            KeepSnapshot: self.inboxes.kept,
            SkipInput: self.inboxes.skipped,
            RecordMismatch: self.inboxes.mismatched,
        }

    def apply(self, command: Command) -> None:
        """Take a durable command in. Raises InvalidTransition when the book's state does not allow it."""
        self._apply[type(command)](command)

    def _accepted(self, command: AcceptTask) -> None:
        entry = Entry(command.task, command.at, command.seq)
        detail = f"replay of {command.task.replay_of}" if command.task.replay_of else ""
        entry.story.append(StoryLine(command.at, "accepted", 0, "", detail))
        self.open[command.task.id] = entry
        self.next_seq = max(self.next_seq, command.seq + 1)

    def _started(self, command: StartAttempt) -> None:
        entry = self.open[command.task_id]
        entry.state = next_task_state(entry.state, "joined" if command.beside else "started", command.task_id)
        entry.attempts = command.attempt
        if command.beside:
            entry.extra = Held(command.attempt, command.epoch, command.agent_id, command.incarnation, command.at)
        else:
            entry.attempt = command.attempt
            entry.epoch = command.epoch
            entry.agent_id = command.agent_id
            entry.incarnation = command.incarnation
            entry.started_at = command.at
        entry.not_before = 0.0
        entry.tell(StoryLine(command.at, "started", command.attempt, command.agent_id, command.reason))
        if len(entry.choices) < STORY_LINES:
            entry.choices.append(command.choice)

    def _requeued(self, command: RequeueTask) -> None:
        entry = self.open[command.task_id]
        entry.state = next_task_state(entry.state, command.arrow, command.task_id)
        counts = command.counts
        if counts == "failures":
            entry.failures += 1
        elif counts:
            entry.losses += 1
            if counts == "kills":
                entry.kills += 1
        entry.not_before = command.not_before
        what = "attempt_failed" if command.arrow == "failed" or counts == "failures" else command.arrow
        extra = entry.extra
        agent_id = extra.agent_id if extra is not None and extra.attempt == command.attempt else entry.agent_id
        entry.tell(StoryLine(command.at, what, command.attempt, agent_id, _said(command.failure)))
        if command.quality is not None and len(entry.not_enough) < STORY_LINES:
            entry.not_enough.append(NotEnough(command.attempt, command.quality, command.run_s, command.cost_usd))
        if command.arrow == "outlived" and extra is not None:
            if command.attempt == entry.attempt:
                entry.attempt, entry.epoch, entry.agent_id, entry.incarnation, entry.started_at = (
                    extra.attempt,
                    extra.epoch,
                    extra.agent_id,
                    extra.incarnation,
                    extra.started_at,
                )
            entry.extra = None
        else:
            entry.agent_id = ""

    def _woken(self, command: WakeTask) -> None:
        entry = self.open[command.task_id]
        entry.state = next_task_state(entry.state, "due", command.task_id)
        entry.not_before = 0.0

    def _recorded(self, command: RecordStep) -> None:
        entry = self.open[command.task_id]
        if entry.state is not TaskState.RUNNING or command.name in entry.steps:
            raise InvalidTransition(f"task {command.task_id} is {entry.state.value}: step {command.name!r} comes late")
        entry.record(command.name, command.value)

    def _chunks_recorded(self, command: RecordChunks) -> None:
        entry = self.open[command.task_id]
        stream = entry.stream if entry.stream is not None else Stream()
        withdrawn = stream.count - command.first
        if entry.state is not TaskState.RUNNING or withdrawn < 0:
            name = f"chunk {command.first} of task {command.task_id}"
            raise InvalidTransition(f"{name} comes when it is {entry.state.value}, and {stream.count} stand")
        entry.stream = stream
        stream.add(command.first, command.digests, command.size_bytes, command.attempt, command.epoch)
        if withdrawn:
            detail = f"{withdrawn} chunks from {command.first} on are withdrawn"
            agent_id = next((held.agent_id for held in entry.running() if held.attempt == command.attempt), "")
            entry.tell(StoryLine(command.at, "restarted", command.attempt, agent_id, detail))

    def _resolved(self, command: ResolveTask) -> None:
        outcome = command.outcome
        entry = self.open.pop(outcome.task_id)
        entry.state = next_task_state(entry.state, _RESOLVED_ARROW[outcome.state], outcome.task_id)
        self.inboxes.ended(outcome.task_id, answered=bool(outcome.agent_id))

    def _logged(self, command: LogInput) -> None:
        entry = self.open[command.task_id]
        entry.state = next_task_state(entry.state, "started", command.task_id)
        entry.attempt = entry.attempts = 1
        entry.started_at = command.at
        entry.tell(StoryLine(command.at, "logged", 0, command.agent_id, f"input {command.seq}"))
        self.inboxes.logged(command, entry.task)

    def _promoted(self, command: Promote) -> None:
        for task_id in self.inboxes.promoted(command):
            self.open[task_id].tell(StoryLine(command.at, "promoted", 0, command.seat, command.why))

    def _agents_added(self, command: AddAgents) -> None:
        self.specs[command.spec.name] = command.spec
        self.inboxes.made_for(command.spec)

    def _agent_started(self, command: StartAgent) -> None:
        self.incarnations[command.agent_id] = command.incarnation

    def _graded(self, command: GradeTask) -> None:
        """Nothing open changes: a grade is about a task that has ended, and lies beside its outcome."""

    def _version_recorded(self, command: RecordVersion) -> None:
        if self.routers and self.routers[-1].arrow == "noted":
            self.routers.pop()  # how a trial stood then is of no interest any more
        self.routers = [*self.routers, command.record][-ROUTER_RECORDS:]

    def _node_marked(self, command: MarkNode) -> None:
        self.drained.pop(command.node, None)
        if command.drained:
            self.drained[command.node] = None
            if len(self.drained) > DRAINED:
                del self.drained[next(iter(self.drained))]

    def snapshot(self, at: float) -> Snapshot:
        """Everything durable, at this moment."""
        return Snapshot(
            at=at,
            next_seq=self.next_seq,
            tasks=tuple(_frozen(entry) for entry in self.open.values()),
            specs=tuple(self.specs.values()),
            incarnations=dict(self.incarnations),
            routers=tuple(self.routers),
            inboxes=self.inboxes.snapshot(),
            drained=tuple(self.drained),
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Fill an empty book."""
        self.next_seq = snapshot.next_seq
        self.specs = {spec.name: spec for spec in snapshot.specs}
        self.incarnations = dict(snapshot.incarnations)
        self.routers = list(snapshot.routers)
        self.drained = dict.fromkeys(snapshot.drained)
        for open_task in snapshot.tasks:
            self.open[open_task.task.id] = _thawed(open_task)
        running = {task_id for task_id, entry in self.open.items() if entry.state is TaskState.RUNNING}
        self.inboxes.restore(snapshot.inboxes, running)


def is_running(entry: Entry, attempt: int, epoch: int) -> bool:
    """Is this an attempt that an agent has?"""
    if not entry.agent_id:
        return False
    if entry.attempt == attempt and entry.epoch == epoch:
        return True
    extra = entry.extra
    return extra is not None and extra.attempt == attempt and extra.epoch == epoch


def outcome_of(
    entry: Entry,
    state: TaskState,
    now: float,
    *,
    answer: AttemptFinished | None = None,
    failure: Failure | None = None,
) -> Outcome:
    """The outcome that ends an open task now, with its whole story. The entry's own story gets its last line.

    That line names the attempt that answered, which need not be the last one started.
    """
    task = entry.task
    run_s = answer.run_s if answer is not None else 0.0
    attempt, agent_id = entry.attempt, entry.agent_id
    if answer is not None:
        attempt, agent_id = answer.attempt, answer.agent_id
    entry.tell(StoryLine(now, STATE_NAMES[state], attempt, agent_id, _said(failure)))
    return Outcome(
        task_id=task.id,
        state=state,
        value=answer.value if answer is not None and failure is None else None,
        failure=failure,
        agent_id=agent_id,
        attempts=entry.attempts,
        accepted_at=entry.accepted_at,
        resolved_at=now,
        queue_s=max(0.0, now - entry.accepted_at - run_s),
        run_s=run_s,
        key=task.key,
        fingerprint=task.fingerprint,
        labels=task.labels,
        quality=answer.quality if answer is not None else None,
        cost_usd=answer.cost_usd if answer is not None else None,
        story=tuple(entry.story),
        choices=tuple(entry.choices),
        not_enough=tuple(entry.not_enough),
        chunks=entry.stream.count if entry.stream is not None else 0,
        restarts=tuple(entry.stream.restarts) if entry.stream is not None else (),
    )


def asked_of(entry: Entry, most: int) -> Asked | None:
    """What the router read of a task, each text cut to `most` characters; None where it had no word, or none of it."""
    for choice in entry.choices:  # one, mostly, and without a receipt where no router is asked
        if choice.receipt is not None:
            break
    else:
        return None
    task = entry.task
    if not most or not (task.prompt or task.choices or task.tools or task.counts):
        return None
    return Asked(task.prompt[:most], task.choices[:most], task.tools[:most], task.builds_on, task.counts)


def _said(failure: Failure | None) -> str:
    if failure is None:
        return ""
    return ": ".join(part for part in (failure.type, failure.message) if part)[:500]


def _frozen(entry: Entry) -> OpenTask:
    return OpenTask(
        task=entry.task,
        state=entry.state,
        seq=entry.seq,
        accepted_at=entry.accepted_at,
        attempt=entry.attempt,
        epoch=entry.epoch,
        agent_id=entry.agent_id,
        incarnation=entry.incarnation,
        started_at=entry.started_at,
        failures=entry.failures,
        losses=entry.losses,
        kills=entry.kills,
        not_before=entry.not_before,
        story=tuple(entry.story),
        choices=tuple(entry.choices),
        not_enough=tuple(entry.not_enough),
        attempts=entry.attempts if entry.attempts != entry.attempt else 0,
        extra=entry.extra,
        steps=dict(entry.steps),
        stream=entry.stream.save() if entry.stream is not None else None,
    )


def _thawed(saved: OpenTask) -> Entry:
    entry = Entry(saved.task, saved.accepted_at, saved.seq)
    entry.story.extend(saved.story)
    if not saved.attempt:  # never started, as most of very many: the rest is as it was made
        return entry
    entry.state = saved.state
    entry.attempt, entry.epoch, entry.attempts = saved.attempt, saved.epoch, saved.attempts or saved.attempt
    entry.agent_id, entry.incarnation = saved.agent_id, saved.incarnation
    entry.started_at = saved.started_at
    entry.failures, entry.losses, entry.kills = saved.failures, saved.losses, saved.kills
    entry.not_before, entry.extra = saved.not_before, saved.extra
    entry.choices.extend(saved.choices)
    entry.not_enough.extend(saved.not_enough)
    for name, value in saved.steps.items():
        entry.record(name, value)
    entry.stream = Stream.of(saved.stream) if saved.stream is not None else None
    return entry
