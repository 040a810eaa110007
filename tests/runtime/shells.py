"""What a coordinator has round its core, without Ray: a pump over a real journal, and the lines of its clients."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

from flowray.core.commands import Command, StartAgent, StartAttempt
from flowray.core.coordination import Coordination
from flowray.core.events import AgentReady, AttemptFinished, TaskSubmitted
from flowray.core.model import Task, TaskId
from flowray.errors import StoreError
from flowray.runtime import messages
from flowray.runtime.messages import Outcomes
from flowray.runtime.pump import Pump, time_line
from flowray.store import SqliteStore, StoreConfig

# Tests run wherever the temporary directory is.
ANYWHERE = StoreConfig(allow_volatile=True, allow_filesystems=("overlay", "overlayfs", "unknown"))


class Shell:
    """What a coordinator has round its pump; agents answer every attempt at once."""

    def __init__(self, directory: Path, *, answer: bool = True) -> None:
        self.store = SqliteStore.open(directory, ANYWHERE)
        recovery = self.store.begin_epoch("test")
        self.performed: list[Command] = []
        self.failures: list[StoreError] = []
        self.answer = answer
        clock = time_line(recovery.last_at)
        core = Coordination.recover(
            epoch=recovery.epoch,
            rng=random.Random(1),
            now=clock(),
            snapshot=recovery.snapshot,
            commands=recovery.commands,
        )
        self.pump = Pump(core, self.store, self.perform, clock, self.failures.append)

    def perform(self, command: Command) -> None:
        self.performed.append(command)
        if isinstance(command, StartAgent):
            self.pump.put(AgentReady(command.agent_id, command.incarnation))
        elif isinstance(command, StartAttempt) and self.answer:
            self.pump.put(AttemptFinished(command.task_id, command.attempt, command.epoch, command.agent_id))

    async def until(self, kind: type[Command], count: int) -> None:
        async with asyncio.timeout(20):
            while sum(isinstance(c, kind) for c in self.performed) < count:
                await asyncio.sleep(0.001)


def submitted(number: int) -> TaskSubmitted:
    return TaskSubmitted(Task(id=TaskId(f"t{number:04}"), prompt="x"))


class Line:
    """A client's line, with as much room as it is told."""

    def __init__(self, room: int = 1_000_000) -> None:
        self.room = room
        self.sent: list[Any] = []

    def send(self, message: bytes) -> bool:
        if self.room == 0:
            return False
        self.room -= 1
        self.sent.append(messages.decode_to_client(message))
        return True

    def send_anyway(self, message: bytes) -> None:
        self.sent.append(messages.decode_to_client(message))

    @property
    def outcomes(self) -> list[str]:
        return [o.task_id for m in self.sent if isinstance(m, Outcomes) for o in m.outcomes]
