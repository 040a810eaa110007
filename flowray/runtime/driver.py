"""The driver's conversation with the coordinator: submits that are repeated until answered, outcomes as they come.

A restart of the coordinator is met here: an unanswered submit is sent again under the same task ids, which the
coordinator knows if it had accepted them, and what the driver waits for is said again.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from flowray.config import LimitsConfig
from flowray.core.model import Outcome, Task
from flowray.errors import (
    CoordinatorUnavailable,
    FlowrayError,
    IdempotencyConflict,
    NotConnected,
    QueueFull,
    TaskRefused,
    UnknownCapability,
    UnknownTask,
)
from flowray.runtime._ray_errors import GONE, LOST, brief, translated_unless_lost
from flowray.runtime.handle import Handle
from flowray.runtime.messages import Answer, Collect, Question, Reply, Submit
from flowray.runtime.transport import CoordinatorLink

if TYPE_CHECKING:
    from flowray.runtime.runtime import Runtime

T = TypeVar("T")
_RETRY_S = 0.05
_CALL_S = 30.0  # one call; a coordinator that is alive but silent for this long is asked again
_HOLD_S = 1.0  # how long the coordinator may hold a collect call without outcomes
_REFUSALS: dict[str, type[TaskRefused]] = {
    "queue_full": QueueFull,
    "unknown_capability": UnknownCapability,
    "conflict": IdempotencyConflict,
}


class Driver:
    """One driver process. Thread-safe."""

    def __init__(self, runtime: Runtime, link: CoordinatorLink, limits: LimitsConfig) -> None:
        self._runtime = runtime
        self._link = link
        self._limits = limits
        self._client_id = secrets.token_hex(8)
        self._condition = threading.Condition()  # guards what follows; handles wait on it
        self._open: dict[str, Handle] = {}  # task -> its handle, until the outcome is here
        self._submitting: set[str] = set()  # of those, the ones whose acceptance is not known yet
        self._recalls = 0  # times that everything waited for was said again
        self._want: list[str] = []  # to be said to the coordinator with the next collect
        self._work = threading.Event()  # set while there is something to collect
        self._collector: threading.Thread | None = None
        self.closed = False

    # ── submitting ───────────────────────────────────────────────────────────────────────────────────────────────

    def submit(self, tasks: Sequence[Task], *, wait_for_room: bool) -> list[Handle]:
        """Hand in tasks; their handles, in order, once all are accepted. Raises the first refusal."""
        with self._condition:
            recalls = self._recalls
            self._submitting.update(task.id for task in tasks)
        try:
            handles = self._submit(tasks, wait_for_room=wait_for_room)
        finally:
            with self._condition:
                self._submitting.difference_update(task.id for task in tasks)
                if self._recalls != recalls:  # the coordinator may have restarted between accepting and now
                    self._want.extend(task.id for task in tasks if task.id in self._open)
        return handles

    def _submit(self, tasks: Sequence[Task], *, wait_for_room: bool) -> list[Handle]:
        handles = [self._expect(task.id) for task in tasks]
        waiting = list(range(len(tasks)))
        refused: TaskRefused | None = None
        while waiting:
            answers = self._send([tasks[i] for i in waiting])
            full: list[int] = []
            for position, answer in zip(waiting, answers, strict=True):
                if answer.reason == "queue_full" and wait_for_room:
                    full.append(position)
                elif answer.reason:
                    self._drop(tasks[position].id)
                    kind = _REFUSALS.get(answer.reason, TaskRefused)
                    refused = refused or kind(answer.task_id, answer.detail, answer.retry_after_s)
                elif answer.task_id != tasks[position].id:
                    handles[position] = self._renamed(tasks[position].id, answer.task_id)
            if refused is not None:
                for position in full:
                    self._drop(tasks[position].id)
                raise refused
            waiting = full
            if full:
                time.sleep(max(0.01, min(a.retry_after_s or 0.1 for a in answers if a.reason == "queue_full")))
        return handles

    def _send(self, tasks: list[Task]) -> list[Answer]:
        """One submit, repeated until the coordinator answers it."""
        first = True

        def call(timeout_s: float) -> list[Answer]:
            nonlocal first
            message, first = Submit(self._client_id, tasks, again=not first), False
            return self._link.submit(message, timeout_s)

        try:
            return self._until_answered(call, "submitting")
        except FlowrayError:
            for task in tasks:
                self._drop(task.id)
            raise

    def ask(self, question: Question) -> Reply:
        """One question, repeated until the coordinator answers it."""
        return self._until_answered(lambda timeout_s: self._link.ask(question, timeout_s), question.what)

    def _until_answered(self, call: Callable[[float], T], doing: str) -> T:
        deadline = time.monotonic() + self._limits.unavailable_after_s
        while True:
            if self.closed:
                raise NotConnected(f"{doing}: this runtime is closed")
            left = deadline - time.monotonic()
            try:
                with translated_unless_lost(doing):
                    return call(max(0.1, min(_CALL_S, left)))
            except GONE as error:
                raise CoordinatorUnavailable(f"{doing}: the coordinator is gone: {brief(error)}") from error
            except LOST as error:
                if left <= 0:
                    waited = self._limits.unavailable_after_s
                    message = f"{doing}: the coordinator did not answer for {waited:g} s: {brief(error)}"
                    raise CoordinatorUnavailable(message) from error
                time.sleep(_RETRY_S)

    # ── handles ──────────────────────────────────────────────────────────────────────────────────────────────────

    def attach(self, task_id: str) -> Handle:
        """A handle for a task that may have been submitted by somebody else."""
        with self._condition:
            known = self._open.get(task_id)
            if known is not None:
                return known
            handle = self._expect(task_id)
            self._want.append(task_id)
        self._start_collecting()
        return handle

    def _expect(self, task_id: str) -> Handle:
        handle = Handle(self._runtime, task_id, self._condition)
        with self._condition:
            self._open[task_id] = handle
        self._start_collecting()
        return handle

    def _renamed(self, submitted_id: str, task_id: str) -> Handle:
        """The submit was a repeat: the handle of the earlier task."""
        self._drop(submitted_id)
        return self.attach(task_id)

    def _drop(self, task_id: str) -> None:
        with self._condition:
            self._open.pop(task_id, None)

    # ── collecting ───────────────────────────────────────────────────────────────────────────────────────────────

    def _start_collecting(self) -> None:
        self._work.set()
        if self._collector is None:
            with self._condition:
                if self._collector is None and not self.closed:
                    self._collector = threading.Thread(target=self._collect, daemon=True, name="flowray-collector")
                    self._collector.start()

    def _collect(self) -> None:
        desk, seen = "", 0
        everything = True  # say all that is waited for: at first, and after anything that may have made it forget
        while not self.closed:
            self._work.wait()
            with self._condition:
                if not self._open:
                    self._work.clear()
                    continue
                want, self._want = self._want, []
                if everything:
                    self._recalls += 1
                    want = [task_id for task_id in self._open if task_id not in self._submitting]
            try:
                message = Collect(self._client_id, seen, want, _HOLD_S)
                collected = self._link.collect(message, _CALL_S)
            except GONE as error:
                self._fail(CoordinatorUnavailable(f"the coordinator is gone: {brief(error)}", "accepted"))
                return
            except LOST:
                everything, seen = True, 0
                time.sleep(_RETRY_S)
                continue
            except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must hear of it
                self._fail(CoordinatorUnavailable(f"collecting outcomes: {brief(error)}", "accepted"))
                return
            everything = collected.desk != desk and not everything
            desk = collected.desk
            if collected.number:
                seen = collected.number
            self._take(collected.outcomes, collected.unknown)

    def _take(self, outcomes: Sequence[Outcome], unknown: Sequence[str]) -> None:
        calls: list[tuple[Handle, list[Callable[[Handle], None]]]] = []
        with self._condition:
            for outcome in outcomes:
                handle = self._open.pop(outcome.task_id, None)
                if handle is not None:
                    calls.append((handle, handle._resolve(outcome, None)))
            for task_id in unknown:
                handle = self._open.pop(task_id, None)
                if handle is not None:
                    error = UnknownTask(f"no task has the id {task_id}, or it left the journal's retention")
                    calls.append((handle, handle._resolve(None, error)))
            if calls:
                self._condition.notify_all()
        for handle, callbacks in calls:
            for call in callbacks:
                call(handle)

    def _fail(self, error: FlowrayError) -> None:
        with self._condition:
            handles, self._open = list(self._open.values()), {}
            calls = [(handle, handle._resolve(None, error)) for handle in handles]
            self._collector = None
            self._condition.notify_all()
        for handle, callbacks in calls:
            for call in callbacks:
                call(handle)

    def close(self, why: str) -> None:
        """Stop collecting; handles still open raise NotConnected."""
        if self.closed:
            return
        self.closed = True
        self._work.set()
        collector = self._collector
        self._fail(NotConnected(why))
        if collector is not None and collector is not threading.current_thread():
            collector.join(timeout=_HOLD_S + 1.0)
