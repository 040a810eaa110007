"""The caller's side of a task: a handle that is awaitable, has `.result()`, and can say what happened and why."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from flowray.core.model import Outcome
from flowray.core.states import TaskState
from flowray.errors import CoordinatorUnavailable, FlowrayError, NotConnected, UnknownTask, WaitTimeout
from flowray.outcomes import error_of
from flowray.runtime.views import Story, story_of

if TYPE_CHECKING:
    from flowray.runtime.following import ChunkStream
    from flowray.runtime.runtime import Runtime


class Handle:
    """One task as its caller sees it. Made by `submit`, `map` and `Runtime.handle`."""

    __slots__ = ("_callbacks", "_condition", "_error", "_outcome", "_runtime", "task_id")

    def __init__(self, runtime: Runtime, task_id: str, condition: threading.Condition) -> None:
        self.task_id = task_id
        self._runtime = runtime
        self._condition = condition  # shared by all handles of the runtime
        self._outcome: Outcome | None = None
        self._error: FlowrayError | None = None  # the wait itself failed
        self._callbacks: list[Callable[[Handle], None]] = []

    # ── what callers use ─────────────────────────────────────────────────────────────────────────────────────────

    @property
    def done(self) -> bool:
        """Is the outcome here?"""
        return self._outcome is not None or self._error is not None

    @property
    def state(self) -> str:
        """Where the task is: queued, running, backing_off, succeeded, dead, cancelled or expired."""
        if self._outcome is not None:
            return self._outcome.state.value
        return self._runtime._state(self.task_id)

    def result(self, timeout_s: float | None = None) -> Any:
        """Wait for the task's value.

        Raises:
            TaskFailed: it is a dead letter; the agent's traceback is in the message.
            TaskCancelled, TaskExpired: it ended without a value.
            WaitTimeout: not within `timeout_s`; the task goes on.
            CoordinatorUnavailable: the runtime is gone.
        """
        self.outcome(timeout_s)
        return self._value()

    def outcome(self, timeout_s: float | None = None) -> Outcome:
        """Wait for the task's recorded outcome, whatever it is."""
        if not self.done:
            deadline = None if timeout_s is None else time.monotonic() + timeout_s
            with self._condition:
                while not self.done:
                    left = None if deadline is None else deadline - time.monotonic()
                    if left is not None and left <= 0:
                        raise WaitTimeout(f"no outcome of task {self.task_id}", timeout_s or 0.0)
                    self._condition.wait(left)
        if self._error is not None:
            raise self._error
        assert self._outcome is not None
        return self._outcome

    def __await__(self) -> Generator[Any, None, Any]:
        loop = asyncio.get_running_loop()
        arrived: asyncio.Future[None] = loop.create_future()

        def arrive() -> None:
            if not arrived.done():
                arrived.set_result(None)

        def call(_: Handle) -> None:
            loop.call_soon_threadsafe(arrive)

        self.add_done_callback(call)
        yield from arrived.__await__()
        return self._value()

    def add_done_callback(self, call: Callable[[Handle], None]) -> None:
        """Call once when the outcome is here (at once if it is), from whichever thread brings it. Must be quick."""
        with self._condition:
            if not self.done:
                self._callbacks.append(call)
                return
        call(self)

    def stream(self, start: int = 0, *, restarts: int | None = None) -> ChunkStream:
        """The chunks that the task gives out while it runs, from the number `start` on: `for` or `async for`.

        Each `Chunk` has its number `seq` (0, 1, 2, ... without a gap) and its `value`. A `Restarted` among them says
        that those from its `seq` on are void and what follows takes their place: an attempt was lost, and the next one
        gave something else. What is shown is on disk, whoever dies then. It ends when the task succeeds; one that has
        ended is read in the same way, as long as its outcome is kept. Any number of readers, of any process, are at
        their own places, and slow ones hold nobody up.

        A reader that goes on where another one was gives `start` and, to be told of a restart since, the `restarts` of
        the last chunk read there.

        Raises, while it is read:
            TaskFailed, TaskCancelled, TaskExpired: it ended without a value, after its last chunk.
            UnknownTask: no task has this id, or it left the journal's retention.
            CoordinatorUnavailable, NotConnected.
        """
        from flowray.runtime.following import ChunkStream

        return ChunkStream(self._runtime, self, start, restarts)

    def cancel(self) -> str:
        """Cancel the task unless it has ended: the state it is in for good, "cancelled" or an earlier one.

        An input of a stateful agent that has its number is applied all the same: then the answer is "running".
        """
        return self._runtime._cancel(self.task_id)

    def grade(self, quality: float, by: str = "") -> None:
        """Say what the task's answer turned out to be worth, 0..1; `by` is who says so. The newest grade counts.

        When this returns the grade is on disk. It stands beside the outcome, which does not change, and it is the
        quality that a router learns by. Safe to repeat.

        Raises:
            ConfigError: it is no number from 0 to 1.
            GradeRefused: the task is still open, or ended without an answer.
            UnknownTask: no task has this id, or it left the journal's retention.
        """
        self._runtime.grade(self.task_id, quality, by=by)

    def story(self) -> Story:
        """What happened to the task so far, in order, with the newest grade of its answer."""
        if self._outcome is not None:
            # Only the coordinator knows of grades; what happened to a task that has ended is known without it.
            with contextlib.suppress(NotConnected, CoordinatorUnavailable, UnknownTask):
                return self._runtime._story(self.task_id)
            return story_of(self._outcome)
        return self._runtime._story(self.task_id)

    def explain(self) -> str:
        """Why its agents were chosen, in words."""
        from flowray.runtime.render import explain

        return explain(self.story())

    def __repr__(self) -> str:
        return f"<Handle {self.task_id} {self._outcome.state.value if self._outcome is not None else 'open'}>"

    def _repr_html_(self) -> str:
        # Notebooks draw what is at hand: an outcome that is here needs nobody.
        story = story_of(self._outcome) if self._outcome is not None else self.story()
        return story._repr_html_()

    # ── what the runtime uses ────────────────────────────────────────────────────────────────────────────────────

    def _resolve(self, outcome: Outcome | None, error: FlowrayError | None) -> list[Callable[[Handle], None]]:
        """Take the outcome in (with the condition held); the callbacks to call once it is released."""
        if self.done:
            return []
        self._outcome, self._error = outcome, error
        callbacks, self._callbacks = self._callbacks, []
        return callbacks

    def _value(self) -> Any:
        if self._error is not None:
            raise self._error
        outcome = self._outcome
        assert outcome is not None
        if outcome.state is TaskState.SUCCEEDED:
            return self._runtime._unpack(outcome.value)
        raise error_of(outcome)


