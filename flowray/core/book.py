"""The book of open tasks: the durable half of the core, changed by durable commands and by nothing else.

Live operation and recovery go through the same `apply`, so a coordinator rebuilt from snapshot and journal holds
exactly what the dead one had decided. What is not here (lanes, loads, timers) follows from it or from the agents.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flowray.core.commands import (
    AcceptTask,
    AddAgents,
    Command,
    RecordStep,
    RequeueTask,
    ResolveTask,
    StartAgent,
    StartAttempt,
    WakeTask,
)
from flowray.core.events import AttemptFinished
from flowray.core.model import (
    AgentSpec,
    Choice,
    Failure,
    OpenTask,
    Outcome,
    Payload,
    Snapshot,
    StoryLine,
    Task,
    TaskId,
)
from flowray.core.states import TaskState, next_task_state
from flowray.core.steps import step_bytes
from flowray.errors import InvalidTransition

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
        "choices",
        "deadline_at",
        "epoch",
        "failures",
        "incarnation",
        "kills",
        "losses",
        "not_before",
        "seq",
        "started_at",
        "state",
        "steps",
        "steps_bytes",
        "story",
        "task",
    )

    def __init__(self, task: Task, accepted_at: float, seq: int) -> None:
        self.task = task
        self.state = TaskState.QUEUED
        self.seq = seq  # age: smaller is older
        self.accepted_at = accepted_at
        self.deadline_at = accepted_at + task.deadline_s if task.deadline_s is not None else None
        self.attempt = 0  # number of the last one started
        self.epoch = 0  # of the coordinator that started it
        self.agent_id = ""  # who runs it; "" unless running
        self.incarnation = 0
        self.started_at = 0.0
        self.failures = 0  # attempts that failed by the agent's own code
        self.losses = 0  # attempts that ended without an answer
        self.kills = 0  # of those, the ones whose agent died while running it
        self.not_before = 0.0  # end of the back-off; 0.0 unless backing off
        self.story: list[StoryLine] = []
        self.choices: list[Choice] = []
        self.steps: dict[str, Payload | None] = {}  # recorded, by name; for all attempts
        self.steps_bytes = 0  # memory they take, roughly

    def remaining_s(self, now: float) -> float | None:
        """Until its deadline, never negative; None without one."""
        return None if self.deadline_at is None else max(0.0, self.deadline_at - now)

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

    __slots__ = ("_apply", "incarnations", "next_seq", "open", "specs")

    def __init__(self) -> None:
        self.open: dict[TaskId, Entry] = {}
        self.specs: dict[str, AgentSpec] = {}
        self.incarnations: dict[str, int] = {}
        self.next_seq = 0
        self._apply: dict[type, Callable[[Any], None]] = {
            AcceptTask: self._accepted,
            StartAttempt: self._started,
            RequeueTask: self._requeued,
            WakeTask: self._woken,
            RecordStep: self._recorded,
            ResolveTask: self._resolved,
            AddAgents: self._agents_added,
            StartAgent: self._agent_started,
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
        entry.state = next_task_state(entry.state, "started", command.task_id)
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
        what = "attempt_failed" if command.arrow == "failed" else "requeued"
        entry.tell(StoryLine(command.at, what, command.attempt, entry.agent_id, _said(command.failure)))
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

    def _resolved(self, command: ResolveTask) -> None:
        outcome = command.outcome
        entry = self.open.pop(outcome.task_id)
        entry.state = next_task_state(entry.state, _RESOLVED_ARROW[outcome.state], outcome.task_id)

    def _agents_added(self, command: AddAgents) -> None:
        self.specs[command.spec.name] = command.spec

    def _agent_started(self, command: StartAgent) -> None:
        self.incarnations[command.agent_id] = command.incarnation

    def snapshot(self, at: float) -> Snapshot:
        """Everything durable, at this moment."""
        return Snapshot(
            at=at,
            next_seq=self.next_seq,
            tasks=tuple(_frozen(entry) for entry in self.open.values()),
            specs=tuple(self.specs.values()),
            incarnations=dict(self.incarnations),
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Fill an empty book."""
        self.next_seq = snapshot.next_seq
        self.specs = {spec.name: spec for spec in snapshot.specs}
        self.incarnations = dict(snapshot.incarnations)
        for open_task in snapshot.tasks:
            self.open[open_task.task.id] = _thawed(open_task)


def is_running(entry: Entry, attempt: int, epoch: int) -> bool:
    """Is this the attempt that the task's agent has?"""
    return entry.state is TaskState.RUNNING and entry.attempt == attempt and entry.epoch == epoch


def outcome_of(
    entry: Entry,
    state: TaskState,
    now: float,
    *,
    answer: AttemptFinished | None = None,
    failure: Failure | None = None,
) -> Outcome:
    """The outcome that ends an open task now, with its whole story. The entry's own story gets its last line."""
    task = entry.task
    run_s = answer.run_s if answer is not None else 0.0
    entry.tell(StoryLine(now, state.value, entry.attempt, entry.agent_id, _said(failure)))
    return Outcome(
        task_id=task.id,
        state=state,
        value=answer.value if answer is not None and failure is None else None,
        failure=failure,
        agent_id=entry.agent_id,
        attempts=entry.attempt,
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
    )


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
        steps=dict(entry.steps),
    )


def _thawed(saved: OpenTask) -> Entry:
    entry = Entry(saved.task, saved.accepted_at, saved.seq)
    entry.state = saved.state
    entry.attempt, entry.epoch = saved.attempt, saved.epoch
    entry.agent_id, entry.incarnation = saved.agent_id, saved.incarnation
    entry.started_at = saved.started_at
    entry.failures, entry.losses, entry.kills = saved.failures, saved.losses, saved.kills
    entry.not_before = saved.not_before
    entry.story, entry.choices = list(saved.story), list(saved.choices)
    for name, value in saved.steps.items():
        entry.record(name, value)
    return entry
