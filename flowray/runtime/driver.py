"""The driver's conversation with the coordinator: submits that are repeated until answered, outcomes as they come.

A restart of the coordinator is met here: an unanswered submit is sent again under the same task ids, which the
coordinator knows if it had accepted them, and what the driver waits for is said again.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from flowray.config import LimitsConfig
from flowray.core.model import Task
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
from flowray.runtime.handle import Handle
from flowray.runtime.link import CoordinatorLink, LinkGone, LinkLost, Way
from flowray.runtime.messages import Answer, Outcomes, Question, Reply, Submit

if TYPE_CHECKING:
    from flowray.runtime.runtime import Runtime

_RETRY_S = 0.02
_CALL_S = 30.0  # one call; a coordinator that is alive but silent for this long is asked again
_REFUSALS: dict[str, type[TaskRefused]] = {
    "queue_full": QueueFull,
    "unknown_capability": UnknownCapability,
    "conflict": IdempotencyConflict,
}


class Driver:
    """One driver process. Thread-safe."""

    def __init__(self, runtime: Runtime, way: Way) -> None:
        self._runtime = runtime
        self.limits = LimitsConfig()  # until the coordinator has said what they are
        self._condition = threading.Condition()  # guards what follows; handles wait on it
        self._open: dict[str, Handle] = {}  # task -> its handle, until the outcome is here
        self._submitting: set[str] = set()  # of those, the ones whose acceptance is not known yet
        self._renewals = 0  # times that another coordinator took over
        self.closed = False
        self._link = CoordinatorLink(way, self._take, self._renewed, self._farewell, self._outage)

    @property
    def link(self) -> CoordinatorLink:
        """The way to the coordinator."""
        return self._link

    def wait_connected(self, timeout_s: float) -> None:
        """Wait for the first stream. Raises NotConnected with the reason when there is none in time."""
        try:
            self._link.wait_connected(timeout_s)
        except LinkLost as error:
            raise NotConnected(f"the coordinator of {self._runtime.name!r} cannot be reached: {error}") from None

    # ── submitting ───────────────────────────────────────────────────────────────────────────────────────────────

    def submit(self, tasks: Sequence[Task], *, wait_for_room: bool) -> list[Handle]:
        """Hand in tasks; their handles, in order, once all are accepted. Raises the first refusal."""
        with self._condition:
            renewals = self._renewals
            self._submitting.update(task.id for task in tasks)
        try:
            handles = self._submit(tasks, wait_for_room=wait_for_room)
        finally:
            with self._condition:
                self._submitting.difference_update(task.id for task in tasks)
                renewed = self._renewals != renewals
                still_open = [task.id for task in tasks if task.id in self._open] if renewed else []
            if still_open:  # the coordinator may have restarted between accepting and now
                self._want(still_open)
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

        def message() -> Submit:
            nonlocal first
            sent, first = Submit(0, tasks, again=not first), False
            return sent

        try:
            answers: list[Answer] = self._until_answered(message, "submitting")
        except FlowrayError:
            for task in tasks:
                self._drop(task.id)
            raise
        return answers

    def ask(self, question: Question) -> Reply:
        """One question, repeated until the coordinator answers it."""
        reply: Reply = self._until_answered(lambda: question, question.what)
        return reply

    async def ask_beside(self, question: Question) -> Reply:
        """`ask` for code on an event loop, which goes on meanwhile."""
        deadline = time.monotonic() + self.limits.unavailable_after_s
        while True:
            within_s = self._within_s(deadline, question.what)
            try:
                reply: Reply = await self._link.request_beside(question, within_s)
                return reply
            except (LinkGone, LinkLost) as error:
                self._unanswered(error, deadline, question.what)
                await asyncio.sleep(_RETRY_S)

    def _until_answered(self, message: Callable[[], Submit | Question], doing: str) -> Any:
        deadline = time.monotonic() + self.limits.unavailable_after_s
        while True:
            within_s = self._within_s(deadline, doing)
            try:
                return self._link.request(message(), within_s)
            except (LinkGone, LinkLost) as error:
                self._unanswered(error, deadline, doing)
                time.sleep(_RETRY_S)

    def _within_s(self, deadline: float, doing: str) -> float:
        """How long one more request may take. Raises NotConnected."""
        if self.closed:
            raise NotConnected(f"{doing}: this runtime is closed")
        return max(0.1, min(_CALL_S, deadline - time.monotonic()))

    def _unanswered(self, error: LinkGone | LinkLost, deadline: float, doing: str) -> None:
        """A request had no answer. Raises CoordinatorUnavailable unless it may be made again."""
        if isinstance(error, LinkGone):
            raise CoordinatorUnavailable(f"{doing}: there is no way to the coordinator any more: {error}") from None
        if time.monotonic() >= deadline:
            waited = self.limits.unavailable_after_s
            raise CoordinatorUnavailable(f"{doing}: the coordinator did not answer for {waited:g} s: {error}") from None

    # ── handles ──────────────────────────────────────────────────────────────────────────────────────────────────

    def attach(self, task_id: str) -> Handle:
        """A handle for a task that may have been submitted by somebody else."""
        with self._condition:
            known = self._open.get(task_id)
            if known is not None:
                return known
            handle = self._expect(task_id)
        self._want([task_id])
        return handle

    def _want(self, task_ids: Sequence[str]) -> None:
        try:
            self._link.want(task_ids)
        except LinkGone as error:
            self._farewell(str(error))

    def _expect(self, task_id: str) -> Handle:
        handle = Handle(self._runtime, task_id, self._condition)
        with self._condition:
            self._open[task_id] = handle
        return handle

    def _renamed(self, submitted_id: str, task_id: str) -> Handle:
        """The submit was a repeat: the handle of the earlier task."""
        self._drop(submitted_id)
        return self.attach(task_id)

    def _drop(self, task_id: str) -> None:
        with self._condition:
            self._open.pop(task_id, None)

    # ── called by the link ───────────────────────────────────────────────────────────────────────────────────────

    def _take(self, message: Outcomes) -> None:
        calls: list[tuple[Handle, list[Callable[[Handle], None]]]] = []
        with self._condition:
            for outcome in message.outcomes:
                handle = self._open.pop(outcome.task_id, None)
                if handle is not None:
                    calls.append((handle, handle._resolve(outcome, None)))
            for task_id in message.unknown:
                handle = self._open.pop(task_id, None)
                if handle is not None:
                    error = UnknownTask(f"no task has the id {task_id}, or it left the journal's retention")
                    calls.append((handle, handle._resolve(None, error)))
            if calls:
                self._condition.notify_all()
        for handle, callbacks in calls:
            for call in callbacks:
                call(handle)

    def _renewed(self) -> None:
        """Another coordinator: it knows nothing of what this driver waits for."""
        with self._condition:
            self._renewals += 1
            want = [task_id for task_id in self._open if task_id not in self._submitting]
        self._want(want)

    def _farewell(self, reason: str) -> None:
        self._fail(
            NotConnected(reason)
            if self.closed
            else CoordinatorUnavailable(f"there is no way to the coordinator any more: {reason}", "accepted")
        )

    def _outage(self, lasted_s: float, reason: str) -> None:
        """Nobody waits for a result longer than for an answer: the coordinator may never come back."""
        if lasted_s >= self.limits.unavailable_after_s:
            detail = f"the coordinator could not be reached for {lasted_s:.0f} s: {reason}"
            self._fail(CoordinatorUnavailable(detail, "accepted"))

    def _fail(self, error: FlowrayError) -> None:
        with self._condition:
            # A submit under way is told by its own call.
            kept = {} if self.closed else {i: h for i, h in self._open.items() if i in self._submitting}
            handles, self._open = [h for i, h in self._open.items() if i not in kept], kept
            calls = [(handle, handle._resolve(None, error)) for handle in handles]
            self._condition.notify_all()
        for handle, callbacks in calls:
            for call in callbacks:
                call(handle)

    def close(self, why: str) -> None:
        """Leave; handles still open raise NotConnected."""
        if self.closed:
            return
        self.closed = True
        self._fail(NotConnected(why))
        self._link.close()
