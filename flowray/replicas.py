"""A stateful agent's object, in whatever process: inputs in, outputs and snapshots out. And a rehearsal without any.

outputs = rehearse(Ledger, [5, 7, -3])
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgspec

from flowray.agents import Task, describe
from flowray.errors import ConfigError, PayloadError
from flowray.stateful import Moment, check_stateful, is_stateful, wants_moment
from flowray.values import plain_bytes


class State(NamedTuple):
    """What `snapshot` returned, and what tells it from another."""

    value: Any
    digest: str  # equal for equal states: of the bytes with the keys of dicts in order


class Replica:
    """One object, and how many inputs it has. Not for several threads."""

    def __init__(self, made: Any, agent_id: str) -> None:
        self._made = made
        self._agent_id = agent_id
        self._with_moment = wants_moment(made.apply)
        self.seq = 0  # of the last input applied, or of the snapshot restored

    def apply(self, seq: int, task: Task, at_utc: float) -> Any:
        """Apply an input. Raises what the class raises; the input counts as applied all the same."""
        self.seq = seq
        if self._with_moment:
            return self._made.apply(task, Moment(agent_id=self._agent_id, seq=seq, at_utc=at_utc))
        return self._made.apply(task)

    def snapshot(self) -> State:
        """The state as plain data. Raises what the class raises; PayloadError when it is not plain."""
        value = self._made.snapshot()
        return State(value, hashlib.blake2b(plain_bytes(value, "snapshot"), digest_size=16).hexdigest())

    def restore(self, seq: int, value: Any) -> None:
        """Take over the state after an input. Only for a new object."""
        self._made.restore(value)
        self.seq = seq


def rehearse(target: Callable[[], Any], inputs: Iterable[Any], *, agent_id: str = "rehearsal-0") -> list[Any]:
    """Apply inputs to two objects, of which one is restored from a snapshot before each: the outputs, in order.

    An input is a `flowray.Task`, the prompt of one when it is a str, or else the payload of one. What `apply` raises
    stands among the outputs, as the exception.

    Raises:
        ConfigError: `target` is no stateful agent, or the two have different states, or outputs as far as these are
            plain data: `apply` is not deterministic, or `snapshot` and `restore` leave something out.
        PayloadError: a snapshot is not plain data.
    """
    if not is_stateful(target):
        raise ConfigError(getattr(target, "__qualname__", repr(target)), "is no class with apply, snapshot and restore")
    described = describe(target)
    check_stateful(
        target,
        standby=described.standby,
        snapshot_every=described.snapshot_every,
        snapshot_every_s=described.snapshot_every_s,
    )
    one = Replica(target(), agent_id)
    outputs = []
    for seq, given in enumerate(inputs, start=1):
        task = given if isinstance(given, Task) else _task(seq, given)
        before = one.snapshot()
        other = Replica(target(), agent_id)
        other.restore(seq - 1, msgspec.msgpack.decode(msgspec.msgpack.encode(before.value)))
        output = _applied(one, seq, task)
        if _differ(output, _applied(other, seq, task)) or one.snapshot().digest != other.snapshot().digest:
            problem = (
                f"input {seq} has another output, or leads to another state, in an object restored right before it"
            )
            raise ConfigError(f"{target.__qualname__}.apply", problem, "see flowray.stateful for what it must not do")
        outputs.append(output)
    return outputs


def _differ(one: Any, other: Any) -> bool:
    try:
        return plain_bytes(one, "output") != plain_bytes(other, "output")
    except PayloadError:  # an exception, or an object: whether two of those are equal only their author knows
        return type(one) is not type(other)


def _task(seq: int, given: Any) -> Task:
    if isinstance(given, str):
        return Task(id=f"input-{seq}", prompt=given)
    return Task(id=f"input-{seq}", payload=given)


def _applied(replica: Replica, seq: int, task: Task) -> Any:
    try:
        return replica.apply(seq, task, float(seq))
    except Exception as error:  # noqa: BLE001 - what the class raises is its answer
        return error
