"""What must hold of stateful agents after every event; part of `Coordination.check()`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from flowray.core.states import AgentState, TaskState
from flowray.errors import InvariantBroken

if TYPE_CHECKING:
    from flowray.core.coordination import Coordination
    from flowray.core.stateful import Instance

_RUNNING = TaskState.RUNNING  # looked up once, as in `flowray.core.invariants`
_SEATED = (AgentState.READY, AgentState.DRAINING)


def check_stateful(core: Coordination) -> None:
    """Raise InvariantBroken, with what is wrong, if the state of an instance contradicts itself."""
    instances = core.stateful.instances()
    check_instances(core, instances)
    numbered = sum(len(instance.inbox.unanswered) for instance in instances)
    running = sum(core.stateful.is_logged(entry) for entry in core.book.open.values())
    _hold(running == numbered, f"{running} inputs are open, {numbered} are in an inbox")


def check_instances(core: Coordination, instances: Iterable[Instance]) -> None:
    """The same for these instances alone."""
    for instance in instances:
        _check_log(core, instance)
        _check_seats(core, instance)


def _hold(condition: bool, what: str) -> None:
    if not condition:
        raise InvariantBroken(what)


def _check_log(core: Coordination, instance: Instance) -> None:
    inbox, policy, timers = instance.inbox, core.policy.stateful, core.timers.live
    name, seqs = inbox.agent_id, list(inbox.inputs)
    if seqs != sorted(seqs):
        raise InvariantBroken(f"{name}: inputs out of order")
    if seqs and not (inbox.base < seqs[0] and seqs[-1] < inbox.next_seq):
        raise InvariantBroken(f"{name}: inputs {seqs[0]} to {seqs[-1]} between {inbox.base} and {inbox.next_seq}")
    size = sum([logged.task.size_bytes for logged in inbox.inputs.values()])
    if size != inbox.size_bytes:
        raise InvariantBroken(f"{name}: {inbox.size_bytes} bytes counted, {size} held")
    if len(seqs) > policy.max_inputs:
        raise InvariantBroken(f"{name}: {len(seqs)} inputs since the last snapshot")
    if len(inbox.unanswered) > policy.window:
        raise InvariantBroken(f"{name}: {len(inbox.unanswered)} inputs without an outcome")
    for task_id, seq in inbox.unanswered.items():
        logged, entry = inbox.inputs.get(seq), core.book.open.get(task_id)
        if logged is None or logged.task.id != task_id:
            raise InvariantBroken(f"{name}: input {seq} of {task_id} is not there")
        if entry is None or entry.state is not _RUNNING:
            raise InvariantBroken(f"{name}: {task_id} does not run")
    if len(instance.lane) and core.stateful.has_room(instance) and ("inbox", name) not in timers:
        raise InvariantBroken(f"{name}: {len(instance.lane)} tasks wait for a number, and there is room")
    timed = ("snapshot", name) in timers
    due = bool(seqs) and instance.active is not None
    if timed != due:
        raise InvariantBroken(f"{name}: snapshot timer {timed}, {len(seqs)} inputs, active {instance.active}")


def _check_seats(core: Coordination, instance: Instance) -> None:
    inbox = instance.inbox
    for seat in instance.seats.values():
        agent = core.registry.agent(seat.agent_id)
        if agent is None or agent.incarnation != seat.incarnation or agent.state not in _SEATED:
            raise InvariantBroken(f"{seat.agent_id}#{seat.incarnation} has a seat and is not there")
        if seat.position not in (-1, inbox.last):
            raise InvariantBroken(f"{seat.agent_id} was given inputs up to {seat.position}, there are {inbox.last}")
    if instance.active is not None:
        _hold(instance.active.position >= 0, f"{inbox.agent_id} is active without a state")
    elif instance.seats:
        agent = core.registry.agent(inbox.seat)
        awaited = agent is not None and agent.state is AgentState.STARTING
        awaited = awaited and agent is not None and agent.incarnation == inbox.seat_incarnation
        _hold(awaited, f"{inbox.agent_id} has processes and none is active")
