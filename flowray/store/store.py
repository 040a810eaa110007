"""The durable state of a coordinator in a database: its journal, its snapshot and the outcomes of its tasks.

A life of a coordinator: `open_store`, then `begin_epoch` (which fences every earlier life and returns what to recover),
then appends, snapshots and trims in any order, answered in that order from the writer's thread, then `close`.
Whatever was answered with None is on disk. After the first error nothing is written any more: the process is
expected to end, and the next one to recover.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from flowray.core.commands import DurableCommand
from flowray.core.model import Asked, Grade, Outcome, Recorded, Snapshot, Task
from flowray.core.states import TaskState
from flowray.errors import StoreError
from flowray.store.config import StoreConfig
from flowray.store.journal import Journal
from flowray.store.reader import Reader
from flowray.store.records import ChunkRow
from flowray.store.recovery import Recovery
from flowray.store.writer import Done, Writer


class Store(ABC):
    """One process's hold on a store. Methods may be called from any thread."""

    def __init__(self, journal: Journal, reader: Reader, config: StoreConfig) -> None:
        """For those who open one."""
        self._journal, self._reader = journal, reader
        self._writer = Writer(journal, config)
        self._lock = threading.Lock()
        self._began = False
        self._closed = False
        self._since_snapshot = 0

    def owner(self) -> tuple[int, str]:
        """The epoch in force and who began it; (0, "") before the first. Readable while a stopped owner holds locks."""
        head = self._reader.head()
        return head.epoch, head.owner

    def begin_epoch(self, owner: str) -> Recovery:
        """Take over as `owner` and return everything to recover, all of it verified. Once for each store object.

        Raises:
            StoreCorrupt: something acknowledged is damaged or missing. Nothing was changed, the epoch neither.
            StoreError: another process holds the write lock and cannot be ended, or the disk or the server fails.
        """
        with self._lock:
            if self._began or self._closed:
                raise StoreError("this store has begun its epoch already" if self._began else "the store is closed")
            recovery = self._journal.begin_epoch(owner)
            self._since_snapshot = len(recovery.commands)
            self._began = True
            self._writer.start()
        return recovery

    @abstractmethod
    def require_room(self, size_bytes: int) -> None:
        """Can the store grow by so much? Raises StoreError when the disk is full."""

    @property
    def failure(self) -> StoreError | None:
        """Why nothing is written any more; None while all is well."""
        return self._writer.failure

    @property
    def backlog_ratio(self) -> float:
        """How full the queue of appends is, 0..1: stop accepting well before 1, where `append` blocks its caller."""
        return self._writer.backlog_ratio

    @property
    def commands_since_snapshot(self) -> int:
        """Commands that a recovery would have to fold, counted as they are handed in."""
        return self._since_snapshot

    def append(self, commands: Sequence[DurableCommand], done: Done) -> None:
        """Hand in commands; `done(None)` is called from the writer's thread once they are on disk.

        `done(error)` means that they may or may not be. The sequence must not change afterwards. An empty one is
        answered after everything before it. Raises the first cause at once when the store has failed.
        """
        self._require_epoch()
        self._writer.append(commands, done)
        with self._lock:
            self._since_snapshot += len(commands)

    def save_snapshot(self, snapshot: Snapshot, done: Done) -> None:
        """Replace everything appended before this call by the snapshot."""
        self._require_epoch()

        def step() -> bool:
            self._journal.write_snapshot(snapshot)
            return True

        with self._lock:
            self._writer.add(step, done)
            self._since_snapshot = 0

    def trim(self, older_than_at: float, done: Done, *, dead_letters_older_than_at: float | None = None) -> None:
        """Delete outcomes resolved before `older_than_at`, in small transactions between the appends.

        Dead letters go, with their outcomes, only when also older than their own bound; None keeps them all.
        """
        self._require_epoch()
        after_id: int | None = 0

        def step() -> bool:
            nonlocal after_id
            after_id = self._journal.trim(after_id or 0, older_than_at, dead_letters_older_than_at)
            return after_id is None

        self._writer.add(step, done)

    def purge_dead_letter(self, task_id: str, done: Done) -> None:
        """Delete a dead letter's task and text, so that it can no longer be replayed; its outcome stays."""
        self._require_epoch()

        def step() -> bool:
            self._journal.purge_dead_letter(task_id)
            return True

        self._writer.add(step, done)

    def confirm_epoch(self, done: Done) -> None:
        """Call `done(None)` if this epoch is in force; the store fails, as by a write, when a later one has begun."""
        self._require_epoch()

        def step() -> bool:
            self._journal.confirm_epoch()
            return True

        self._writer.add(step, done)

    def outcome(self, task_id: str) -> Outcome | None:
        """Raises StoreCorrupt when its row does not match its checksum; so do the other reads."""
        return next(self._reader.outcomes("task_id", (task_id,)), None)

    def outcomes(self, ids: Sequence[str]) -> dict[str, Outcome]:
        """Those that exist, by task id."""
        return {outcome.task_id: outcome for outcome in self._reader.outcomes("task_id", ids)}

    def by_key(self, keys: Sequence[str]) -> dict[str, Outcome]:
        """The outcomes of these idempotency keys, by key."""
        return {outcome.key: outcome for outcome in self._reader.outcomes("key", keys)}

    def asked(self, task_id: str) -> Asked | None:
        """What a router read of a task that has ended; None where none had a word in it, or nothing was kept."""
        return self._reader.asked(task_id)

    def grade(self, task_id: str) -> Grade | None:
        """The newest grade of a task; None where nobody gave one."""
        return self._reader.grade(task_id)

    def chunks(self, task_id: str, first: int = 0, *, restarts: int, most_bytes: int = 1 << 18) -> list[ChunkRow]:
        """What a task gave out from the number `first` on, up to so many restarts: without a gap, and about so many
        bytes (one row at least, some hundred at most). The first row may begin before `first`. Kept as long as the
        task's outcome."""
        return self._reader.chunks(task_id, first, restarts, most_bytes)

    def recorded(self) -> Iterator[Recorded]:
        """All that is kept of every task that has ended, in the order of commit, a few hundred at a time in memory."""
        return self._reader.all_recorded()

    def recent_outcomes(self, limit: int = 100) -> list[Outcome]:
        """The newest first."""
        return self._reader.recent(limit)

    def dead_letters(self, limit: int = 100, after: str = "") -> list[tuple[Task, Outcome]]:
        """The newest first; go on with `after` the last id seen. Raises UnknownTask when nothing is known of that."""
        return self._reader.dead_letters(limit, after)

    def dead_letter(self, task_id: str) -> tuple[Task, Outcome] | None:
        return self._reader.dead_letter(task_id)

    def counts(self) -> dict[TaskState, int]:
        """Outcomes kept, by state; states without any are left out."""
        return self._reader.counts()

    def close(self) -> None:
        """Write what is queued and let go of the database. Again: nothing. Not from within a `done`.

        Raises StoreError when the last checkpoint fails; what was acknowledged is on disk all the same.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._writer.close()
        self._let_go(began=self._began)

    @abstractmethod
    def _let_go(self, *, began: bool) -> None:
        """Close the connections; nothing is written any more."""

    def _require_epoch(self) -> None:
        if not self._began:
            raise StoreError("begin_epoch comes first")
