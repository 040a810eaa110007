"""Judges what agents do with attempts: what they record and are given, which is the later one, what runs alone.

Invariants S1 to S4 and X1 of `flowray.testing.invariants`, whose observer has one of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from flowray.core.book import Book, is_running
from flowray.core.commands import AnswerStep, RecordStep, StartAttempt
from flowray.core.fencing import fence_of
from flowray.core.model import Payload, Task, TaskId
from flowray.testing.violations import Violation

if TYPE_CHECKING:
    from flowray.testing.agent import AgentProcess
    from flowray.testing.world import World


class AttemptObserver:
    """See the module."""

    def __init__(self, world: World, book: Book) -> None:
        """`book` is the observer's own."""
        self._world, self._book = world, book
        self._fences: dict[TaskId, int] = {}  # of the last attempt that the journal has
        self._steps: dict[TaskId, dict[str, Payload | None]] = {}  # on disk; of ended tasks too
        self._due: dict[tuple[TaskId, int], frozenset[str]] = {}  # (task, fence) -> steps on disk before its start
        self._ran: dict[tuple[TaskId, int], tuple[str, int]] = {}  # (task, fence) -> the process that began it

    def started(self, command: StartAttempt, task: Task, name: str) -> None:
        """It is on disk that an attempt, called so, was started."""
        fence = fence_of(command.epoch, command.attempt)
        last = self._fences.get(task.id, 0)
        if fence <= last:
            raise Violation("S4", f"{name} of epoch {command.epoch} has fence {fence:#x}, the one before {last:#x}")
        self._fences[task.id] = fence
        adopted = command.reason == "adopted"
        if not (adopted and task.idempotent):  # begun long ago, beside one that has recorded steps since
            self._due[task.id, fence] = frozenset(self._steps.get(task.id, ()))

    def recorded(self, command: RecordStep) -> None:
        """It is on disk what a step came to."""
        name = f"step {command.name} of {command.task_id} attempt {command.attempt}"
        entry = self._book.open.get(command.task_id)
        current = entry is not None and is_running(entry, command.attempt, command.epoch)
        if not current:
            raise Violation("S2", f"{name} of epoch {command.epoch} is not of a running attempt")
        steps = self._steps.setdefault(command.task_id, {})
        if command.name in steps:
            raise Violation("S1", f"{name} was recorded twice")
        steps[command.name] = command.value
        self._world.note("step recorded")

    def begun(self, process: AgentProcess, command: StartAttempt, steps: Mapping[str, Payload | None]) -> None:
        """An attempt begins in a process, with these recorded steps."""
        name = f"{command.task_id} attempt {command.attempt} of epoch {command.epoch}"
        fence = command.task_id, fence_of(command.epoch, command.attempt)
        here = process.id, process.incarnation
        if self._ran.setdefault(fence, here) != here:
            raise Violation("S4", f"{name} runs on {here} and on {self._ran[fence]}")
        on_disk = self._steps.get(command.task_id, {})
        for step, value in steps.items():
            if not (step in on_disk and on_disk[step] == value):
                raise Violation("S1", f"{name} was given {step}, which is not on disk")
        missing = [step for step in self._due.get(fence, ()) if step not in steps]
        if missing:
            raise Violation("S3", f"{name} was not given {sorted(missing)}")
        if steps:
            self._world.note("step given to a later attempt")

    def runs(self, process: AgentProcess, token: tuple[TaskId, int, int]) -> None:
        """An attempt begins, or goes on after its process was stopped."""
        if token not in process.exclusive:
            return
        for other in self._world.processes.values():
            if other is not process and not other.hung:
                beside = [one for one in other.running if one[0] == token[0]]
                if beside:
                    raise Violation("X1", f"{token} runs on {process.id} beside {beside} on {other.id}")
        if sum(one[0] == token[0] for one in process.running) != 1:
            raise Violation("X1", f"{token} runs twice on {process.id}")

    def step_taken(self, answer: AnswerStep, value: Payload | None) -> None:
        """An attempt goes on after a step, with this result."""
        name = f"step {answer.name} of {answer.task_id} attempt {answer.attempt}"
        steps = self._steps.get(answer.task_id, {})
        if answer.name not in steps:
            raise Violation("S1", f"{name} went on and is not on disk")
        if steps[answer.name] != value:
            raise Violation("S1", f"{name} went on with another result than is on disk")
