"""Grades at the coordinator: whether there is an answer that a grade is about, and that it is kept.

The core knows no task that has ended, so it is the store that is asked. A grade is answered when it is on disk; given
again, by a client that did not hear so, it is the same grade.
"""

from __future__ import annotations

from flowray.core.coordination import Coordination
from flowray.core.events import GradeGiven
from flowray.core.model import TaskId
from flowray.core.states import TaskState
from flowray.errors import GradeRefused
from flowray.runtime.graders import check_grade
from flowray.runtime.pump import Pump
from flowray.store import Store


class GradeBook:
    """Use only from the coordinator's event loop."""

    def __init__(self, core: Coordination, store: Store, pump: Pump) -> None:
        self._core = core
        self._store = store
        self._pump = pump

    async def give(self, task_id: str, quality: float | None, by: str) -> float | None:
        """Record a grade; returns it once it is on disk, None where no task has this id.

        Raises:
            ConfigError: it is no grade. GradeRefused: the task has no answer.
        """
        number, by = check_grade(quality, by)
        state = self._state(task_id)
        if state is None:  # its outcome may be on its way to the disk
            await self._pump.synced()
            state = self._state(task_id)
        if state is None:
            return None
        if not state.terminal:
            raise GradeRefused(task_id, f"it is {state.value}; grade its answer when it has ended")
        if state is not TaskState.SUCCEEDED:
            raise GradeRefused(task_id, f"it ended {state.value}, without an answer")
        self._pump.put(GradeGiven(TaskId(task_id), number, by))
        await self._pump.synced()
        return number

    def _state(self, task_id: str) -> TaskState | None:
        entry = self._core.book.open.get(TaskId(task_id))
        if entry is not None:
            return entry.state
        outcome = self._store.outcome(task_id)
        return outcome.state if outcome is not None else None
