"""The durable half of stateful agents: which inputs each has, in which order, and what its last snapshot was.

The journal is the log of a replicated state machine (Schneider 1990): an input has its number on disk before any
process is given it, every process applies the same inputs in the same order, and so each of them has the same state.
Kept are the inputs since the last snapshot, also those whose tasks have ended: with the snapshot they are the state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from flowray.core.commands import KeepSnapshot, LogInput, Promote, RecordMismatch, SkipInput
from flowray.core.model import AgentId, AgentSpec, Logged, OpenInbox, StateSnapshot, Task, TaskId
from flowray.errors import InvalidTransition


class Inbox:
    """One instance. Mutable; changed only by the book."""

    __slots__ = (
        "agent_id",
        "applied",
        "barred",
        "inputs",
        "mismatches",
        "next_seq",
        "seat",
        "seat_incarnation",
        "size_bytes",
        "snapshot",
        "term",
        "unanswered",
    )

    def __init__(self, agent_id: AgentId) -> None:
        self.agent_id = agent_id
        self.term = 0  # how often a process was made the active one; outputs of earlier terms do not count
        self.seat = AgentId("")  # the agent whose process is the active one, or was last
        self.seat_incarnation = 0  # of that process
        self.next_seq = 1
        self.applied = 0  # highest number whose output became an outcome
        self.inputs: dict[int, Logged] = {}  # since the snapshot, in order
        self.size_bytes = 0  # memory they take, roughly
        self.unanswered: dict[TaskId, int] = {}  # of these, tasks that are open -> number, in order
        self.snapshot: StateSnapshot | None = None
        self.mismatches = 0  # standbys that were found to have another state
        self.barred: dict[str, int] = {}  # agent -> the last incarnation of it that may have applied what is left out

    @property
    def base(self) -> int:
        """Number of the last input that the snapshot has; 0 without one."""
        return self.snapshot.seq if self.snapshot is not None else 0

    @property
    def last(self) -> int:
        """Number of the last input; where all are in the snapshot, of the last of those."""
        return next(reversed(self.inputs), self.base)


class Inboxes:
    """All instances, by id."""

    __slots__ = ("_counts", "_of", "_tasks")

    def __init__(self) -> None:
        self._of: dict[AgentId, Inbox] = {}
        self._counts: dict[str, int] = {}  # class -> its instances
        self._tasks: dict[TaskId, Inbox] = {}  # unanswered -> where

    def __getitem__(self, agent_id: str) -> Inbox:
        return self._of[AgentId(agent_id)]

    def get(self, agent_id: str) -> Inbox | None:
        """The instance of this id."""
        return self._of.get(AgentId(agent_id))

    def all(self) -> list[Inbox]:
        """Every instance, in the order of their first appearance."""
        return list(self._of.values())

    def count(self, name: str) -> int:
        """Instances of a class; 0 for one that is not stateful. It never changes: entities are spread over them."""
        return self._counts.get(name, 0)

    def instance_of(self, task: Task) -> AgentId:
        """Where a task for a stateful class goes: the same for all tasks of one entity."""
        digest = hashlib.blake2b(task.entity.encode(), digest_size=8).digest()
        return AgentId(f"{task.agent}-{int.from_bytes(digest, 'big') % self._counts[task.agent]}")

    def references(self) -> Iterator[str]:
        """What in the payload store is needed: by inputs, also of tasks that have ended, and by snapshots."""
        for inbox in self._of.values():
            kept = [logged.task.payload for logged in inbox.inputs.values()]
            kept.append(inbox.snapshot.value if inbox.snapshot is not None else None)
            yield from (payload.ref for payload in kept if payload is not None and payload.ref is not None)

    # ── commands ─────────────────────────────────────────────────────────────────────────────────────────────────

    def made_for(self, spec: AgentSpec) -> None:
        """A class is there: a stateful one has its instances from now on."""
        if spec.stateful is None or spec.stateful.of or spec.name in self._counts:
            return
        self._counts[spec.name] = spec.count
        for number in range(spec.count):
            agent_id = AgentId(f"{spec.name}-{number}")
            self._of[agent_id] = Inbox(agent_id)

    def logged(self, command: LogInput, task: Task) -> None:
        """See LogInput."""
        inbox = self._of[command.agent_id]
        if command.seq != inbox.next_seq:
            raise InvalidTransition(f"{command.agent_id}: input {command.seq} where {inbox.next_seq} is next")
        inbox.next_seq += 1
        inbox.inputs[command.seq] = Logged(command.seq, task, command.at)
        inbox.size_bytes += task.size_bytes
        inbox.unanswered[task.id] = command.seq
        self._tasks[task.id] = inbox

    def ended(self, task_id: TaskId, *, answered: bool) -> None:
        """A task has its outcome; `answered`: it is the output of its input."""
        inbox = self._tasks.pop(task_id, None)
        if inbox is not None:
            seq = inbox.unanswered.pop(task_id)
            if answered:
                inbox.applied = max(inbox.applied, seq)

    def promoted(self, command: Promote) -> list[TaskId]:
        """See Promote; which tasks are open in its log."""
        inbox = self._of[command.agent_id]
        if command.term != inbox.term + 1:
            raise InvalidTransition(f"{command.agent_id}: term {command.term} after {inbox.term}")
        inbox.term, inbox.seat, inbox.seat_incarnation = command.term, command.seat, command.seat_incarnation
        return list(inbox.unanswered)

    def kept(self, command: KeepSnapshot) -> None:
        """See KeepSnapshot."""
        inbox, seq = self._of[command.agent_id], command.snapshot.seq
        first = next(iter(inbox.unanswered.values()), inbox.next_seq)
        if not inbox.base < seq < first:
            raise InvalidTransition(f"{command.agent_id}: a snapshot of {seq} between {inbox.base} and {first}")
        for old in [old for old in inbox.inputs if old <= seq]:
            inbox.size_bytes -= inbox.inputs.pop(old).task.size_bytes
        inbox.snapshot = command.snapshot

    def skipped(self, command: SkipInput) -> None:
        """See SkipInput."""
        inbox = self._of[command.agent_id]
        if command.seq <= inbox.applied:
            raise InvalidTransition(f"{command.agent_id}: input {command.seq} is left out and was applied")
        inbox.size_bytes -= inbox.inputs.pop(command.seq).task.size_bytes
        inbox.barred |= command.barred
        # What the last active process has yet to say of later inputs may be of a state that has this one.
        inbox.seat, inbox.seat_incarnation = AgentId(""), 0

    def mismatched(self, command: RecordMismatch) -> None:
        """See RecordMismatch."""
        self._of[command.agent_id].mismatches += 1

    # ── snapshots of the core ────────────────────────────────────────────────────────────────────────────────────

    def snapshot(self) -> tuple[OpenInbox, ...]:
        """Everything, at this moment."""
        return tuple(
            OpenInbox(
                agent_id=inbox.agent_id,
                term=inbox.term,
                seat=inbox.seat,
                seat_incarnation=inbox.seat_incarnation,
                next_seq=inbox.next_seq,
                applied=inbox.applied,
                inputs=tuple(inbox.inputs.values()),
                snapshot=inbox.snapshot,
                mismatches=inbox.mismatches,
                barred=dict(inbox.barred),
            )
            for inbox in self._of.values()
        )

    def restore(self, saved: tuple[OpenInbox, ...], started: set[TaskId]) -> None:
        """Fill what is empty; `started` are the open tasks that have been given to an agent, or a number."""
        for one in saved:
            inbox = self._of[one.agent_id] = Inbox(one.agent_id)
            name = one.agent_id.rpartition("-")[0]
            self._counts[name] = self._counts.get(name, 0) + 1
            inbox.term, inbox.seat, inbox.seat_incarnation = one.term, AgentId(one.seat), one.seat_incarnation
            inbox.next_seq, inbox.applied, inbox.mismatches = one.next_seq, one.applied, one.mismatches
            inbox.snapshot, inbox.barred = one.snapshot, dict(one.barred)
            for logged in one.inputs:
                inbox.inputs[logged.seq] = logged
                inbox.size_bytes += logged.task.size_bytes
                if logged.task.id in started:
                    inbox.unanswered[logged.task.id] = logged.seq
                    self._tasks[logged.task.id] = inbox
