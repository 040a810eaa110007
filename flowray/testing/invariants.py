"""An outside observer of the whole simulated world: it looks only at the journal and at what callers were told.

It keeps its own book, made from nothing but what the disk has, and its own record of every promise. The numbers are
those of the reliability contract:

 1  every acknowledged task reaches exactly one terminal state
 2  one outcome, and it never changes
 3  nothing from a stale epoch, attempt or incarnation counts
 4  whoever is told anything can find it on disk
 5  an agent gets what it can do, and no more than it may hold
 7  one key, one task; another content is a conflict
 8  cancelled means cancelled
 9  expired only after the deadline, and ended in time
11  bounds hold; what was accepted is never shed
13  a reader is shown chunks 0..n without gap or repeat, or told which do not stand any more
12  a stateful agent applies each of its inputs once and in order, and one process answers (`flowray.testing.stateful`)
15  only legal arrows; recovery gives the live state
17  when the faults stop, everything ends
20  and nothing is left behind
T1  the time-line of the journal never goes back, whatever the clocks of machines do
P7  retries are bounded, and wait as long as they must
O3  the most urgent, then the oldest, goes first (where nobody routes: else, among those that wait for one class)
C1  at most two attempts of one task run at once, on two agents, only if it is idempotent, and within a budget
G1  only answers are graded, and a grade that was acknowledged stays or gives way to a newer one
S1  what a step came to is on disk before its attempt goes on, and never changes
S2  only running attempts record
S3  an attempt is given every step recorded before it, and no other
X1  attempts of an exclusive task do not overlap (what is stopped, as by `kill -STOP`, does not run)
S4  of a task's attempts a later one has a higher fence, and no two have the same
R1  whom a router's estimates chose could be chosen, with a known probability

S1 to S4 and X1 are judged by `flowray.testing.attempts`, R1 and what the order of events tells by `races`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

from flowray.core.book import STORY_LINES, Book, Entry
from flowray.core.commands import (
    AcceptTask,
    AddAgents,
    AnswerCancel,
    Command,
    DurableCommand,
    GradeTask,
    KnownTask,
    LogInput,
    RecordChunks,
    RecordStep,
    RefuseTask,
    RequeueTask,
    ResolveTask,
    StartAgent,
    StartAttempt,
    WakeTask,
)
from flowray.core.coordination import Coordination
from flowray.core.events import (
    AttemptFinished,
    Event,
    OutputGiven,
    SnapshotMade,
    TaskSubmitted,
)
from flowray.core.invariants import check_touched
from flowray.core.model import Outcome, Task, TaskId
from flowray.core.naming import class_of
from flowray.core.states import TaskState
from flowray.testing.attempts import AttemptObserver
from flowray.testing.chunks import ChunkObserver
from flowray.testing.comparing import same_books, touched, value_of
from flowray.testing.races import NOTED, Races
from flowray.testing.stateful import StatefulJudge
from flowray.testing.violations import Violation, hold

if TYPE_CHECKING:
    from flowray.testing.coordinator import CoordinatorProcess
    from flowray.testing.world import World

LATE_S = 1.0  # a task may end this long after its deadline or, if that is later, after a coordinator came back
CHECK_LEAST = 30  # events between two looks at the whole core, on average and at least
CHECK_SHARE = 3  # or as many as so many times its tasks and agents; what an event touched is looked at after each
COMPARED = 0.003  # share of the events after which the core is rebuilt from the journal and compared
_EPSILON = 1e-6
_REASONS_TO_DIE = frozenset({"application", "agent_lost", "quality", "timeout", "poison", "no_agent"})
_OF_STATES = frozenset({OutputGiven, SnapshotMade, TaskSubmitted})  # what the judge of stateful agents looks at
_NO_DRAWS = Random(0)  # a core that is compared and thrown away is asked for nothing


class Observer:
    """Judges as things happen. `thorough` checks the core after every event, not only as often as is cheap."""

    def __init__(self, world: World, *, thorough: bool) -> None:
        self.book = Book()
        self.accepted: dict[TaskId, int] = {}  # on disk -> the epoch that accepted it
        self.resolved: dict[TaskId, Outcome] = {}  # on disk
        self.acknowledged: dict[TaskId, None] = {}  # a caller was told that it is accepted
        self.graded: dict[TaskId, GradeTask] = {}  # on disk, the newest
        self.started: dict[tuple[str, int], None] = {}  # agent processes ever asked for
        self.chunks = ChunkObserver(world, Violation)
        self.stateful = StatefulJudge(world, self.book)
        self.attempts = AttemptObserver(world, self.book)
        self.races = Races(world, self.resolved)
        self._world = world
        self._thorough = thorough
        self._rng = Random(f"{world.seed}/observer")
        self._keys: dict[str, Task] = {}  # of accepted tasks
        self._lanes: dict[tuple[str, str, tuple[str, ...]], dict[TaskId, tuple[int, int]]] = {}
        self._holds: dict[str, int] = {}  # agent -> attempts that the book has there
        self._until_check = 0
        self._last_at = 0.0  # of what is on disk
        self._deadlines: dict[TaskId, float] = {}  # of accepted tasks
        self._starts: dict[str, list[float]] = {}  # agent -> when it was started, in this epoch and without an answer
        self.may_leave: set[tuple[str, int]] = set()  # agents that were asked to, and their incarnations
        self._starts_of = 0  # that epoch

    # ── what is written ──────────────────────────────────────────────────────────────────────────────────────────

    def written(self, epoch: int, group: Sequence[DurableCommand]) -> None:
        """A group is on disk."""
        newest = self._world.disk.epoch
        if epoch != newest:
            raise Violation("3", f"epoch {epoch} wrote to the journal of epoch {newest}")
        for command in group:
            at = command.outcome.resolved_at if type(command) is ResolveTask else command.at  # type: ignore[union-attr]
            if at < self._last_at:
                raise Violation("T1", f"the journal goes from {self._last_at} back to {at}: {command!r}")
            self._last_at = at
            if type(command) is AcceptTask:
                self._accept(command, epoch)
            elif type(command) is StartAttempt:
                self._start(command, epoch)
            elif type(command) is RequeueTask:
                self._requeue(command)
            elif type(command) is ResolveTask:
                self._resolve(command, epoch)
            elif type(command) is RecordStep:
                self.attempts.recorded(command)
                self._apply(command)
            elif type(command) is RecordChunks:
                self.chunks.written(command, self.book)
                self._apply(command)
            else:
                if type(command) is WakeTask:
                    early = self.book.open[command.task_id].not_before - command.at
                    if early > _EPSILON:
                        raise Violation("P7", f"{command.task_id} was tried again {early:.3f} s too early")
                elif type(command) is StartAgent:
                    highest = self.book.incarnations.get(command.agent_id, 0)
                    if command.incarnation <= highest:
                        raise Violation("3", f"incarnation {command.incarnation} after {highest}")
                    self._agent_start(command, epoch)
                elif type(command) is AddAgents:
                    self._starts.clear()
                elif type(command) is GradeTask:
                    outcome = self.resolved.get(command.task_id)
                    answered = outcome is not None and outcome.state is TaskState.SUCCEEDED
                    if not answered:
                        raise Violation("G1", f"{command.task_id} was graded and has no answer")
                    self.graded[command.task_id] = command
                elif type(command) is LogInput:
                    self._leave(command.task_id)
                self.stateful.written(command)
                self._apply(command)
                if type(command) is WakeTask:
                    self._wait(command.task_id)

    def _agent_start(self, command: StartAgent, epoch: int) -> None:
        """The first loss is made good at once, further ones within the window wait."""
        if epoch != self._starts_of:
            self._starts_of = epoch
            self._starts.clear()
        if (command.agent_id, command.incarnation - 1) in self.may_leave:  # no loss, or one that cannot be told apart
            self._starts.pop(command.agent_id, None)
        starts, policy = self._starts.setdefault(command.agent_id, []), self._world.policy.restart
        if len(starts) >= 2 and command.at - starts[-2] < policy.window_s:
            waited_s = command.at - starts[-1]
            enough = waited_s >= policy.delay_s - _EPSILON
            if not enough:
                raise Violation("P7", f"{command.agent_id} was started again after {waited_s} s, for the third time")
        starts.append(command.at)
        del starts[:-2]

    def _apply(self, command: DurableCommand) -> None:
        try:
            self.book.apply(command)
        except Exception as error:
            raise Violation("15", f"the journal has {command!r}, which cannot be: {error!r}") from error

    def _accept(self, command: AcceptTask, epoch: int) -> None:
        task = command.task
        if task.id in self.accepted:
            raise Violation("7", f"{task.id} was accepted twice")
        if task.key:
            owner = self._keys.get(task.key)
            if owner is not None:
                raise Violation("7", f"{task.id} and {owner.id if owner else ''} share the key {task.key}")
            self._keys[task.key] = task
        self.accepted[task.id] = epoch
        if task.deadline_s is not None:
            self._deadlines[task.id] = command.at + task.deadline_s
        self._apply(command)
        bound = self._world.policy.admission.max_open_tasks
        if len(self.book.open) > bound:
            raise Violation("11", f"{len(self.book.open)} tasks are open, {bound} are allowed")
        self._wait(task.id)

    def _wait(self, task_id: TaskId) -> None:
        entry = self.book.open[task_id]
        task = entry.task
        lane = self._lanes.setdefault((task.tier, task.agent, task.needs), {})
        lane[task_id] = (-task.priority, entry.seq)

    def _start(self, command: StartAttempt, epoch: int) -> None:
        entry = self.book.open.get(command.task_id)
        if entry is None:
            raise Violation("2", f"{command.task_id} was started and is not open")
        assert entry is not None
        task, name = entry.task, f"{command.task_id} attempt {command.attempt}"
        lane = self._lanes.setdefault((task.tier, task.agent, task.needs), {})
        adopted = command.reason == "adopted"
        if command.beside:
            self._join(command, entry, name)
        if adopted:
            if command.epoch >= epoch:
                raise Violation("3", f"{name} was adopted from epoch {command.epoch} in epoch {epoch}")
        else:
            routed = self._world.policy.routing.enabled  # then tasks wait for estimates, and for different classes
            # With fallbacks they do so as well: the last attempt of one waits for a class of its own.
            if not (routed or command.beside or any(self.book.open[other].task.fallback for other in lane)):
                best = min(lane.values(), default=None)
                if best != lane.get(task.id):
                    raise Violation("O3", f"{name} was started before {best}")
            if command.epoch != epoch:
                raise Violation("3", f"{name} was started for epoch {command.epoch} in epoch {epoch}")
        if command.attempt <= entry.attempts:
            raise Violation("3", f"{name} was started after attempt {entry.attempts}")
        if not adopted and (task.id in self._deadlines or command.remaining_s is not None):
            left_s = max(0.0, self._deadlines.get(task.id, math.inf) - command.at)
            told = command.remaining_s is not None and abs(command.remaining_s - left_s) <= _EPSILON
            if not told:
                raise Violation("9", f"{name} was told {command.remaining_s} s until its deadline, there are {left_s}")
        self.attempts.started(command, task, name)
        spec = self.book.specs[class_of(command.agent_id)]
        fits = set(task.needs) <= set(spec.capabilities) and task.tier in ("", spec.tier)
        fits = fits and task.agent in ("", spec.name)
        if command.choice.policy == "fallback" or adopted:
            fits = fits or task.fallback == spec.name
        if not fits:
            raise Violation("5", f"{name} went to {command.agent_id}, which cannot do it")
        lane.pop(task.id, None)
        self._apply(command)
        held = self._holds[command.agent_id] = self._holds.get(command.agent_id, 0) + 1
        placement = self._world.policy.placement
        bound = spec.slots + (placement.max_prefetch if placement.prefetch_s else 0)
        if not (held <= bound or adopted):
            raise Violation("5", f"{command.agent_id} holds {held} attempts, {bound} are allowed")

    def _join(self, command: StartAttempt, entry: Entry, name: str) -> None:
        """A second attempt beside one that runs."""
        allowed = entry.task.idempotent and not entry.task.exclusive
        if not allowed:
            raise Violation("C1", f"{name} runs beside another one, and running it twice may do harm")
        runs_on = [held.agent_id for held in entry.running()] if entry.state is TaskState.RUNNING else []
        if len(runs_on) != 1:
            raise Violation("C1", f"{name} was started beside the attempts on {runs_on}")
        if command.agent_id in runs_on:
            raise Violation("C1", f"{name} was started on {runs_on}, which is at it already")

    def _leave(self, task_id: TaskId) -> None:
        entry = self.book.open.get(task_id)
        if entry is None:
            raise Violation("2", f"{task_id} changed and is not open (ended: {task_id in self.resolved})")
        assert entry is not None
        if entry.state is TaskState.RUNNING:
            for held in entry.running():
                self._holds[held.agent_id] -= 1
                self._starts.pop(held.agent_id, None)  # an answer, maybe
        elif entry.state is TaskState.QUEUED:
            self._lanes[entry.task.tier, entry.task.agent, entry.task.needs].pop(task_id, None)

    def _requeue(self, command: RequeueTask) -> None:
        before = self.book.open.get(command.task_id)
        if command.arrow == "outlived" and before is not None:
            over = [held.agent_id for held in before.running() if held.attempt == command.attempt]
            if not (len(over) == 1 and before.extra is not None):
                raise Violation("C1", f"{command.task_id}: nothing outlives {command}")
            self._holds[over[0]] -= 1
            self._starts.pop(over[0], None)
        else:
            alone = before is None or before.extra is None
            if not alone:
                raise Violation("C1", f"{command.task_id} waits again while an attempt of it goes on")
            self._leave(command.task_id)
        self._apply(command)
        entry, retry = self.book.open[command.task_id], self._world.policy.retry
        name = command.task_id
        if command.arrow == "failed":
            retryable = command.failure is not None and command.failure.retryable
            if not retryable:
                raise Violation("P7", f"{name} is tried again after {command.failure}")
        if entry.failures >= entry.task.max_attempts:
            raise Violation("P7", f"{name} goes on after {entry.failures} failures")
        if entry.losses >= retry.max_losses:
            raise Violation("P7", f"{name} goes on after {entry.losses} losses")
        if entry.kills >= retry.poison_kills:
            raise Violation("P7", f"{name} goes on after killing {entry.kills} agents")
        if entry.state is TaskState.QUEUED:
            self._wait(command.task_id)

    def _resolve(self, command: ResolveTask, epoch: int) -> None:
        outcome = command.outcome
        name = outcome.task_id
        if name in self.resolved:
            raise Violation("2", f"{name} ended twice")
        self._leave(name)
        entry = self.book.open[name]
        answering: tuple[TaskId, int, int] | None = None
        self.stateful.resolved(outcome, epoch)
        if outcome.state is TaskState.SUCCEEDED and not self.stateful.is_numbered(name):
            where = (outcome.story[-1].attempt, outcome.agent_id)
            answered = [held for held in entry.running() if where == (held.attempt, held.agent_id)]
            if len(answered) != 1:
                raise Violation("3", f"{name}: {where} answered, which is not running")
            one = answered[0]
            answering = name, one.attempt, one.epoch
            token = value_of(name, one.attempt, one.epoch, one.agent_id, one.incarnation)
            data = outcome.value.data if outcome.value is not None else None
            if data is not None and data.startswith(b"answer|") and data != token:
                raise Violation("3", f"{name}: the value is {data!r}, the answering attempt's is {token!r}")
        if outcome.state is TaskState.DEAD:
            kind = outcome.failure.kind if outcome.failure is not None else ""
            if kind not in _REASONS_TO_DIE:
                raise Violation("8", f"{name} is a dead letter because of {kind!r}")
            over = entry.extra is None or kind in ("poison", "agent_lost")
            if not over:
                raise Violation("C1", f"{name} is a dead letter because of {kind!r} while {entry.running()} go on")
        deadline_at = self._deadlines.get(name)
        if outcome.state is TaskState.EXPIRED and deadline_at is None:
            raise Violation("9", f"{name} expired and has no deadline")
        if deadline_at is not None:
            late_s = outcome.resolved_at - deadline_at
            hold(
                outcome.state is not TaskState.EXPIRED or late_s >= -_EPSILON, "9", f"{name} expired {-late_s} s early"
            )
            late_s -= max(0.0, self._world.up_since(outcome.resolved_at, epoch) - deadline_at)
            if late_s > LATE_S:
                raise Violation("9", f"{name} ended {late_s:.3f} s after its deadline")
        told = outcome.choices == tuple(entry.choices)
        if len(entry.story) < STORY_LINES:  # a longer one has lost its middle
            told = told and outcome.story[:-1] == tuple(entry.story)
        if not told:
            raise Violation("15", f"{name} ended with another story than the journal tells: {outcome.story}")
        failures = entry.failures + (outcome.failure is not None and outcome.failure.kind in ("application", "quality"))
        if failures > entry.task.max_attempts:
            raise Violation("P7", f"{name} failed {failures} times")
        self._apply(command)
        self.resolved[name] = outcome
        self.chunks.resolved(outcome, answering)

    # ── what callers are told ────────────────────────────────────────────────────────────────────────────────────

    def answered(self, epoch: int, command: Command, task: Task | None = None) -> None:
        """A coordinator sends this to a caller, about the task that it submitted."""
        if type(command) is AcceptTask:
            if command.task.id not in self.accepted:
                raise Violation("4", f"{command.task.id} was acknowledged and is not on disk")
            self.acknowledged[command.task.id] = None
        elif type(command) is KnownTask:
            if command.task_id not in self.accepted:
                raise Violation("4", f"{command.task_id} is called known and is not on disk")
            if task is not None and command.task_id != task.id:
                owner = self._keys[task.key]
                same = (owner.id, owner.fingerprint) == (command.task_id, task.fingerprint)
                if not same:
                    raise Violation(
                        "7", f"{task.id} is called a repeat of {command.task_id} and asks for something else"
                    )
            self.acknowledged[command.task_id] = None
        elif type(command) is RefuseTask:
            taken = self.accepted.get(command.task_id)
            if taken not in (None, epoch):
                raise Violation("4", f"{command.task_id} was refused by epoch {epoch}, accepted by {taken}")
        elif type(command) is AnswerCancel:
            self._cancel_answered(command)
        elif type(command) is GradeTask:
            if command.task_id not in self.graded:
                raise Violation("4", f"a grade of {command.task_id} was acknowledged, not on disk")
        elif type(command) is AddAgents:
            name = command.spec.name
            if name not in self.book.specs:
                raise Violation("4", f"agents {name} were acknowledged and are not on disk")

    def _cancel_answered(self, command: AnswerCancel) -> None:
        outcome = self.resolved.get(command.task_id)
        if command.state is None:
            lost = command.task_id in self.acknowledged
            if lost:
                raise Violation("1", f"{command.task_id} is accepted and a cancel was answered with: no such task")
        elif command.state is TaskState.RUNNING:
            if not self.stateful.is_numbered(command.task_id):
                detail = f"a cancel of {command.task_id} was answered with running, and it has no number"
                raise Violation("8", detail)
        else:
            if outcome is None:
                raise Violation("4", f"cancel of {command.task_id} was answered and its end is not on disk")
            assert outcome is not None
            if outcome.state is not command.state:
                raise Violation("8", f"{command.task_id} is {outcome.state}, told {command.state}")

    def shown(self, task_id: TaskId, outcome: Outcome | None) -> None:
        """A coordinator sends this outcome to a caller; None: it knows no such task."""
        if outcome is None:
            if task_id in self.acknowledged:
                raise Violation("1", f"{task_id} was acknowledged and is unknown now")
        else:
            if task_id not in self.resolved:
                raise Violation("4", f"the outcome of {task_id} was shown and is not on disk")
            if self.resolved[task_id] != outcome:
                raise Violation("2", f"{task_id} was shown another outcome than is on disk")

    def acknowledged_answer(self, answer: AttemptFinished) -> None:
        """A coordinator tells an agent that it may forget this answer."""
        entry = self.book.open.get(answer.task_id)
        running = entry.running() if entry is not None and entry.state is TaskState.RUNNING else ()
        token = answer.agent_id, answer.attempt, answer.epoch
        if any((held.agent_id, held.attempt, held.epoch) == token for held in running):
            raise Violation("4", f"the answer to {answer.task_id} was acknowledged and is not on disk")

    # ── what the core does ───────────────────────────────────────────────────────────────────────────────────────

    def agent_started(self, agent_id: str, incarnation: int) -> None:
        """A process is asked for."""
        if (agent_id, incarnation) in self.started:
            raise Violation("3", f"{agent_id}#{incarnation} was started twice")
        self.started[agent_id, incarnation] = None

    def told(self, coordinator: CoordinatorProcess, event: Event) -> None:
        """The core is about to be told this."""
        self.races.told(coordinator, event)
        if type(event) is OutputGiven:
            self.stateful.told(coordinator.core, coordinator.epoch, event)

    def handled(self, coordinator: CoordinatorProcess, event: Event, commands: Sequence[Command]) -> None:
        """The core has been told this and answered that."""
        world = self._world
        world.trace.step(coordinator.epoch, event, commands)
        for command in commands:
            kind = type(command)
            if kind in NOTED:
                self.races.decided(coordinator.epoch, command)
        core = coordinator.core
        if type(event) in _OF_STATES:
            self.stateful.handled(core, event, commands)
        if type(event) is AttemptFinished:
            agent = core.registry.agent(event.agent_id)
            token = event.task_id, event.attempt, event.epoch
            leaked = agent is not None and token in agent.stopping
            if leaked:
                raise Violation("20", f"{event.agent_id} answered {token} and holds a slot for it all the same")
        self._until_check -= 1
        if self._thorough or self._until_check <= 0:
            usual = max(CHECK_LEAST, CHECK_SHARE * (len(core.book.open) + len(world.processes)))
            self._until_check = int(2 * usual * self._rng.random())
            core.check()
        else:
            check_touched(core, *touched(event, commands))
        if self._rng.random() < COMPARED:
            self.compare(coordinator)

    def compare(self, coordinator: CoordinatorProcess) -> None:
        """Recover from what the journal has and is about to have, and compare with what is in memory."""
        if coordinator.writer.fenced:
            return
        snapshot, commands = self._world.disk.recall()
        commands.extend(coordinator.writer.tail)
        core = coordinator.core
        now = core.now
        rebuilt = Coordination.recover(
            epoch=core.epoch + 1,
            rng=_NO_DRAWS,
            now=now,
            policy=core.policy,
            snapshot=snapshot,
            commands=commands,
        )
        rebuilt.check()
        if not same_books(rebuilt.book, core.book):
            raise Violation("15", "recovery gives another book than the live one")

    def recovered(self, coordinator: CoordinatorProcess) -> None:
        """A new coordinator stands on what the disk has."""
        coordinator.core.check()
        same = same_books(coordinator.core.book, self.book)
        if not same:
            raise Violation("15", "a new coordinator's book is not what the journal says")
        book = coordinator.core.book.open.values()
        if self._world.disk.snapshot is not None:
            self._world.note("recovered from a snapshot")
        if any(entry.state is TaskState.RUNNING for entry in book):
            self._world.note("recovered with running attempts")
        if any(entry.state is TaskState.BACKING_OFF for entry in book):
            self._world.note("recovered with back-offs")

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────

    def finish(self) -> None:
        """Faults have stopped and everything had its time."""
        leader = self._world.leader
        assert leader is not None
        for task_id in self.acknowledged:
            hold(task_id in self.resolved, "1", f"{task_id} was acknowledged and never ended")
        self.chunks.finish()
        hold(self._world.disk.grades == self.graded, "G1", "a grade that was on disk is not there, or is another one")
        core = leader.core
        core.check()
        hold(not core.book.open, "17", f"still open: {[(t, e.state.value) for t, e in core.book.open.items()][:5]}")
        hold(core.admission.open_tasks == 0 == core.admission.open_bytes, "20", "admission counts what is gone")
        hold(len(core.timers) == 0, "20", f"{len(core.timers)} timers of nothing")
        hold(not core.queue.waiting, "20", "tasks wait and none is open")
        for one in core.registry.classes():
            states = [agent.state.value for agent in one.agents]
            there = len(states) == one.spec.count and all(state in ("ready", "broken") for state in states)
            hold(there, "17", f"{one.spec.count} {one.spec.name} are wanted, there are: {states}")
        for agent in core.registry.agents():
            hold(not agent.held, "20", f"{agent.id} holds {agent.outstanding} and {agent.stopping} at the end")
        wanted = {(agent.id, agent.incarnation) for agent in core.registry.agents() if agent.state.value == "ready"}
        there_are = set(self._world.processes)
        hold(wanted == there_are, "20", f"processes {sorted(there_are ^ wanted)[:5]} are on one side only")
        self.stateful.finish(core)
