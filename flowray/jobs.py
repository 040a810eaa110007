"""A job: tasks that lead to more tasks, as plain logic that any runner can drive.

A job never waits and knows no runtime. It is asked for its first requests, told each result, answers with the
requests that follow from it, and at the end writes its report. `run_sequentially` drives it in this process, one task
at a time, without Ray; `flowray.runtime` drives the same object on a cluster. Results arrive in any order, so a job
collects by key and sorts at the end: that is what makes the two runs byte-identical.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from flowray.agents import AgentDescription, Context, Task, describe, wants_context
from flowray.errors import ConfigError, UnknownCapability
from flowray.stateful import is_stateful


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One task that the job wants done: the arguments of `submit`, and a key."""

    key: str  # unique within the job and the same on every run of it: resuming goes by it
    prompt: str = ""
    payload: Any = None
    needs: tuple[str, ...] = ()
    priority: int = 0
    deadline_s: float | None = None
    max_attempts: int = 3
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of a request. Exactly one of `value` and `error` counts: `error` is "" on success."""

    key: str
    value: Any = None
    error: str = ""  # what went wrong, in one or more lines
    state: str = "succeeded"  # of its task: succeeded | dead | cancelled | expired
    agent_id: str = ""
    attempts: int = 1
    run_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a finished job tells the person who ran it."""

    headline: str  # one sentence
    figures: Mapping[str, str | int | float] = field(default_factory=dict)  # a few, in the order to print
    table: tuple[tuple[str, ...], ...] = ()  # the first row is the header; empty for none
    files: tuple[Path, ...] = ()  # written, most interesting first


@runtime_checkable
class Job(Protocol):
    """What a runner needs of a job."""

    def begin(self) -> Iterable[Request]:
        """The first requests."""
        ...

    def on_result(self, result: Result) -> Iterable[Request]:
        """Take one result; the requests that follow from it."""
        ...

    def expected(self) -> int:
        """How many requests the job knows of so far, done or not (for the progress bar)."""
        ...

    def finish(self, out: Path) -> Report:
        """Every result is in: write what there is to write under `out`."""
        ...


@dataclass(frozen=True, slots=True)
class LocalAgent:
    """An agent made in this process."""

    name: str
    description: AgentDescription
    run: Callable[..., Any]

    @classmethod
    def make(cls, name: str, target: Callable[..., Any], options: Mapping[str, Any] | None = None) -> LocalAgent:
        """Construct the class (or take the function) as the runtime would."""
        if is_stateful(target):
            raise ConfigError(
                name, "keeps a state, for which it needs a runtime", "flowray.replicas.rehearse tries it out"
            )
        made: Any = target(**(options or {})) if inspect.isclass(target) else target
        run = made.run if inspect.isclass(target) else made
        return cls(name, describe(target), run)

    def __call__(self, task: Task) -> Any:
        """Run one task to its end, sync or async."""
        ctx = Context(agent_id=self.name, tier=self.description.tier, attempt=task.attempt, task_id=task.id)
        answer = self.run(task, ctx) if wants_context(self.run) else self.run(task)
        return asyncio.run(_awaited(answer)) if inspect.isawaitable(answer) else answer


async def _awaited(answer: Any) -> Any:
    return await answer


def run_sequentially(
    job: Job, agents: Iterable[LocalAgent], out: Path, *, on_result: Callable[[Result], None] | None = None
) -> Report:
    """Drive a job in this process, one task at a time, in the order in which the requests appear.

    The yardstick for the distributed run: same agents, same job, no Ray, no concurrency.

    Raises:
        UnknownCapability: no agent has what a request needs.
    """
    team = list(agents)
    waiting = deque(job.begin())
    while waiting:
        request = waiting.popleft()
        result = _run_one(request, team)
        if on_result is not None:
            on_result(result)
        waiting.extend(job.on_result(result))
    return job.finish(out)


def _run_one(request: Request, team: list[LocalAgent]) -> Result:
    chosen = next((a for a in team if a.description.capabilities.issuperset(request.needs)), None)
    if chosen is None:
        raise UnknownCapability(request.key, f"no agent has {', '.join(request.needs)}")
    task = Task(
        id=request.key,
        prompt=request.prompt,
        payload=request.payload,
        needs=request.needs,
        priority=request.priority,
        labels=request.labels,
    )
    try:
        return Result(key=request.key, value=chosen(task), agent_id=chosen.name)
    except Exception as error:  # noqa: BLE001 - an agent's error, of whatever type, is a result here
        detail = failure_text(type(error).__name__, str(error))
        return Result(key=request.key, error=detail, state="dead", agent_id=chosen.name)


def failure_text(kind: str, message: str) -> str:
    """What `Result.error` says of a failure, the same here and on a cluster."""
    return ": ".join(part for part in (kind, message[:2000]) if part)
