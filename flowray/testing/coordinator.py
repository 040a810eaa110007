"""The simulated coordinator process: the same core as in production, and the protocol that a driver must keep.

The protocol, which the Ray shell keeps too:

- what one event led to is appended to the journal as one group, in order;
- commands that do not wait are performed at once, the others when the group is on disk;
- an answer of an agent is acknowledged when everything it led to is on disk;
- no caller is told anything, not even a refusal, by a process whose epoch is over: a reply with nothing to wait for
  still looks at the fence;
- an attempt that is given recorded steps, or the number of recorded chunks, starts when these are on disk, unless it is
  over by then; so does one of an exclusive task;
- leases are given to agents that the core has not given up, by a coordinator whose epoch is in force;
- a step, or a chunk, of an agent that has not said what it holds is put off: whether its attempt is current is not
  known before;
- chunks are shown when they are on disk, as they stood after the restarts that this process has seen on disk;
- a repeat of a task that ended long ago is recognised in the store, before the core is asked;
- the core is told which ends are on disk: those it need not remember any more.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from functools import partial
from random import Random
from typing import TYPE_CHECKING, get_args

from flowray.core.book import is_running
from flowray.core.commands import (
    AcceptTask,
    AddAgents,
    AnswerCancel,
    AnswerChunks,
    AnswerStep,
    CancelAttempt,
    Command,
    GradeTask,
    KnownTask,
    RecordChunks,
    RefuseTask,
    RequestEstimates,
    ResolveTask,
    StartAgent,
    StartAttempt,
    StopAgent,
    ToSeat,
)
from flowray.core.coordination import Coordination
from flowray.core.events import (
    AgentReady,
    AgentsAdded,
    AttemptFinished,
    CancelRequested,
    ChunksMade,
    Event,
    GradeGiven,
    OutputGiven,
    SnapshotMade,
    StepFinished,
    TaskSubmitted,
    Ticked,
)
from flowray.core.model import AgentId, AgentSpec, Outcome, Task, TaskId
from flowray.core.states import TaskState
from flowray.core.streaming import DIGEST_BYTES, standing
from flowray.testing.chunks import Shown
from flowray.testing.journal import Writer
from flowray.testing.stateful import StatefulProcess

if TYPE_CHECKING:
    from flowray.testing.agent import Given, Stream
    from flowray.testing.world import World

Reply = Callable[[Command], None]
Watcher = Callable[[Outcome | None], None]
TO_SEAT = frozenset(get_args(ToSeat))


class CoordinatorProcess:
    """One life of the coordinator."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.epoch = world.disk.begin()
        self.alive = True
        self.paused = False
        self.streams: dict[tuple[str, int], Stream] = {}  # to agents, by (id, incarnation)
        if world.disk.torn:
            world.note("torn write dropped")
        snapshot, commands = world.disk.recall(world.flips())
        # UTC, which may be wrong, but never before what is recorded; from here on it goes as time does.
        self.ahead_s = max(world.clock.now + world.skew_s(), world.disk.last_at + 1e-6) - world.clock.now
        self.core = Coordination.recover(
            epoch=self.epoch,
            rng=Random(f"{world.seed}/core/{self.epoch}"),
            now=self.now,
            policy=world.policy,
            snapshot=snapshot,
            commands=commands,
        )
        self.writer = Writer(
            world.clock,
            world.disk,
            self.epoch,
            sync_s=world.sync_s,
            on_synced=self._release,
            on_fenced=self.fenced,
            fails=world.sync_fails,
            on_failed=self._sync_failed,
        )
        self._held: deque[Callable[[], None]] = deque()  # what arrived while paused
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()  # (groups on disk, what to do then)
        self._watchers: dict[TaskId, list[Watcher]] = {}
        self._readers: dict[TaskId, list[Callable[[], None]]] = {}
        self._streams: dict[TaskId, tuple[int, tuple[int, ...]]] = {  # open task -> its chunks on disk, its restarts
            task_id: (entry.stream.count, tuple(entry.stream.restarts))
            for task_id, entry in self.core.book.open.items()
            if entry.stream is not None
        }
        self._tick_at: float | None = None
        self._next_snapshot = world.snapshot_every - world.disk.groups  # those of earlier lives count
        self._schedule_tick()

    @property
    def now(self) -> float:
        """By the clock of this life."""
        return self.world.clock.now + self.ahead_s

    # ── what arrives ─────────────────────────────────────────────────────────────────────────────────────────────

    def submit(self, task: Task, reply: Reply) -> None:
        """A caller hands in a task."""
        self._receive(partial(self._submit, task, reply))

    def cancel(self, task_id: TaskId, reply: Reply) -> None:
        """A caller no longer wants a task."""
        self._receive(partial(self._handle, CancelRequested(task_id), reply))

    def grade(self, task_id: TaskId, quality: float, reply: Reply) -> None:
        """A caller says what an answer was worth. Who grades what has no answer hears nothing."""
        self._receive(partial(self._grade, task_id, quality, reply))

    def add(self, spec: AgentSpec, reply: Reply) -> None:
        """The team shall have these agents."""
        self._receive(partial(self._handle, AgentsAdded(spec), reply))

    def watch(self, task_id: TaskId, watcher: Watcher) -> None:
        """A caller wants the outcome: it gets it once, or None when no task has this id."""
        self._receive(partial(self._watch, task_id, watcher))

    def ready(self, event: AgentReady, stream: Stream) -> None:
        """An agent says that it is there and what it holds."""

        def connect() -> None:
            key = event.agent_id, event.incarnation
            known = self.streams.get(key)
            if known is None or known.number < stream.number:
                self.streams[key] = stream
            self._handle(event)

        self._receive(connect)

    def finished(self, event: AttemptFinished | OutputGiven | SnapshotMade, acknowledge: Callable[[], None]) -> None:
        """An agent answers."""
        if self.writer.fenced:
            self.world.note("zombie was told an answer")
        self._receive(partial(self._handle, event, None, acknowledge))

    def step(self, event: StepFinished, stream: Stream) -> None:
        """An agent wants a step recorded."""

        def take() -> None:
            if (event.agent_id, event.incarnation) in self.streams:
                self._handle(event)
            else:
                token = event.task_id, event.attempt, event.epoch, event.agent_id, event.incarnation
                stream.down(partial(stream.agent.step_answered, AnswerStep(*token, event.name, "later")))

        self._receive(take)

    def chunks(self, event: ChunksMade, stream: Stream) -> None:
        """An agent gives out chunks."""

        def take() -> None:
            if (event.agent_id, event.incarnation) in self.streams:
                self._handle(event)
            else:
                token = event.task_id, event.attempt, event.epoch, event.agent_id, event.incarnation
                stream.down(partial(stream.agent.chunks_answered, AnswerChunks(*token, event.number, "later")))

        self._receive(take)

    def show(self, task_id: TaskId, first: int, restarts: int | None, show: Callable[[Shown | None], None]) -> None:
        """A reader wants what comes after the chunks that it has."""
        self._receive(partial(self._show, task_id, first, restarts, show))

    def lease(self, agent_id: AgentId, incarnation: int, grant: Callable[[], None]) -> None:
        """An agent asks whether it may go on with exclusive attempts."""

        def answer() -> None:
            if (agent_id, incarnation) in self.streams and self.core.may_lease(agent_id, incarnation):
                self._when_synced(grant)

        self._receive(answer)

    def hear(self, event: Event) -> None:
        """Anything that nobody waits for: notices of death, attempts handed back."""
        self._receive(partial(self._handle, event))

    def _receive(self, do: Callable[[], None]) -> None:
        if not self.alive:
            return
        if self.paused:
            self._held.append(do)
        else:
            do()

    # ── life and death ───────────────────────────────────────────────────────────────────────────────────────────

    def die(self) -> None:
        """The process ends; part of the journal's tail may be lost."""
        self.alive = False
        if self.writer.die(self.world.rng, self.world.lost_tail, self.world.torn_writes):
            self.world.note("tail lost")
        self._forget()

    def pause(self) -> None:
        """The process stops where it is."""
        self.paused = True
        self.writer.pause()

    def resume(self) -> None:
        """The process goes on where it was, with what it remembers."""
        self.paused = False
        self.writer.resume()
        while self._held and self.alive and not self.paused:
            self._held.popleft()()

    def fenced(self) -> None:
        """A later epoch owns the journal: end at once."""
        self.alive = False
        self.world.note("zombie writer fenced")
        self._forget()

    def _sync_failed(self) -> None:
        """What the sync covered may be on disk or not, now or never: only a new life can tell."""
        self.world.note("sync failed")
        self.world.lose_coordinator(self, 0.5)

    def _forget(self) -> None:
        self._held.clear()
        self._waiting.clear()
        self._watchers.clear()
        self._readers.clear()

    # ── handling ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _submit(self, task: Task, reply: Reply) -> None:
        answer = self._remembered(task)
        if answer is not None and not self.core.admission.recent(task.id):
            self.world.note("ended task found in the store")
        if answer is None:
            self._handle(TaskSubmitted(task), reply)
        else:
            self._when_synced(partial(reply, answer))

    def _remembered(self, task: Task) -> Command | None:
        """What the store knows of this task already: ended tasks leave the core's memory sooner or later."""
        disk = self.world.disk
        if task.id in disk.outcomes:
            return KnownTask(task.id, task.id)
        owner = disk.keys.get(task.key) if task.key else None
        if owner is None:
            return None
        if disk.outcomes[owner].fingerprint == task.fingerprint:
            return KnownTask(task.id, owner)
        return RefuseTask(
            task.id, "conflict", f"key {task.key!r} belongs to task {owner}, which asks for something else"
        )

    def _watch(self, task_id: TaskId, watcher: Watcher) -> None:
        if self.core.task(task_id) is not None:
            self._watchers.setdefault(task_id, []).append(watcher)
        else:
            self._when_synced(lambda: watcher(self.world.disk.outcomes.get(task_id)))

    def _show(self, task_id: TaskId, first: int, seen: int | None, show: Callable[[Shown | None], None]) -> None:
        disk, ended = self.world.disk, False
        if task_id in self._streams:
            count, restarts = self._streams[task_id]
        elif self.core.task(task_id) is None and task_id in disk.outcomes:
            count, restarts, ended = disk.outcomes[task_id].chunks, disk.outcomes[task_id].restarts, True
        else:
            count, restarts = 0, ()
        stands = standing(restarts, seen, first)
        pieces = []
        for made, piece in disk.chunks.get(task_id, [])[stands:count]:
            if made > len(restarts):
                self.world.note("chunks kept from a reader who does not know of a restart")
                break
            pieces.append(piece)
        if pieces or ended or stands < first:
            whole = stands + len(pieces) >= count
            show(Shown(stands, len(restarts), stands < first, tuple(pieces), ended and whole))
        else:
            waiting = self._readers.setdefault(task_id, [])
            waiting.append(partial(self._show, task_id, first, seen, show))
            del waiting[:-8]  # readers ask again

    def _wake_readers(self, task_id: TaskId) -> None:
        for look in self._readers.pop(task_id, ()):
            look()

    def _grade(self, task_id: TaskId, quality: float, reply: Reply) -> None:
        outcome = self.world.disk.outcomes.get(task_id)
        if outcome is not None and outcome.state is TaskState.SUCCEEDED:
            self._handle(GradeGiven(task_id, quality), reply)

    def _handle(self, event: Event, reply: Reply | None = None, acknowledge: Callable[[], None] | None = None) -> None:
        world = self.world
        world.observer.told(self, event)
        commands = self.core.handle(event, world.clock.now + self.ahead_s)
        if commands and not self._carry_out(commands, reply):
            return
        if acknowledge is not None:
            self._when_synced(acknowledge)
        if self.writer.appended >= self._next_snapshot:
            # As in production: the more there is to write, the more rarely.
            self._next_snapshot = self.writer.appended + max(world.snapshot_every, len(self.core.book.open))
            self.writer.offer(self.core.snapshot())
        world.observer.handled(self, event, commands)
        self._schedule_tick()

    def _carry_out(self, commands: list[Command], reply: Reply | None) -> bool:
        """What the core said, in order; False when the process ends between two effects."""
        world = self.world
        durable = [command for command in commands if command.durable]
        if durable:
            self.writer.append(durable)  # type: ignore[arg-type]
            if any(type(command) is ResolveTask for command in durable):
                self._when_synced(partial(self.core.admission.on_disk, self.core.admission.ended))
        for command in commands:
            if world.cuts_short(self):
                return False
            if type(command) is StartAttempt:
                do = partial(self._start_attempt, command, self._given(command), self._cursor(command))
                if command.waits or self._starts_late(command):
                    self._when_synced(do)
                else:
                    do()
            elif command.waits or type(command) is RefuseTask:
                self._when_synced(partial(self._perform, command, reply))
            else:
                self._perform(command, reply)
        return True

    def _starts_late(self, command: StartAttempt) -> bool:
        """An attempt that must not start before everything that led to it is on disk."""
        entry = self.core.book.open.get(command.task_id)
        return entry is not None and (entry.task.exclusive or bool(entry.steps) or entry.stream is not None)

    def _given(self, command: StartAttempt) -> Given:
        """Steps as they are now: what an attempt beside it records from here on is on disk later than this start."""
        return dict(self.core.book.open[command.task_id].steps) if command.task_id in self.core.book.open else {}

    def _cursor(self, command: StartAttempt) -> int:
        """How many chunks stand, as for steps."""
        entry = self.core.book.open.get(command.task_id)
        return entry.stream.count if entry is not None and entry.stream is not None else 0

    def _when_synced(self, do: Callable[[], None]) -> None:
        """Do it once everything appended so far is on disk; not at all if this epoch is over by then."""
        position = self.writer.appended
        if self.writer.synced < position:
            self._waiting.append((position, do))
        elif not self.alive or self.writer.fenced:
            self.fenced()
        else:
            do()

    def _release(self) -> None:
        waiting, writer = self._waiting, self.writer
        while waiting and waiting[0][0] <= writer.synced and self.alive:
            waiting.popleft()[1]()

    def _schedule_tick(self) -> None:
        due = self.core.next_due()
        if due is not None and (self._tick_at is None or due < self._tick_at):
            self._tick_at = due
            when = due - self.ahead_s
            while when + self.ahead_s < due:  # rounding: a tick must not come before what is due
                when = math.nextafter(when, math.inf)
            self.world.clock.at(when, partial(self._receive, partial(self._tick, due)))

    def _tick(self, at: float) -> None:
        if self._tick_at != at:
            return
        self._tick_at = None
        due = self.core.next_due()
        if due is not None and due <= self.now:
            self._handle(Ticked())
        else:
            self._schedule_tick()

    # ── performing ───────────────────────────────────────────────────────────────────────────────────────────────

    def _perform(self, command: Command, reply: Reply | None) -> None:
        kind = type(command)
        if type(command) is RequestEstimates:
            self.world.router.ask(self, command)
        elif type(command) is ResolveTask:
            for watcher in self._watchers.pop(command.outcome.task_id, ()):
                watcher(command.outcome)
            self._streams.pop(command.outcome.task_id, None)
            self._wake_readers(command.outcome.task_id)
        elif type(command) is RecordChunks:
            count, restarts = self._streams.get(command.task_id, (0, ()))
            restarts = (*restarts, command.first) if command.first < count else restarts
            self._streams[command.task_id] = command.first + len(command.digests) // DIGEST_BYTES, restarts
            self._wake_readers(command.task_id)
        elif type(command) is AnswerChunks:
            stream = self.streams.get((command.agent_id, command.incarnation))
            if stream is not None:
                stream.down(partial(stream.agent.chunks_answered, command))
        elif type(command) is AnswerStep:
            stream = self.streams.get((command.agent_id, command.incarnation))
            if stream is not None:
                stream.down(partial(stream.agent.step_answered, command))
        elif kind in TO_SEAT:
            self._to_seat(command)  # type: ignore[arg-type]
        elif type(command) is CancelAttempt:
            stream = self.streams.get((command.agent_id, command.incarnation))
            if stream is not None:
                token = command.task_id, command.attempt, command.epoch
                stream.down(partial(stream.agent.cancel, stream, token))
        elif type(command) is StartAgent:
            spec = self.core.book.specs[command.spec_name]
            self.world.start_agent(spec, command.agent_id, command.incarnation)
        elif type(command) is StopAgent:
            self.streams.pop((command.agent_id, command.incarnation), None)
            self.world.stop_agent(command.agent_id, command.incarnation)
        elif reply is not None and kind in (AcceptTask, KnownTask, RefuseTask, AddAgents, GradeTask):
            reply(command)
        elif reply is not None and type(command) is AnswerCancel:
            outcome = self.world.disk.outcomes.get(command.task_id)
            reply(AnswerCancel(command.task_id, outcome.state if outcome is not None else command.state))

    def _to_seat(self, command: ToSeat) -> None:
        stream = self.streams.get((command.agent_id, command.incarnation))
        if stream is not None:
            assert isinstance(stream.agent, StatefulProcess)
            stream.down(partial(stream.agent.take, stream, command))

    def _start_attempt(self, command: StartAttempt, steps: Given, cursor: int) -> None:
        if command.reason == "adopted":
            return
        entry = self.core.book.open.get(command.task_id)
        stream = self.streams.get((command.agent_id, command.incarnation))
        if entry is not None and stream is not None and is_running(entry, command.attempt, command.epoch):
            stream.down(partial(stream.agent.start, stream, command, entry.task, steps, cursor))
