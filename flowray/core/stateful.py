"""Stateful agents: which process is active, who gets which input, when a snapshot is due, and whose outputs count.

An instance is one state, and the inputs that made it (`flowray.core.inboxes`). Its processes sit on seats: agents of
its class and, with a warm standby, of the class that stands by for it. One is active. Every process that has the state
is given every input in order, once the input's number is on disk; the active one answers, a standby keeps its outputs.

    active lost ▶ Promote (the seat that is furthest) ▶ ActivateSeat ▶ it answers what was not answered
    a seat up   ▶ RestoreState (the last snapshot) ▶ DeliverInput (all since), as a standby or as the active process

A term is the time between two promotions. Outputs carry the term, and only those of the current one count; so a process
that was given up, and does not know it, changes nothing. What it says would be the same: it has the same inputs.

A snapshot is demanded of all processes after the same input. The active one's is kept, with the digest of its bytes;
a standby whose digest differs is not trusted any more. A snapshot counts only once all outputs before it are here:
whoever starts from it could not give them again. An input whose process dies on it again and again is left out; by then
nobody's output has followed from it, and every process that may have applied it is ended.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from msgspec import Struct, structs

from flowray.core.commands import (
    ActivateSeat,
    DeliverInput,
    DemandSnapshot,
    KeepSnapshot,
    LogInput,
    Promote,
    RecordMismatch,
    RestoreState,
    SkipInput,
    StopAgent,
)
from flowray.core.events import AgentReady, AttemptFinished, OutputGiven, SnapshotMade, StateRefused
from flowray.core.inboxes import Inbox
from flowray.core.model import AgentId, AgentSpec, Failure, StateSnapshot, Task, TaskId
from flowray.core.queueing import Lane, LaneKey
from flowray.core.states import AgentState, TaskState
from flowray.errors import ConfigError

if TYPE_CHECKING:
    from flowray.core.book import Entry
    from flowray.core.coordination import Coordination
    from flowray.core.registry import Agent, AgentClass

STANDBY = ".standby"  # what the name of a class of standbys ends with
_ENDED = (AgentState.BROKEN, AgentState.STOPPED)


class StatefulPolicy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of what is kept for one stateful agent."""

    max_inputs: int = 10_000  # since the last snapshot; more wait until the next one is on disk
    max_bytes: int = 64 << 20  # that these take, roughly
    window: int = 256  # inputs with a number and without an outcome; more wait, and can be cancelled
    mismatches: int = 2  # after so many standbys with another state, an instance has no warm one any more

    def __post_init__(self) -> None:
        for name in ("max_inputs", "max_bytes", "window", "mismatches"):
            if getattr(self, name) < 1:
                raise ConfigError(f"stateful.{name}", f"must be at least 1, got {getattr(self, name)}")


def standby_of(spec: AgentSpec) -> AgentSpec | None:
    """The class of the standbys of a class; None where it wants none."""
    if spec.stateful is None or spec.stateful.standby != "warm" or spec.stateful.of:
        return None
    stateful = structs.replace(spec.stateful, of=spec.name)
    return structs.replace(spec, name=spec.name + STANDBY, capabilities=(), stateful=stateful)


def other_seat(agent_id: str, spec: AgentSpec) -> str:
    """The agent that has the other seat of the same instance; "" for what is not stateful."""
    if spec.stateful is None:
        return ""
    name, _, number = agent_id.rpartition("-")
    return f"{spec.stateful.of or name + STANDBY}-{number}"


def _seated_at(agent_id: AgentId) -> AgentId:
    """The instance that an agent of a stateful class has a seat of."""
    name, _, number = agent_id.rpartition("-")
    return AgentId(f"{name.removesuffix(STANDBY)}-{number}")


class Seat:
    """A living process of an instance. Mutable."""

    __slots__ = ("agent_id", "incarnation", "position")

    def __init__(self, agent_id: AgentId, incarnation: int, position: int) -> None:
        self.agent_id = agent_id
        self.incarnation = incarnation
        self.position = position  # number of the last input that it was given; -1 while it has no state


class Instance:
    """The live side of one inbox. Mutable."""

    __slots__ = ("inbox", "kills", "lane", "mark", "said", "seats")

    def __init__(self, inbox: Inbox) -> None:
        self.inbox = inbox
        self.lane = Lane(LaneKey("", inbox.agent_id, ()))  # tasks that have no number yet
        self.seats: dict[AgentId, Seat] = {}
        self.mark = 0  # a snapshot after this input has been demanded; 0 for none
        self.said: dict[AgentId, tuple[int, str]] = {}  # standby -> (mark, digest), as long as the active one is slower
        self.kills: dict[int, int] = {}  # input -> active processes that died with it next, in this epoch

    @property
    def active(self) -> Seat | None:
        """The process whose outputs count, while it is there."""
        seat = self.seats.get(self.inbox.seat)
        return seat if seat is not None and seat.incarnation == self.inbox.seat_incarnation else None


