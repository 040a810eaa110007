"""What a stateful agent is to its author: a plain class with `apply`, `snapshot` and `restore`.

    @fr.agent(standby="warm", snapshot_every=100)
    class Ledger:
        def __init__(self) -> None:
            self.total = 0

        def apply(self, task: fr.Task) -> int:
            self.total += task.payload
            return self.total

        def snapshot(self) -> int:
            return self.total

        def restore(self, state: int) -> None:
            self.total = state

`apply` must come to the same whoever applies the same inputs in the same order: no clock, no randomness, no reading or
writing outside the object. `apply(self, task, moment)` is given what it may use instead (`Moment`). What it raises is
the task's failure, and what it changed before that stays changed: check first, then change. `snapshot` returns plain
data (None, bool, int, float, str, bytes, lists, and dicts with str keys), `restore` takes it back in a new object.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flowray.errors import ConfigError

STANDBYS = ("cold", "warm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What `apply` may know besides its input: the same wherever, and however often, the input is applied."""

    agent_id: str  # the instance
    seq: int  # number of the input, from 1
    at_utc: float  # when it was given that number, in seconds

    def random(self) -> random.Random:
        """A source of random numbers of this input's own."""
        return random.Random(f"{self.agent_id}/{self.seq}")


def is_stateful(target: Callable[..., Any]) -> bool:
    """Does this class keep a state? One with `run` is an agent like any other, whatever else it has."""
    applies = inspect.isclass(target) and callable(getattr(target, "apply", None))
    return applies and not callable(getattr(target, "run", None))


def check_stateful(target: Callable[..., Any], *, standby: str, snapshot_every: int, snapshot_every_s: float) -> None:
    """Raise ConfigError unless a class is either no stateful one, and has no such options, or can be used as one."""
    name = getattr(target, "__qualname__", repr(target))
    if not is_stateful(target):
        options = {"standby": standby, "snapshot_every": snapshot_every, "snapshot_every_s": snapshot_every_s}
        for option, value in options.items():
            if value:
                raise ConfigError(
                    option, f"{name} is no stateful agent", "give it apply, snapshot and restore instead of run"
                )
        return
    if standby and standby not in STANDBYS:
        raise ConfigError("standby", f"must be one of {', '.join(STANDBYS)}, got {standby!r}")
    if isinstance(snapshot_every, bool) or not isinstance(snapshot_every, int) or snapshot_every < 0:
        raise ConfigError("snapshot_every", f"must be a whole number of inputs, got {snapshot_every!r}")
    number = isinstance(snapshot_every_s, int | float) and not isinstance(snapshot_every_s, bool)
    if not number or not 0 <= snapshot_every_s < float("inf"):
        raise ConfigError("snapshot_every_s", f"must be seconds, got {snapshot_every_s!r}")
    for other in ("on_message", "verify"):
        if callable(getattr(target, other, None)):
            raise ConfigError(name, f"has {other} and apply: what keeps a state takes inputs and nothing else")
    for method, least, most, shape in (
        ("apply", 1, 2, "apply(self, task) or apply(self, task, moment)"),
        ("snapshot", 0, 0, "snapshot(self)"),
        ("restore", 1, 1, "restore(self, state)"),
    ):
        found = getattr(target, method, None)
        if not callable(found):
            raise ConfigError(name, f"a stateful agent needs a method {shape}")
        if inspect.iscoroutinefunction(found):
            raise ConfigError(f"{name}.{method}", "must not be async: inputs are applied one after the other")
        arguments = list(inspect.signature(found).parameters.values())[1:]
        positional = [p for p in arguments if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        required = [p for p in arguments if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        catch_all = any(p.kind is p.VAR_POSITIONAL for p in arguments)
        if len(required) > most or (len(positional) < least and not catch_all):
            raise ConfigError(f"{name}.{method}", f"must be {shape}")


def wants_moment(apply: Callable[..., Any]) -> bool:
    """Does a bound `apply` take the moment as its second argument?"""
    arguments = inspect.signature(apply).parameters.values()
    positional = [p for p in arguments if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(positional) >= 2 or any(p.kind is p.VAR_POSITIONAL for p in arguments)
