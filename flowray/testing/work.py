"""What users' own agents do in a simulation: their `run` is really called; how long it takes is up to a model."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterable, Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from flowray import agents
from flowray.agents import AgentDescription, Context, verified_quality, wants_context
from flowray.attempts import failure_of, failure_of_verify, task_for
from flowray.core.commands import StartAttempt
from flowray.core.model import Failure, Payload, Task
from flowray.testing.agent import AgentProcess, Given, Run
from flowray.testing.clock import Distribution
from flowray.values import decode_value, encode_value

ServiceTime = float | Callable[[agents.Task], float] | Distribution
_HOST = frozenset({__file__})  # whose frames are not the user's business


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
        self._made: dict[tuple[str, int], tuple[Callable[..., Any], Any]] = {}  # (agent, incarnation) -> run, verify

    def construct(self, process: AgentProcess) -> Failure | None:
        target = self.targets[process.spec.name]
        try:
            made: Any = target.make(**target.options) if inspect.isclass(target.make) else target.make
        except Exception as error:  # noqa: BLE001 - a constructor's error, of whatever type, is a failed start
            return failure_of(error, target.description.retry_on, _HOST)
        run = made.run if inspect.isclass(target.make) else made
        verify = getattr(made, "verify", None) if inspect.isclass(target.make) else None
        self._made[process.id, process.incarnation] = run, verify
        return None

    def begin(self, process: AgentProcess, command: StartAttempt, task: Task, steps: Given) -> Run:
        target = self.targets[process.spec.name]
        seen = task_for(task, command.attempt, unpack(task.payload))
        taken = Taken(steps)
        ctx = Context(
            agent_id=process.id,
            tier=process.spec.tier,
            attempt=command.attempt,
            remaining_s=command.remaining_s,
            task_id=task.id,
            epoch=command.epoch,
            recorder=lambda: taken,
        )
        duration_s = self._draw(target, seen)
        value: Payload | None = None
        failure: Failure | None = None
        quality: float | None = None
        verifying = False
        try:
            run, verify = self._made[process.id, process.incarnation]
            answer = _drained(_finished(run(seen, ctx) if wants_context(run) else run(seen)), ctx.emitted)
            if verifying := verify is not None and ctx.quality is None:
                quality = verified_quality(_finished(verify(seen, answer)))
                verifying = False
            value = pack(answer, "result")
        except Exception as error:  # noqa: BLE001 - an agent's error, of whatever type, is the attempt's failure
            failure = failure_of(error, target.description.retry_on, _HOST)
            failure = failure_of_verify(failure) if verifying else failure
        return Run(
            duration_s=duration_s,
            value=value,
            failure=failure,
            quality=quality if ctx.quality is None else ctx.quality,
            cost_usd=ctx.cost_usd,
            steps=tuple(taken.new),
            chunks=tuple(encode_value(chunk, "chunk") for chunk in ctx.emitted),
        )

    def _draw(self, target: Target, task: agents.Task) -> float:
        service_s = self._service_s if target.service_s is None else target.service_s
        if isinstance(service_s, int | float):
            return float(service_s)
        return service_s(task) if callable(service_s) else service_s.draw(self._rng)


def _finished(answer: Any) -> Any:
    return asyncio.run(_awaited(answer)) if inspect.isawaitable(answer) else answer


def _drained(answer: Any, emitted: list[Any]) -> Any:
    """The answer of a generator, sync or async, whose chunks go into the list; any other answer as it is."""
    if inspect.isasyncgen(answer):
        asyncio.run(_collected(answer, emitted))
        return emitted[-1] if emitted else None
    if not inspect.isgenerator(answer):
        return answer
    while True:
        try:
            emitted.append(next(answer))
        except StopIteration as end:
            return end.value


async def _collected(yielding: AsyncIterable[Any], emitted: list[Any]) -> None:
    emitted.extend([chunk async for chunk in yielding])


class Taken:
    """The steps of one attempt (`flowray.steps.Recorder`).

    User code runs in no time here, when its attempt begins: what it took is recorded afterwards, one step after the
    other, while virtual time passes.
    """

    def __init__(self, given: Given) -> None:
        self._given = given
        self.new: list[tuple[str, Payload | None]] = []

    def __len__(self) -> int:
        return len(self._given) + len(self.new)

    def __contains__(self, name: str) -> bool:
        return name in self._given

    def load(self, name: str) -> Any:
        return unpack(self._given[name])

    async def load_beside(self, name: str) -> Any:
        return self.load(name)

    def record(self, name: str, value: Any) -> Any:
        self.new.append((name, pack(value, f"step {name}")))
        return value

    async def record_beside(self, name: str, value: Any) -> Any:
        return self.record(name, value)


async def _awaited(answer: Any) -> Any:
    return await answer


def pack(value: Any, field: str) -> Payload | None:
    """A value as a payload; None stays None. Raises PayloadError, naming `field`, when it cannot be pickled."""
    if value is None:
        return None
    codec, data = encode_value(value, field)
    return Payload(codec=codec, data=data, size_bytes=len(data))


def unpack(payload: Payload | None) -> Any:
    """The inverse of `pack`."""
    return None if payload is None else decode_value(payload.codec, payload.data)
