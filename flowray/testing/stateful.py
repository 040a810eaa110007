"""A simulated process of a stateful agent, and what must hold of all of them.

What such a process must do for the core's promises to hold, in the simulation as in production:

- apply each input once, in order; what overtook another input (which happens only here) waits for it;
- take over a state only if it has none, or an older one;
- answer only when it is told that its outputs count, with the term of then, and keep each answer until a coordinator
  has acknowledged it; until then keep what it would have answered, as long as it may be wanted;
- say to each coordinator which input it has last, and for which term it is the active one.

The state is a digest of all inputs applied so far: a lost, repeated or misplaced one shows in every later output.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from functools import partial
from random import Random
from typing import TYPE_CHECKING

from msgspec import structs

from flowray.core.book import Book
from flowray.core.commands import (
    ActivateSeat,
    Command,
    DeliverInput,
    DemandSnapshot,
    DurableCommand,
    KeepSnapshot,
    LogInput,
    Promote,
    RecordMismatch,
    RestoreState,
    SkipInput,
    ToSeat,
)
from flowray.core.coordination import Coordination
from flowray.core.events import AgentReady, Event, OutputGiven, SnapshotMade, TaskSubmitted
from flowray.core.model import AgentId, AgentSpec, Failure, Outcome, Payload, Running, TaskId
from flowray.core.stateful import STANDBY
from flowray.core.states import TaskState
from flowray.errors import InvariantBroken
from flowray.testing.agent import RESEND_S, AgentProcess, Stream
from flowray.testing.faults import OddState, SnapshotFailure

if TYPE_CHECKING:
    from flowray.testing.world import World

EARLY = 256  # inputs that came before their predecessors and are kept


def fold(state: bytes, task_id: str) -> bytes:
    """The state after one more input."""
    return hashlib.blake2b(state + task_id.encode(), digest_size=8).digest()


def instance_of(agent_id: str) -> AgentId:
    """The instance that an agent has a seat of."""
    name, _, number = agent_id.rpartition("-")
    return AgentId(f"{name.removesuffix(STANDBY)}-{number}")


class StatefulProcess(AgentProcess):
    """One incarnation of one agent with a state."""

    def __init__(self, world: World, spec: AgentSpec, agent_id: AgentId, incarnation: int, factor: float) -> None:
        super().__init__(world, spec, agent_id, incarnation, factor)
        self.received = -1  # number of the last input taken; -1 without a state
        self.term = 0  # for which it is the active one
        self.state = b""
        self.seq = 0  # of the last input applied
        self._rng = Random(f"{world.seed}/{agent_id}#{incarnation}")
        odd = world.fault(OddState)
        self._odd = odd is not None and self._rng.random() < odd.ratio
        self._todo: deque[ToSeat] = deque()
        self._early: dict[int, DeliverInput] = {}
        self._answered = 0
        self._kept: dict[int, OutputGiven] = {}  # a standby's
        self._unsaid: dict[tuple[type, int], OutputGiven | SnapshotMade] = {}  # not acknowledged
        self._busy = self._again = False

    @property
    def idle(self) -> bool:
        """Nothing waits for it in vain that `core.check` would not find."""
        return False

    # ── connecting ───────────────────────────────────────────────────────────────────────────────────────────────

    def report(self, held: tuple[Running, ...]) -> AgentReady:
        return AgentReady(self.id, self.incarnation, held, self.received, self.term, self.node)

    def say_again(self, stream: Stream) -> None:
        super().say_again(stream)
        for said in list(self._unsaid.values()):
            self._say(stream, said)

    def take(self, stream: Stream, command: ToSeat) -> None:
        """A message for a seat."""
        self._do(partial(self._take, stream, command))

    def _take(self, stream: Stream, command: ToSeat) -> None:
        if not self._accepts(stream):
            return
        if type(command) is ActivateSeat:
            self._activate(command)
        elif type(command) is RestoreState:
            seq = command.snapshot.seq if command.snapshot is not None else 0
            if self.received < 0 or self.received < seq:
                self.received = seq
                self._todo.append(command)
        elif type(command) is DemandSnapshot:
            if command.seq == self.received:
                self._todo.append(command)
        elif type(command) is DeliverInput and command.seq > self.received and len(self._early) < EARLY:
            self.world.observer.stateful.delivered(self, command)
            self._early[command.after] = command
        while (following := self._early.pop(self.received, None)) is not None:
            self.received = following.seq
            self._answered = max(self._answered, following.answered)
            for seq in [seq for seq in self._kept if seq <= self._answered]:
                del self._kept[seq]
            self._todo.append(following)
        self._early = {after: one for after, one in self._early.items() if after > self.received}
        self._go()

    def _activate(self, command: ActivateSeat) -> None:
        if command.term <= self.term:
            return
        self.world.observer.stateful.activated(self, command)
        self.term = command.term
        kept, self._kept = self._kept, {}
        if kept:
            self.world.note("kept outputs released")
        for output in kept.values():
            self._keep_said(structs.replace(output, term=self.term))

    # ── applying ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _go(self) -> None:
        if self._busy or not self._todo:
            return
        self._busy = True
        command = self._todo.popleft()
        took_s = self.factor * min(1.0, self._rng.expovariate(50.0)) if type(command) is DeliverInput else 0.001
        self.world.clock.after(took_s, partial(self._do, partial(self._done, command, took_s)))

    def _done(self, command: ToSeat, took_s: float) -> None:
        self._busy = False
        if type(command) is RestoreState:
            self._restore(command)
        elif type(command) is DemandSnapshot:
            self._snapshot(command)
        elif type(command) is DeliverInput:
            if command.task.labels.get("kills"):
                self.world.crash(self)
                return
            self._apply(command, took_s)
        self._go()

    def _restore(self, command: RestoreState) -> None:
        self.state, self.seq = b"", 0
        if command.snapshot is not None:
            assert command.snapshot.value is not None and command.snapshot.value.data is not None
            self.state, self.seq = command.snapshot.value.data, command.snapshot.seq
            self.world.note("restored from a snapshot")
        self.world.observer.stateful.restored(self)

    def _apply(self, command: DeliverInput, took_s: float) -> None:
        self.state, self.seq = fold(self.state, command.task.id), command.seq
        if command.seq <= self._answered:
            return
        value: Payload | None = Payload(data=self.state, size_bytes=len(self.state))
        failure = None
        if command.task.labels.get("fails"):
            value, failure = None, Failure(kind="application", type="ValueError", message=self.state.hex())
        output = OutputGiven(self.id, self.incarnation, self.term, command.seq, command.task.id, value, failure, took_s)
        if self.term:
            self._keep_said(output)
        else:
            self._kept[command.seq] = output

    def _snapshot(self, command: DemandSnapshot) -> None:
        failing = self.world.fault(SnapshotFailure)
        if failing is not None and self._rng.random() < failing.ratio:
            failure = Failure(kind="application", type="ValueError", message="no snapshot")
            self._keep_said(SnapshotMade(self.id, self.incarnation, self.term, command.seq, failure=failure))
            return
        value = Payload(data=self.state, size_bytes=len(self.state)) if self.term else None
        digest = "odd" if self._odd and not self.term else self.state.hex()
        self._keep_said(SnapshotMade(self.id, self.incarnation, self.term, command.seq, digest, value))

    # ── saying ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _keep_said(self, said: OutputGiven | SnapshotMade) -> None:
        self._unsaid[type(said), said.seq] = said
        if self.stream is not None:
            self._say(self.stream, said)
        if not self._again:
            self._again = True
            self.world.clock.after(RESEND_S, partial(self._do, self._say_all))

    def _say(self, stream: Stream, said: OutputGiven | SnapshotMade) -> None:
        stream.up(partial(stream.coordinator.finished, said, partial(self._heard, stream, said)))

    def _heard(self, stream: Stream, said: OutputGiven | SnapshotMade) -> None:
        """At the coordinator: everything that it led to is on disk."""
        self.world.observer.stateful.acknowledged(said)
        stream.down(partial(self._do, partial(self._forget_said, said)))

    def _forget_said(self, said: OutputGiven | SnapshotMade) -> None:
        self._unsaid.pop((type(said), said.seq), None)

    def _say_all(self) -> None:
        self._again = bool(self._unsaid)
        if self._again:
            self.world.clock.after(RESEND_S, partial(self._do, self._say_all))
            if self.stream is not None:
                self.say_again(self.stream)


class StatefulJudge:
    """Invariant 12: what is applied is what the journal numbers, once and in order, and one process answers."""

    def __init__(self, world: World, book: Book) -> None:
        self._world = world
        self._book = book  # of what is on disk
        self._inputs: dict[AgentId, dict[int, TaskId]] = {}  # ever numbered
        self._numbers: dict[TaskId, tuple[AgentId, int]] = {}
        self._skipped: dict[AgentId, set[int]] = {}
        self._states: dict[AgentId, list[bytes]] = {}  # after each number; as far as asked for
        self._terms: dict[tuple[AgentId, int], tuple[str, int]] = {}  # (instance, term) -> the process
        self._given: dict[tuple[int, TaskId], OutputGiven] = {}  # (epoch, task) -> what its outcome was made of
        self._answered: dict[AgentId, int] = {}  # the highest number whose output is on disk
        self._sought: dict[TaskId, None] = {}  # ended without an output, with a number above that

    def is_numbered(self, task_id: TaskId) -> bool:
        """Has this task a number, on disk?"""
        return task_id in self._numbers

    def written(self, command: DurableCommand) -> None:
        """A command is on disk, and the book does not have it yet."""
        note = self._world.note
        if type(command) is LogInput:
            self._log(command)
        elif type(command) is Promote:
            inbox = self._book.inboxes[command.agent_id]
            _hold(command.term == inbox.term + 1, f"{command.agent_id}: term {command.term} after {inbox.term}")
            self._terms[command.agent_id, command.term] = command.seat, command.seat_incarnation
            if command.term > 1:
                note("promoted with open inputs" if inbox.unanswered else "promoted")
        elif type(command) is KeepSnapshot:
            self._keep(command)
        elif type(command) is SkipInput:
            self._skipped.setdefault(command.agent_id, set()).add(command.seq)
            del self._states.setdefault(command.agent_id, [b""])[command.seq :]
            note("input left out")
        elif type(command) is RecordMismatch:
            note("mismatch found")

    def _log(self, command: LogInput) -> None:
        inputs = self._inputs.setdefault(command.agent_id, {})
        last = next(reversed(inputs), 0)
        if command.seq != last + 1:
            raise _broken(f"{command.agent_id} numbers {command.task_id} {command.seq} after {last}")
        if command.task_id in self._numbers:
            raise _broken(f"{command.task_id} is numbered twice")
        inputs[command.seq] = command.task_id
        self._numbers[command.task_id] = command.agent_id, command.seq

    def _keep(self, command: KeepSnapshot) -> None:
        name, snapshot = command.agent_id, command.snapshot
        data = snapshot.value.data if snapshot.value is not None else None
        right = data == self.state_after(name, snapshot.seq)
        _hold(right, f"{name}: the snapshot after {snapshot.seq} is another state")
        early = [task_id for task_id, seq in self._book.inboxes[name].unanswered.items() if seq <= snapshot.seq]
        _hold(not early, f"{name}: the snapshot after {snapshot.seq} comes before the outputs of {early}")
        self._world.note("snapshot kept")

    def resolved(self, outcome: Outcome, epoch: int) -> None:
        """A task has its outcome, on disk."""
        if outcome.task_id not in self._numbers:
            return
        name, seq = self._numbers[outcome.task_id]
        kind = outcome.failure.kind if outcome.failure is not None else ""
        _hold(outcome.state is not TaskState.CANCELLED, f"{outcome.task_id} has a number and was cancelled")
        if outcome.state is TaskState.EXPIRED:
            self._world.note("expired with its number")
        elif kind == "no_agent" and seq < self._answered.get(name, 0):
            told = outcome.failure.message if outcome.failure is not None else ""
            _hold("its input was applied" in told, f"{outcome.task_id} does not say that it was applied: {told}")
        elif kind in ("poison", "no_agent"):
            self._sought[outcome.task_id] = None
        else:
            self._answered[name] = max(seq, self._answered.get(name, 0))
            said = outcome.value.data if outcome.value is not None else None
            if outcome.failure is not None:
                said = bytes.fromhex(outcome.failure.message)
            right = said == self.state_after(name, seq)
            if not right:
                raise _broken(f"the output of {outcome.task_id}, input {seq} of {name}, is of another state")
            event = self._given.pop((epoch, outcome.task_id))
            term = self._book.inboxes[name].term
            there = event.term == term and self._terms.get((name, term)) == (event.agent_id, event.incarnation)
            if not there:
                where = f"{event.agent_id}#{event.incarnation} in term {event.term}"
                raise _broken(f"an output of {where} counts in {term}")

    def state_after(self, name: AgentId, seq: int) -> bytes:
        """By the journal alone."""
        states, skipped = self._states.setdefault(name, [b""]), self._skipped.get(name, set())
        inputs = self._inputs.get(name, {})
        while len(states) <= seq:
            number = len(states)
            if number not in inputs:
                raise _broken(f"{name} has no input {number} on disk")
            states.append(states[-1] if number in skipped else fold(states[-1], inputs[number]))
        return states[seq]

    # ── processes ────────────────────────────────────────────────────────────────────────────────────────────────

    def delivered(self, process: StatefulProcess, command: DeliverInput) -> None:
        """A process is given an input."""
        name = instance_of(process.id)
        on_disk = self._inputs.get(name, {}).get(command.seq) == command.task.id
        if not on_disk:
            raise _broken(f"{process.id} is given {command.task.id} as input {command.seq}, which is not on disk")

    def restored(self, process: StatefulProcess) -> None:
        """A process has taken a state over."""
        right = process.state == self.state_after(instance_of(process.id), process.seq)
        _hold(right, f"{process.id}#{process.incarnation} restored another state than that after {process.seq}")

    def activated(self, process: StatefulProcess, command: ActivateSeat) -> None:
        """A process hears that its outputs count."""
        found = self._terms.get((instance_of(process.id), command.term))
        here = process.id, process.incarnation
        _hold(found == here, f"{here} is active in term {command.term}, which is of {found} on disk")

    def acknowledged(self, said: OutputGiven | SnapshotMade) -> None:
        """A process may forget this."""
        if type(said) is not OutputGiven or said.task_id not in self._numbers:
            return
        inbox = self._book.inboxes[instance_of(said.agent_id)]
        counts = (inbox.term, inbox.seat) == (said.term, said.agent_id)
        waited_for = counts and said.task_id in inbox.unanswered
        if waited_for:
            raise _broken(f"the output of {said.task_id} was acknowledged and is not on disk")

    def told(self, core: Coordination, epoch: int, event: Event) -> None:
        """The core is about to be told this."""
        if type(event) is OutputGiven:
            waited_for = core.book.inboxes[instance_of(event.agent_id)].unanswered.get(event.task_id)
            if waited_for == event.seq:  # of those told, the last one before its outcome is what that is made of
                self._given[epoch, event.task_id] = event

    def handled(self, core: Coordination, event: Event, commands: Sequence[Command]) -> None:
        """The core has been told this and answered that."""
        note = self._world.note
        if type(event) is OutputGiven:
            if event.term < core.book.inboxes[instance_of(event.agent_id)].term:
                note("output of an earlier term")
        elif type(event) is SnapshotMade:
            kept = any(type(one) is KeepSnapshot for one in commands)
            if not kept and event.term and event.term < core.book.inboxes[instance_of(event.agent_id)].term:
                note("snapshot raced with a loss")
        elif type(event) is TaskSubmitted and core.stateful.has(event.task):
            waits = any(len(one.lane) and one.active is not None for one in core.stateful.instances())
            if waits:
                note("input waits for a number")

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────

    def finish(self, core: Coordination) -> None:
        """Faults have stopped and everything had its time."""
        for task_id in self._sought:
            name, seq = self._numbers[task_id]
            left_out = seq in self._skipped.get(name, ())
            _hold(left_out, f"{task_id} ended without an output and is not left out of {name}")
        for instance in core.stateful.instances():
            inbox = instance.inbox
            last = next(reversed(self._inputs.get(inbox.agent_id, {})), 0)
            _hold(inbox.next_seq == last + 1, f"{inbox.agent_id}: {inbox.next_seq} is next, {last} is on disk")
            known = instance.active is not None
            _hold(not (known and inbox.inputs), f"{inbox.agent_id}: inputs {list(inbox.inputs)[:5]} in no snapshot")
            for seat in instance.seats.values():
                process = self._world.processes[seat.agent_id, seat.incarnation]
                assert isinstance(process, StatefulProcess)
                if seat.position >= 0:
                    same = process.state == self.state_after(inbox.agent_id, last)
                    _hold(same, f"{seat.agent_id}#{seat.incarnation} ends with another state than the journal's")


def _hold(condition: bool, what: str) -> None:
    if not condition:
        raise _broken(what)


def _broken(what: str) -> InvariantBroken:
    return InvariantBroken(f"12: {what}")
