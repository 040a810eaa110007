"""Chunks for readers: what is on disk of a task, page by page, and the next one as soon as there is one.

A reader asks for what comes after the chunks that it has, and is answered at once, or when there is more, or after
`WAIT_S` with nothing. So nothing is held for a slow reader, and one that lost its coordinator asks the next one the
same. What is shown comes from the store; a reader that waits is given what was just recorded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from flowray.core.commands import RecordChunks
from flowray.core.coordination import Coordination
from flowray.core.model import Outcome, TaskId
from flowray.core.streaming import DIGEST_BYTES, standing
from flowray.errors import ConfigError, FlowrayError, UnknownTask
from flowray.runtime.messages import Page
from flowray.store import Store

WAIT_S = 10.0  # then a reader asks again
MAX_READERS = 10_000  # that wait at the same time
_PAGE_BYTES = 512 * 1024


class ShowDesk:
    """What readers may see. Use only from the coordinator's event loop."""

    def __init__(
        self,
        core: Coordination,
        store: Store,
        *,
        on_read: Callable[[TaskId, int], None] = lambda task_id, seq: None,
        wait_s: float = WAIT_S,
    ) -> None:
        """Right after the core was recovered: then all that it has is on disk.

        `on_read` is told how many chunks the foremost reader of an open task has, where an agent wants to know.
        """
        self._core = core
        self._store = store
        self._wait_s = wait_s
        self._on_read = on_read
        self._read: dict[TaskId, int] = {}  # open task that has readers -> chunks that the foremost has
        self._paced: set[TaskId] = set()  # those whose agents wait for readers
        self._shown: dict[TaskId, tuple[int, tuple[int, ...]]] = {}  # open task -> its chunks on disk, its restarts
        self._waiting: dict[str, list[asyncio.Future[RecordChunks | None]]] = {}
        self._readers = 0
        for task_id, entry in core.book.open.items():
            if entry.stream is not None:
                self._shown[task_id] = entry.stream.count, tuple(entry.stream.restarts)

    def recorded(self, command: RecordChunks) -> None:
        """Chunks are on disk."""
        count, restarts = self._shown.get(command.task_id, (0, ()))
        if command.first < count:
            restarts = (*restarts, command.first)
        self._shown[command.task_id] = command.first + len(command.digests) // DIGEST_BYTES, restarts
        self._wake(command.task_id, command)

    def paced(self, task_id: TaskId) -> None:
        """An agent of this task waits for readers."""
        if task_id in self._core.book.open:
            self._paced.add(task_id)

    def read(self, task_id: TaskId) -> int:
        """Chunks that the foremost reader of an open task has."""
        return self._read.get(task_id, 0)

    def resolved(self, outcome: Outcome) -> None:
        """A task has ended, and its outcome is on disk."""
        if not (self._shown or self._waiting or self._read or self._paced):
            return  # nobody gives out chunks, and nobody reads any
        if outcome.task_id in self._read or outcome.task_id in self._paced:
            self._read.pop(outcome.task_id, None)
            self._paced.discard(outcome.task_id)
        self._shown.pop(outcome.task_id, None)
        self._wake(outcome.task_id, None)

    async def page(self, task_id: str, first: int, restarts: int | None) -> Page | None:
        """What comes after the chunks before `first`, read when there had been so many restarts (None: none was read).

        None: no task has this id.

        Raises:
            ConfigError: a number is negative.
            UnknownTask: the task has ended, and its chunks are not kept any more.
            FlowrayError: too many readers wait.
        """
        if first < 0 or (restarts is not None and restarts < 0):
            raise ConfigError("chunks", f"number {first} after {restarts} restarts: neither may be negative")
        self._note_read(TaskId(task_id), first)
        loop = asyncio.get_running_loop()
        until = loop.time() + self._wait_s
        while True:
            found = self._look(task_id, first, restarts)
            left_s = until - loop.time()
            if found is None or found.rows or found.withdrawn or found.state or left_s <= 0:
                return found
            recorded = await self._change(task_id, left_s)
            if recorded is not None and (recorded.first, recorded.restarts) == (first, found.restarts):
                row = recorded.skip, len(recorded.digests) // DIGEST_BYTES, recorded.body
                return Page(first, recorded.restarts, rows=[row])

    def _note_read(self, task_id: TaskId, seq: int) -> None:
        if seq > self._read.get(task_id, 0) and task_id in self._core.book.open:
            self._read[task_id] = seq
            if task_id in self._paced:
                self._on_read(task_id, seq)

    async def _change(self, task_id: str, within_s: float) -> RecordChunks | None:
        """Wait until something of this task is on disk, but not for longer."""
        if self._readers >= MAX_READERS:
            raise FlowrayError(f"{self._readers} readers of chunks wait already, which is the most: read again later")
        future: asyncio.Future[RecordChunks | None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(task_id, []).append(future)
        self._readers += 1
        try:
            async with asyncio.timeout(within_s):
                return await future
        except TimeoutError:
            return None
        finally:
            self._readers -= 1
            waiting = self._waiting.get(task_id)
            if waiting is not None and future in waiting:
                waiting.remove(future)
                if not waiting:
                    del self._waiting[task_id]

    def _wake(self, task_id: str, recorded: RecordChunks | None) -> None:
        for future in self._waiting.pop(task_id, ()):
            if not future.done():
                future.set_result(recorded)

    def _look(self, task_id: str, first: int, seen_restarts: int | None) -> Page | None:
        state, key = "", TaskId(task_id)
        if key in self._shown:
            count, restarts = self._shown[key]
        elif key in self._core.book.open:
            count, restarts = 0, ()
        elif (outcome := self._store.outcome(task_id)) is not None:
            count, restarts, state = outcome.chunks, outcome.restarts, outcome.state.value
        elif self._core.admission.recent(key):  # it has ended without any, and that is not on disk yet
            count, restarts = 0, ()
        else:
            return None
        stands = standing(restarts, seen_restarts, first)
        rows: list[tuple[int, int, bytes]] = []
        ends = stands
        if stands < count:
            for row in self._store.chunks(task_id, stands, restarts=len(restarts), most_bytes=_PAGE_BYTES):
                number = min(row.first + row.count, count) - ends
                if number > 0:
                    rows.append((row.skip + ends - row.first, number, row.body))
                    ends += number
            if state and not rows:
                raise UnknownTask(f"the chunks of task {task_id} are not kept any more: its dead letter was purged")
        return Page(stands, len(restarts), stands < first, rows, state if ends >= count else "")
