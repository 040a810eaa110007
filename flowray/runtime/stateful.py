"""A stateful agent in its process: one object, inputs in order, outputs kept until they are wanted.

One thread applies; the process's loop takes messages and sends answers, as for any agent. A standby keeps what it would
have answered until it hears that the outcome is on disk, or that it is the active process now. What a process cannot
take (a payload that is gone, a state that `restore` refuses) is said: it must not go on with another state.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time

from msgspec import structs

from flowray import replicas
from flowray.agents import describe
from flowray.attempts import failure_of, task_for
from flowray.core.commands import ActivateSeat, DeliverInput, DemandSnapshot, RestoreState, ToSeat
from flowray.core.model import Failure
from flowray.errors import PayloadError
from flowray.replicas import Replica
from flowray.runtime.agent import AgentHost, Surroundings, load_target
from flowray.runtime.messages import Activate, Begin, Held, Input, Output, Refused, Restore, Snapshotted, TakeSnapshot
from flowray.stateful import check_stateful

_OUT_OF_ORDER = 74  # exit status of a process that lacks an input
_HOST = frozenset({__file__, replicas.__file__})  # whose frames are not the user's business


def message_of(command: ToSeat) -> Restore | Activate | Input | TakeSnapshot:
    """What the process is told."""
    if isinstance(command, RestoreState):
        snapshot = command.snapshot
        if snapshot is None:
            return Restore(command.agent_id, 0)
        return Restore(command.agent_id, snapshot.seq, snapshot.value)
    if isinstance(command, ActivateSeat):
        return Activate(command.agent_id, command.term)
    if isinstance(command, DemandSnapshot):
        return TakeSnapshot(command.agent_id, command.seq)
    assert isinstance(command, DeliverInput)
    return Input(command.agent_id, command.seq, command.after, command.task, command.at, command.answered)


class StatefulHost(AgentHost):
    """One process of an instance, as its agent."""

    def __init__(self, message: Begin, around: Surroundings) -> None:
        super().__init__(message, around)
        stateful = message.spec.stateful
        assert stateful is not None
        number = message.agent_id.rpartition("-")[2]
        self._instance = f"{stateful.of or message.spec.name}-{number}"
        self._received = -1  # number of the last input that was taken; -1 without a state. Only on the loop
        self._taken: queue.SimpleQueue[Restore | Input | TakeSnapshot | None] = queue.SimpleQueue()
        self._giving = threading.Lock()  # guards what follows
        self._term = 0  # for which this is the active process; 0 as a standby
        self._answered = 0  # outputs up to this number nobody wants any more
        self._kept: dict[int, Output] = {}  # a standby's outputs
        self._refused = False
        self._with_context = False

    # ── called on the process's loop ─────────────────────────────────────────────────────────────────────────────

    def tell(self, message: Restore | Activate | Input | TakeSnapshot) -> None:
        """Take one message. What came before, from this coordinator or an earlier one, changes nothing."""
        if isinstance(message, Activate):
            self._activate(message.term)
        elif isinstance(message, Restore):
            if self._received < message.seq or self._received < 0:
                self._received = message.seq
                self._taken.put(message)
        elif isinstance(message, TakeSnapshot):
            if message.seq == self._received:
                self._taken.put(message)
        elif message.seq > self._received:
            if message.after != self._received:
                # Links keep order, and a new coordinator begins where this process says that it is. Without the input
                # in between it would have another state than all others.
                print(  # noqa: T201
                    f"flowray: {self._begin.agent_id} has input {self._received} and is given {message.seq} after "
                    f"{message.after}: it ends",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(_OUT_OF_ORDER)
            self._received = message.seq
            with self._giving:
                self._answered = max(self._answered, message.answered)
                for seq in [seq for seq in self._kept if seq <= self._answered]:
                    del self._kept[seq]
            self._taken.put(message)

    def _activate(self, term: int) -> None:
        with self._giving:
            if term <= self._term:
                return
            self._term = term
            kept, self._kept = self._kept, {}
            for output in kept.values():
                self._add(structs.replace(output, term=term))

    def retire(self) -> None:
        """See AgentHost.retire."""
        super().retire()
        self._taken.put(None)

    # ── called from elsewhere ────────────────────────────────────────────────────────────────────────────────────

    def attend(self, epoch: int) -> Held:
        """See AgentHost.attend."""
        return structs.replace(super().attend(epoch), received=self._received, term=self._term)

    def construct(self) -> Failure | None:
        """Load and construct it. A failure is an answer, not an exception."""
        spec = self._begin.spec
        try:
            target = load_target(spec)
            self._description = describe(target)
            check_stateful(target, standby="", snapshot_every=0, snapshot_every_s=0.0)
            self._make = lambda: Replica(target(**spec.options), self._instance)
            self._replica = self._make()
        except Exception as error:  # noqa: BLE001 - the user's constructor may raise anything
            return failure_of(error, (), _HOST)
        threading.Thread(target=self._work_in_order, daemon=True, name="stateful").start()
        return None

    # ── its thread ───────────────────────────────────────────────────────────────────────────────────────────────

    def _work_in_order(self) -> None:
        while (message := self._taken.get()) is not None:
            if self._refused:
                continue
            try:
                if isinstance(message, Restore):
                    self._restore(message)
                elif isinstance(message, Input):
                    self._apply(message)
                else:
                    self._snapshot(message)
            except BaseException as error:  # noqa: BLE001 - of `restore`, or of the disk: whatever it is, it is said
                self._refused = True
                failure = failure_of(error, (), _HOST)
                print(f"flowray: {self._begin.agent_id} gives up: {failure.traceback}", file=sys.stderr, flush=True)  # noqa: T201
                self._add(Refused(failure))

    def _restore(self, message: Restore) -> None:
        if self._replica.seq:
            self._replica = self._make()
        if message.seq:
            self._replica.restore(message.seq, self._desk.unpack(message.value))

    def _apply(self, message: Input) -> None:
        task = task_for(message.task, 1, self._desk.unpack(message.task.payload))
        value, failure, began = None, None, time.monotonic()
        try:
            result = self._replica.apply(message.seq, task, message.at)
        except BaseException as error:  # noqa: BLE001 - user code, SystemExit included
            failure = failure_of(error, (), _HOST)
        run_s = time.monotonic() - began
        if message.seq <= self._answered:
            return
        if failure is None:
            try:
                value = self._desk.pack(result, "result")
            except PayloadError as error:
                failure = failure_of(error, (), _HOST)
        output = Output(message.seq, self._term, message.task.id, value, failure, run_s)
        with self._giving:
            if self._term:
                self._add(structs.replace(output, term=self._term))
            elif message.seq > self._answered:
                self._kept[message.seq] = output

    def _snapshot(self, message: TakeSnapshot) -> None:
        term = self._term
        try:
            state = self._replica.snapshot()
            value = self._desk.pack(state.value, "snapshot") if term else None
        except Exception as error:  # noqa: BLE001 - user code, or the disk: it is demanded again
            failure = failure_of(error, (), _HOST)
            print(f"flowray: no snapshot of {self._begin.agent_id}: {failure.traceback}", file=sys.stderr, flush=True)  # noqa: T201
            self._add(Snapshotted(message.seq, term, failure=failure))
        else:
            self._add(Snapshotted(message.seq, term, state.digest, value))