class Stateful:
    """A part of Coordination: all of its stateful agents."""

    __slots__ = ("_core", "_instances")

    def __init__(self, core: Coordination) -> None:
        self._core = core
        self._instances: dict[AgentId, Instance] = {}

    def has(self, task: Task) -> bool:
        """Is this a task for a stateful agent?"""
        return bool(task.agent) and self._core.book.inboxes.count(task.agent) > 0

    def instances(self) -> list[Instance]:
        """All of them."""
        return list(self._instances.values())

    def instances_of(self, agent_ids: Iterable[AgentId]) -> list[Instance]:
        """Of these agents, each once."""
        if not self._instances:
            return []
        found: dict[AgentId, Instance] = {}
        for agent_id in agent_ids:
            instance = self._instances.get(_seated_at(agent_id))
            if instance is not None:
                found[instance.inbox.agent_id] = instance
        return list(found.values())

    def holding(self, task_id: TaskId) -> int:
        """How many instances have this task wait for a number: one or none, or something is wrong."""
        instances = self._instances
        return len([one for one in instances.values() if task_id in one.lane]) if instances else 0

    def is_logged(self, entry: Entry) -> bool:
        """Has this task a number already?"""
        return entry.state is TaskState.RUNNING and self.has(entry.task)

    # ── tasks ────────────────────────────────────────────────────────────────────────────────────────────────────

    def why_not(self, task: Task) -> str:
        """Why this task cannot be an input; "" where it can."""
        for name, wrong in (
            ("fallback", bool(task.fallback)),
            ("exclusive", task.exclusive),
            ("least_quality", task.least_quality is not None),
            ("attempt_timeout_s", task.attempt_timeout_s is not None),
        ):
            if wrong:
                return f"{name} cannot be had for an input of {task.agent!r}, which is stateful: leave it out"
        one = self._core.registry.named(task.agent)
        if one is None:
            return f"no agents called {task.agent!r} are there yet, only their state: add them first"
        lacking = sorted(set(task.needs) - one.capabilities)
        if lacking or task.tier not in ("", one.spec.tier):
            return (
                f"{task.agent!r} has no {lacking[0]!r}" if lacking else f"{task.agent!r} is of tier {one.spec.tier!r}"
            )
        instance = self._instance(self._core.book.inboxes.instance_of(task))
        return self._why_hopeless(instance) if self._is_hopeless(instance) else ""

    def arrive(self, entry: Entry) -> None:
        """A task was accepted, or found waiting: it gets a number when there is room."""
        instance = self._instance(self._core.book.inboxes.instance_of(entry.task))
        instance.lane.push(entry.task, entry.seq)
        self._log_more(instance)

    def recovered(self, entry: Entry) -> None:
        """A task waited when an earlier coordinator ended."""
        instance = self._instance(self._core.book.inboxes.instance_of(entry.task))
        instance.lane.push(entry.task, entry.seq)

    def leave(self, entry: Entry) -> bool:
        """Take a task away that waits for its number; False where it is none of that kind."""
        if not self.has(entry.task):
            return False
        self._instance(self._core.book.inboxes.instance_of(entry.task)).lane.remove(entry.task.id)
        return True

    def ended(self, task: Task) -> None:
        """A task has its outcome: there may be room for another."""
        self._log_more(self._instance(self._core.book.inboxes.instance_of(task)))

    @staticmethod
    def _seat_of(inbox: Inbox) -> tuple[str, int]:
        return inbox.seat, inbox.seat_incarnation

    def has_room(self, instance: Instance) -> bool:
        """May another task have a number?"""
        inbox = instance.inbox
        policy = self._core.policy.stateful
        full = len(inbox.inputs) >= policy.max_inputs or inbox.size_bytes >= policy.max_bytes
        return not full and len(inbox.unanswered) < policy.window

    def _log_more(self, instance: Instance) -> None:
        core, inbox = self._core, instance.inbox
        while self.has_room(instance) and (head := instance.lane.head()) is not None:
            instance.lane.pop()
            core.commit(LogInput(head[2], inbox.agent_id, inbox.next_seq, core.now))
            for seat in instance.seats.values():
                if seat.position >= 0:
                    self._deliver(instance, seat)
        self._look_at_snapshot(instance)

    # ── processes ────────────────────────────────────────────────────────────────────────────────────────────────

    def recover(self) -> None:
        """All instances that the book has, without a process; what they need is looked at with the next tick."""
        for inbox in self._core.book.inboxes.all():
            self._instance(inbox.agent_id)
            self._core.timers.set("inbox", inbox.agent_id, self._core.now)

    def look(self, key: str) -> None:
        """An instance was recovered: there may be tasks that can have a number."""
        self._log_more(self._instances[AgentId(key)])

    def ready(self, agent: Agent, event: AgentReady) -> None:
        """A process is up, or says again what it has."""
        instance = self._instance_of(agent)
        if instance is None:
            return
        seat = Seat(agent.id, agent.incarnation, event.received)
        spare = instance.inbox.mismatches >= self._core.policy.stateful.mismatches
        if spare and seat.position >= 0 and (agent.id, agent.incarnation) != self._seat_of(instance.inbox):
            self._discard(instance, seat, "its class is not deterministic: its state is not trusted")
            return
        if seat.position >= 0 and seat.incarnation <= instance.inbox.barred.get(agent.id, 0):
            self._discard(instance, seat, "it may have applied an input that is left out")
            return
        if seat.position > instance.inbox.last:
            # Only where the journal is an older copy: an input is given to nobody before it is on disk.
            self._discard(instance, seat, "it has inputs that the journal does not have")
            return
        instance.seats[agent.id] = seat
        if instance.active is seat:
            self._settle(instance, seat)
        else:
            self._elect(instance, "the first process" if not instance.inbox.term else "the active process is gone")
            if instance.active is not seat:
                self._settle(instance, seat)
        self._look_at_snapshot(instance)

    def gone(self, agent: Agent, *, certain: bool, cause: str) -> None:
        """A process is gone, or given up: `certain` where it was seen dead."""
        instance = self._instance_of(agent)
        seat = instance.seats.pop(agent.id, None) if instance is not None else None
        if instance is None:
            return
        instance.said.pop(agent.id, None)
        inbox = instance.inbox
        if (agent.id, agent.incarnation) != self._seat_of(inbox):
            return
        instance.mark = 0
        self._look_at_snapshot(instance)
        if seat is not None and certain:
            self._blame(instance, seat)
        elif seat is not None:
            self._core.emit(StopAgent(agent.id, agent.incarnation, "another process takes its place"))
        self._elect(instance, cause)

    def hopeless(self, one: AgentClass) -> None:
        """A class lost an agent for good: end what waits for an instance that no process will ever have."""
        stateful = one.spec.stateful
        if stateful is None:
            return
        core, name = self._core, stateful.of or one.spec.name
        for number in range(core.book.inboxes.count(name)):
            instance = self._instance(AgentId(f"{name}-{number}"))
            if not self._is_hopeless(instance):
                continue
            failure = Failure(kind="no_agent", message=self._why_hopeless(instance))
            waiting = sorted(instance.lane.ids())
            for task_id in waiting:  # all, before the first one's end makes room
                instance.lane.remove(task_id)
            for task_id in waiting:
                core.give_up(core.book.open[task_id], failure)
            for task_id, seq in list(instance.inbox.unanswered.items()):
                if seq > instance.inbox.applied:
                    core.give_up(core.book.open[task_id], failure)
                    self._leave_out(instance, seq)
                else:  # what came of a later one tells of a state that has it
                    message = f"{failure.message}; its input was applied, and what came of it is lost"
                    core.give_up(core.book.open[task_id], structs.replace(failure, message=message))
            self._look_at_snapshot(instance)

    def _elect(self, instance: Instance, why: str) -> None:
        """Make the process that is furthest the active one, unless there is one, or may be in a moment."""
        core, inbox = self._core, instance.inbox
        agent = core.registry.agent(inbox.seat)
        there = agent is not None and agent.state in (AgentState.STARTING, AgentState.READY, AgentState.DRAINING)
        if (there and agent is not None and agent.incarnation == inbox.seat_incarnation) or not instance.seats:
            return
        best = max(instance.seats.values(), key=lambda seat: seat.position)
        core.commit(Promote(inbox.agent_id, inbox.term + 1, best.agent_id, best.incarnation, core.now, why))
        instance.mark = 0
        self._settle(instance, best)
        self._look_at_snapshot(instance)

    def _settle(self, instance: Instance, seat: Seat) -> None:
        """Give a process the state, what it lacks of the inputs, and its part."""
        core, inbox = self._core, instance.inbox
        active = instance.active is seat
        if not active and inbox.mismatches >= core.policy.stateful.mismatches:
            return  # it waits without a state, and restores one when it is needed
        if seat.position < inbox.base or seat.position < 0:
            core.emit(RestoreState(seat.agent_id, seat.incarnation, inbox.snapshot))
            seat.position = inbox.base
        if active:
            core.emit(ActivateSeat(seat.agent_id, seat.incarnation, inbox.term))
        self._deliver(instance, seat)

    def _deliver(self, instance: Instance, seat: Seat) -> None:
        inbox = instance.inbox
        answered = next(iter(inbox.unanswered.values()), inbox.next_seq) - 1
        for seq in range(seat.position + 1, inbox.next_seq):
            logged = inbox.inputs.get(seq)
            if logged is None:
                continue  # left out for good
            given = DeliverInput(seat.agent_id, seat.incarnation, seq, seat.position, logged.task, logged.at, answered)
            self._core.emit(given)
            seat.position = seq
            if seq == instance.mark:
                self._core.emit(DemandSnapshot(seat.agent_id, seat.incarnation, seq))

    def _discard(self, instance: Instance, seat: Seat, why: str) -> None:
        """End a process whose state is not what it must be; another takes its seat."""
        core, agent = self._core, self._core.registry.agent(seat.agent_id)
        instance.seats.pop(seat.agent_id, None)
        core.emit(StopAgent(seat.agent_id, seat.incarnation, why))
        if agent is not None and agent.incarnation == seat.incarnation:
            core.lives.lose_quietly(agent, why)

    def refused(self, event: StateRefused) -> None:
        """A process has not the state that it must have: another takes its seat, and is asked the same."""
        instance = self._seated(event.agent_id)
        seat = instance.seats.get(event.agent_id) if instance is not None else None
        agent = self._core.registry.agent(event.agent_id)
        if instance is None or seat is None or agent is None or seat.incarnation != event.incarnation:
            return
        agent.failure = event.failure
        self._discard(instance, seat, f"it cannot have its state: {event.failure.type}: {event.failure.message}")

    # ── inputs that nobody survives ──────────────────────────────────────────────────────────────────────────────

    def _blame(self, instance: Instance, seat: Seat) -> None:
        """The active process died: the input that it had next may be why."""
        core, inbox = self._core, instance.inbox
        head = next((seq for seq in inbox.inputs if seq > inbox.applied), 0)
        if not head or seat.position < head:
            return
        kills = instance.kills.get(head, 0) + 1
        instance.kills = {head: kills}
        if kills < core.policy.retry.poison_kills:
            return
        task_id = inbox.inputs[head].task.id
        self._leave_out(instance, head)
        for other in list(instance.seats.values()):
            if other.position >= head:
                self._discard(instance, other, f"it may have applied input {head}, which is left out")
        if task_id in inbox.unanswered:
            message = f"{kills} processes died on it; it is left out, the state is without it"
            core.give_up(core.book.open[task_id], Failure(kind="poison", message=message))
        self._log_more(instance)

    def _leave_out(self, instance: Instance, seq: int) -> None:
        """Nobody applies this input any more. Who may have is known by incarnation, also where it is not seen now."""
        name, _, number = instance.inbox.agent_id.rpartition("-")
        seats = (AgentId(f"{one}-{number}") for one in (name, name + STANDBY))
        without = [seat.agent_id for seat in instance.seats.values() if seat.position < seq]
        known = self._core.book.incarnations
        barred: dict[str, int] = {seat: known[seat] for seat in seats if seat in known and seat not in without}
        self._core.commit(SkipInput(instance.inbox.agent_id, seq, self._core.now, barred))

    # ── outputs ──────────────────────────────────────────────────────────────────────────────────────────────────

    def output(self, event: OutputGiven) -> None:
        """An input was applied. Nothing comes of what is not of the current term."""
        instance = self._seated(event.agent_id)
        if instance is None or event.term != instance.inbox.term or event.agent_id != instance.inbox.seat:
            return
        if instance.inbox.unanswered.get(event.task_id) != event.seq:
            return
        core, entry = self._core, self._core.book.open[event.task_id]
        answer = AttemptFinished(event.task_id, 1, entry.epoch, event.agent_id, event.value, event.failure, event.run_s)
        state = TaskState.SUCCEEDED if event.failure is None else TaskState.DEAD
        core.resolve(entry, state, answer=answer, failure=event.failure)

    # ── snapshots ────────────────────────────────────────────────────────────────────────────────────────────────

    def snapshot_due(self, key: str) -> None:
        """The inputs since the last snapshot are old enough, or the answer to a demand is overdue."""
        instance = self._instances[AgentId(key)]
        instance.mark = 0
        self._look_at_snapshot(instance, due=True)

    def _look_at_snapshot(self, instance: Instance, *, due: bool = False) -> None:
        """Demand a snapshot where one is due; have a timer while somebody can take one that is not yet."""
        core, inbox = self._core, instance.inbox
        spec = core.registry.named(inbox.agent_id.rpartition("-")[0])
        stateful, active = spec.spec.stateful if spec is not None else None, instance.active
        if stateful is None or active is None or not inbox.inputs:
            core.timers.clear("snapshot", inbox.agent_id)
            instance.mark = 0
            return
        if due or ("snapshot", inbox.agent_id) not in core.timers:
            core.timers.set("snapshot", inbox.agent_id, core.now + stateful.snapshot_every_s)
        if instance.mark:
            return
        policy = core.policy.stateful
        full = len(inbox.inputs) >= policy.max_inputs or inbox.size_bytes >= policy.max_bytes
        if not (due or full or len(inbox.inputs) >= stateful.snapshot_every):
            return
        instance.mark = inbox.last
        instance.said.clear()
        for seat in instance.seats.values():
            if seat.position == instance.mark:
                core.emit(DemandSnapshot(seat.agent_id, seat.incarnation, seat.position))

    def snapshot_made(self, event: SnapshotMade) -> None:
        """A process says what its state is: kept where it is the active one, else compared."""
        instance = self._seated(event.agent_id)
        seat = instance.seats.get(event.agent_id) if instance is not None else None
        if instance is None or seat is None or seat.incarnation != event.incarnation or event.failure is not None:
            return
        core, inbox = self._core, instance.inbox
        if instance.active is not seat:
            if event.seq == inbox.base:
                self._compare(instance, seat, event.digest)
            elif event.seq == instance.mark:
                instance.said[seat.agent_id] = (event.seq, event.digest)
            return
        first = next(iter(inbox.unanswered.values()), inbox.next_seq)
        if event.term != inbox.term or event.seq != instance.mark or event.seq >= first:
            return
        instance.mark = 0
        core.timers.clear("snapshot", inbox.agent_id)
        kept = StateSnapshot(event.seq, event.digest, event.value)
        core.commit(KeepSnapshot(inbox.agent_id, inbox.term, kept, core.now))
        said, instance.said = instance.said, {}
        for agent_id, (seq, digest) in said.items():
            if seq == event.seq and agent_id in instance.seats:
                self._compare(instance, instance.seats[agent_id], digest)
        self._log_more(instance)

    def _compare(self, instance: Instance, seat: Seat, digest: str) -> None:
        """After the same inputs two processes must have the same state."""
        core, inbox = self._core, instance.inbox
        assert inbox.snapshot is not None
        if digest == inbox.snapshot.digest:
            return
        core.commit(RecordMismatch(inbox.agent_id, seat.agent_id, inbox.base, core.now))
        self._discard(
            instance,
            seat,
            f"its state after input {inbox.base} is not that of {inbox.seat}: `apply` is not deterministic",
        )

    # ── finding ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _instance(self, agent_id: AgentId) -> Instance:
        found = self._instances.get(agent_id)
        if found is None:
            found = self._instances[agent_id] = Instance(self._core.book.inboxes[agent_id])
        return found

    def _instance_of(self, agent: Agent) -> Instance | None:
        return self._seated(agent.id) if agent.agent_class.spec.stateful is not None else None

    def _seated(self, agent_id: AgentId) -> Instance | None:
        """The instance that this agent has a seat of."""
        found = _seated_at(agent_id)
        return self._instance(found) if self._core.book.inboxes.get(found) is not None else None

    def _agents(self, instance: Instance) -> list[Agent]:
        name, _, number = instance.inbox.agent_id.rpartition("-")
        found = (self._core.registry.agent(AgentId(f"{one}-{number}")) for one in (name, name + STANDBY))
        return [agent for agent in found if agent is not None]

    def _is_hopeless(self, instance: Instance) -> bool:
        return all(agent.state in _ENDED for agent in self._agents(instance))

    def _why_hopeless(self, instance: Instance) -> str:
        for agent in self._agents(instance):
            if agent.failure is not None:
                return f"{agent.id} does not start: {agent.failure.type}: {agent.failure.message}"
        return f"no process of {instance.inbox.agent_id} will come"
