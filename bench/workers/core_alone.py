"""The pure core alone: no Ray, no journal, no clock. Agents answer at once; only `handle` is at work.

A number of tasks is kept open: as many as there are agents (each is busy, nothing waits) and, on top, some that wait.
For each outcome one new task comes in, so the queue neither grows nor drains while it is measured.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from bench.workers.common import main
from flowray.core.commands import Command, ResolveTask, StartAgent, StartAttempt
from flowray.core.coordination import Coordination
from flowray.core.events import AgentReady, AgentsAdded, AttemptFinished, TaskSubmitted
from flowray.core.model import AgentSpec, Payload, Task, TaskId

_PER_CLASS = 8  # agents of one class: 24 agents are three classes, as in a team, and 10,000 are 1,250
_CAPABILITIES = ("plan", "write", "check", "search")
_RUN_S = 0.02  # of an attempt, as its agent says: too long for prefetching, so the queue is what it seems
_STEP_S = 1e-5  # between two answers


def work(settings: dict[str, Any]) -> dict[str, float]:
    core = Coordination(epoch=1, rng=random.Random(1))
    classes = max(1, settings["agents"] // _PER_CLASS)
    for number in range(classes):
        capability = _CAPABILITIES[number % len(_CAPABILITIES)]
        spec = AgentSpec(name=f"a{number}", tier="secondary", capabilities=(capability,), count=_PER_CLASS)
        for command in core.handle(AgentsAdded(spec), 0.0):
            if isinstance(command, StartAgent):
                core.handle(AgentReady(command.agent_id, command.incarnation), 0.0)
    load = Load(core, min(classes, len(_CAPABILITIES)), settings["tasks"])
    load.open(settings["agents"] + settings["waiting"])
    load.answer(settings["warm"])
    began_at = time.perf_counter()
    load.answer(settings["measured"])
    seconds = time.perf_counter() - began_at
    core.check()
    return {"us_per_task": seconds / settings["measured"] * 1e6}


class Load:
    """The shell's part: hands in tasks and answers attempts."""

    def __init__(self, core: Coordination, capabilities: int, tasks: int) -> None:
        self._core = core
        # Made before: making them is the driver's work.
        self._tasks: Iterator[Task] = iter(
            [Task(id=TaskId(f"t{i}"), prompt="x", needs=(_CAPABILITIES[i % capabilities],)) for i in range(tasks)]
        )
        self._started: deque[StartAttempt] = deque()
        self._value = Payload(data=b"x", size_bytes=1)
        self._now = 0.0

    def open(self, count: int) -> None:
        for _ in range(count):
            self._do(self._core.handle(TaskSubmitted(next(self._tasks)), self._now))

    def answer(self, count: int) -> None:
        """Let `count` tasks end, each followed by a new one."""
        handle, started, value = self._core.handle, self._started, self._value
        for _ in range(count):
            one = started.popleft()
            self._now += _STEP_S
            ended = AttemptFinished(one.task_id, one.attempt, one.epoch, one.agent_id, value, None, _RUN_S)
            if not any(isinstance(command, ResolveTask) for command in self._do(handle(ended, self._now))):
                raise RuntimeError(f"the core did not resolve {one.task_id}")
            self._do(handle(TaskSubmitted(next(self._tasks)), self._now))

    def _do(self, commands: list[Command]) -> list[Command]:
        for command in commands:
            if isinstance(command, StartAttempt):
                self._started.append(command)
        return commands


if __name__ == "__main__":
    main(work)