class Handles(Sequence[Handle]):
    """Several tasks, in the order in which they were given."""

    def __init__(self, handles: Sequence[Handle]) -> None:
        self._handles = list(handles)

    def as_completed(self, timeout_s: float | None = None, *, progress: bool = False) -> Iterator[Handle]:
        """Each handle as soon as its outcome is here, with a progress bar on stderr if wanted.

        Raises:
            WaitTimeout: `timeout_s`, which is for all of them together, is over.
        """
        arriving = self._as_completed(timeout_s)
        if not progress:
            return arriving
        from flowray.runtime.progress import with_bar

        return with_bar(arriving, len(self), "tasks")

    def _as_completed(self, timeout_s: float | None) -> Iterator[Handle]:
        arrived: queue.SimpleQueue[Handle] = queue.SimpleQueue()
        for handle in self._handles:
            handle.add_done_callback(arrived.put)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        for _ in self._handles:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                yield arrived.get(timeout=left)
            except queue.Empty:
                missing = next(h for h in self._handles if not h.done)
                raise WaitTimeout(f"no outcome of task {missing.task_id}", timeout_s or 0.0) from None

    def results(self, timeout_s: float | None = None, *, progress: bool = False) -> list[Any]:
        """All values, in order, with a progress bar on stderr if wanted. Raises the first error met, in order."""
        for _ in self.as_completed(timeout_s, progress=progress):
            pass
        return [handle.result() for handle in self._handles]

    def outcomes(self, timeout_s: float | None = None) -> list[Outcome]:
        """All recorded outcomes, in order."""
        for _ in self.as_completed(timeout_s):
            pass
        return [handle.outcome() for handle in self._handles]

    def __getitem__(self, index: Any) -> Any:
        found = self._handles[index]
        return Handles(found) if isinstance(index, slice) else found

    def __len__(self) -> int:
        return len(self._handles)

    def __iter__(self) -> Iterator[Handle]:
        return iter(self._handles)

    def __repr__(self) -> str:
        return f"<Handles {sum(h.done for h in self._handles)} of {len(self._handles)} done>"
