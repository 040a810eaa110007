"""What users' own agents do in a simulation: their `run` is really called; how long it takes is up to a model."""

from __future__ import annotations

import asyncio
import inspect
import pickle
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

import msgspec

from flowray import agents
from flowray.agents import AgentDescription, Context, wants_context
from flowray.core.commands import StartAttempt
from flowray.core.model import Failure, Payload, Task
from flowray.errors import PayloadError, RetryableError
from flowray.testing.agent import AgentProcess, Run
from flowray.testing.clock import Distribution

ServiceTime = float | Callable[[agents.Task], float] | Distribution
_RETRYABLE = (RetryableError, ConnectionError, TimeoutError)
_SCALARS = (str, int, float, bool, type(None), bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One class of agents."""

    make: Callable[..., Any]  # the class or function
    description: AgentDescription
    options: Mapping[str, Any]
    service_s: ServiceTime | None  # None for the simulation's


class UserWork:
    """Calls agents. Every incarnation of an agent is a new object, as every process would be."""

    def __init__(self, seed: int, service_s: ServiceTime) -> None:
        self.targets: dict[str, Target] = {}  # by class name
        self._rng = Random(f"{seed}/service")
        self._service_s = service_s
        self._made: dict[tuple[str, int], Callable[..., Any]] = {}  # (agent, incarnation) -> its run

    def construct(self, process: AgentProcess) -> Failure | None:
        target = self.targets[process.spec.name]
        try:
            made: Any = target.make(**target.options) if inspect.isclass(target.make) else target.make
        except Exception as error:  # noqa: BLE001 - a constructor's error, of whatever type, is a failed start
            return _failure(error, target)
        run = made.run if inspect.isclass(target.make) else made
        self._made[process.id, process.incarnation] = run
        return None

    def begin(self, process: AgentProcess, command: StartAttempt, task: Task) -> Run:
        target = self.targets[process.spec.name]
        seen = agents.Task(
            id=task.id,
            prompt=task.prompt,
            payload=decode_value(task.payload),
            needs=task.needs,
            priority=task.priority,
            attempt=command.attempt,
            labels=task.labels,
        )
        ctx = Context(
            agent_id=process.id, tier=process.spec.tier, attempt=command.attempt, remaining_s=command.remaining_s
        )
        duration_s = self._draw(target, seen)
        try:
            run = self._made[process.id, process.incarnation]
            answer = run(seen, ctx) if wants_context(run) else run(seen)
            value = asyncio.run(_awaited(answer)) if inspect.isawaitable(answer) else answer
            return Run(duration_s=duration_s, value=encode_value(value, "result"))
        except Exception as error:  # noqa: BLE001 - an agent's error, of whatever type, is the attempt's failure
            return Run(duration_s=duration_s, failure=_failure(error, target))

    def _draw(self, target: Target, task: agents.Task) -> float:
        service_s = self._service_s if target.service_s is None else target.service_s
        if isinstance(service_s, int | float):
            return float(service_s)
        return service_s(task) if callable(service_s) else service_s.draw(self._rng)


async def _awaited(answer: Any) -> Any:
    return await answer


def _failure(error: Exception, target: Target) -> Failure:
    retryable = isinstance(error, (*_RETRYABLE, *target.description.retry_on))
    text = "".join(traceback.format_exception(error))
    kind = type(error).__name__
    return Failure(kind="application", type=kind, message=str(error), traceback=text, retryable=retryable)


def encode_value(value: Any, field: str) -> Payload | None:
    """A value as a payload; None stays None. Raises PayloadError, naming `field`, when it cannot be pickled."""
    if value is None:
        return None
    if _is_plain(value):
        data, codec = msgspec.msgpack.encode(value), "msgpack"
    else:
        try:
            data, codec = pickle.dumps(value, protocol=5), "pickle"
        except Exception as error:
            kind = type(value).__name__
            raise PayloadError(field, f"a {kind} that cannot be pickled: {type(error).__name__}: {error}") from error
    return Payload(codec=codec, data=data, size_bytes=len(data))


def decode_value(payload: Payload | None) -> Any:
    """The inverse of `encode_value`."""
    if payload is None or payload.data is None:
        return None
    return msgspec.msgpack.decode(payload.data) if payload.codec == "msgpack" else pickle.loads(payload.data)


def _is_plain(value: Any) -> bool:
    """Would msgpack give back exactly this?"""
    kind = type(value)
    if kind is int:
        return bool(-(1 << 63) <= value < (1 << 64))
    if kind in _SCALARS:
        return True
    if kind is list:
        return all(_is_plain(item) for item in value)
    return kind is dict and all(type(key) is str and _is_plain(item) for key, item in value.items())
