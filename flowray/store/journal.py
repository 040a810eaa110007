"""The store's transactions, one method each. All of them are fenced: they happen in our epoch or not at all.

Used by one thread at a time: by the caller of `begin_epoch` first, by the writer's thread from then on. The statements
are the same for every database; how one is opened, fenced and synced is in `sqlite_journal` and `postgres_journal`.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace

from flowray.core.commands import DurableCommand, GradeTask, RecordChunks, ResolveTask
from flowray.core.model import Grade, Snapshot
from flowray.core.states import STATE_NAMES
from flowray.core.streaming import DIGEST_BYTES
from flowray.errors import StoreError, StoreFenced
from flowray.store import records, schema
from flowray.store.config import StoreConfig
from flowray.store.connection import Connection
from flowray.store.records import Head
from flowray.store.recovery import Recovery

_INSERT_ROW = "INSERT INTO journal (seq, epoch, at, commands, body, sha) SELECT ?, ?, ?, ?, ?, ? WHERE {epoch} = ?"
# One statement for many rows: sqlite3 gives up the interpreter's lock for each statement it runs, and beside a busy
# event loop each time costs a switch interval (5 ms by default) to get it back. Any number up to 64 has a statement
# of its own, so that a usual group needs one; they stay prepared.
_ROWS_SMALL, _ROWS_LARGE = 64, 512
PAGE_BYTES = 4096


class Journal(ABC):
    """The writing connection and what it knows of the database: the head of this epoch."""

    EPOCH = "(SELECT v FROM meta WHERE k = 'epoch')"  # the one in force, within a statement

    def __init__(self, connection: Connection, config: StoreConfig, place: str) -> None:
        """`place` is for people: where the database is."""
        self._connection, self._config, self._place = connection, config, place
        self._head = Head()
        self._counts: dict[str, int] = {}
        self._unchecked_bytes = 0  # written since the last checkpoint, estimated

    @property
    def head(self) -> Head:
        return self._head

    @abstractmethod
    def begin_epoch(self, owner: str) -> Recovery:
        """Take the journal over: from here on every earlier owner's transactions fail."""

    @abstractmethod
    def settle(self) -> None:
        """What has to be done before anything is acknowledged. Once, after `begin_epoch`."""

    @abstractmethod
    def checkpoint_if_due(self, *, idle: bool) -> None:
        """Tidy up now and then. Called after the acknowledgements; with `idle` nothing waits to be written."""

    @abstractmethod
    def begin(self) -> None:
        """A transaction that writes."""

    @abstractmethod
    def commit(self) -> None:
        """Return once it is on disk."""

    @abstractmethod
    def roll_back(self) -> None:
        """Undo what is left of a transaction that failed, if anything is. Raises nothing."""

    @abstractmethod
    def is_taken(self, error: Exception) -> bool:
        """Does the database say that a row with this id or key is there?"""

    def write_group(self, commands: Sequence[DurableCommand]) -> None:
        """One journal row for all of them, and their projections."""
        head, connection = self._head, self._connection
        group = records.Group(commands)
        body, at, resolved, grades, chunks = group.body, group.at, group.resolved, group.grades, group.chunks
        seq = head.seq + 1
        sha = records.row_sha(head.sha, seq, head.epoch, body)
        with self._transaction("write to the journal"):
            row = (seq, head.epoch, at, len(commands), body, sha, head.epoch)
            if connection.executemany(_INSERT_ROW.format(epoch=self.EPOCH), [row]).rowcount != 1:
                self._raise_fenced()
            counts = self._insert_outcomes(resolved, group.outcomes) if resolved else self._counts
            texts = self._insert_asked(resolved) if group.asked else 0
            if grades:
                self._insert_grades(grades)
            if chunks:
                self._write_chunks(chunks)
            dead = [
                (command.task.id, command.outcome.resolved_at, letter, records.body_sha(letter))
                for command in resolved
                if command.task is not None
                for letter in (records.encode(command.task),)
            ]
            if dead:
                connection.executemany("INSERT INTO dead_letters VALUES (?, ?, ?, ?)", dead)
            self._advance(
                replace(head, seq=seq, sha=sha, last_at=max(head.last_at, at), counts=records.encode(counts)),
            )
            self._counts = counts
        # Two index pages for each outcome, as its id and key may lie anywhere; the body twice.
        texts += sum(command.size_bytes for command in chunks)
        pages = 4 + 2 * len(resolved) + len(grades) + len(chunks)
        self._unchecked_bytes += 2 * len(body) + texts + PAGE_BYTES * pages

    def write_snapshot(self, snapshot: Snapshot) -> None:
        """Replace the snapshot and the journal rows that it covers: all written so far."""
        head, connection = self._head, self._connection
        with self._transaction("write a snapshot"):
            self._check_fence()
            seq = head.seq
            connection.execute("DELETE FROM snapshots")
            previous = records.GENESIS
            for part, body in enumerate((head.sha, *records.snapshot_parts(snapshot), b"end")):
                previous = records.row_sha(previous, seq, part, body)
                connection.execute("INSERT INTO snapshots VALUES (?, ?, ?, ?)", (seq, part, body, previous))
                self._unchecked_bytes += len(body)
            connection.execute("DELETE FROM journal WHERE seq <= ?", (seq,))
            self._advance(replace(head, snapshot_seq=seq, last_at=max(head.last_at, snapshot.at)))

    def trim(self, after_id: int, older_than_at: float, dead_letters_older_than_at: float | None) -> int | None:
        """Delete old outcomes among the next rows after `after_id`. Returns where to go on, None at the end."""
        connection = self._connection
        rows = connection.execute(
            "SELECT id, EXISTS (SELECT 1 FROM dead_letters d WHERE d.task_id = o.task_id), "
            f"{', '.join(records.OUTCOME_COLUMNS)} FROM outcomes o WHERE id > ? ORDER BY id LIMIT ?",
            (after_id, self._config.trim_rows),
        ).fetchall()
        bound = dead_letters_older_than_at
        gone = [
            (row[0], row[2], row[3])
            for row in rows
            if row[4] < older_than_at and (not row[1] or (bound is not None and row[4] < bound))
            # What is damaged is not believed to be old: it stays, for whoever reads or verifies it to be told.
            if records.is_sound(row[2:])
        ]
        if gone:
            counts = dict(self._counts)
            for _, _, state in gone:
                counts[state] -= 1
            with self._transaction("trim outcomes"):
                self._check_fence()
                for table in ("outcomes", "asked", "grades"):
                    connection.executemany(f"DELETE FROM {table} WHERE id = ?", [(row[0],) for row in gone])
                for table in ("dead_letters", "chunks"):
                    connection.executemany(f"DELETE FROM {table} WHERE task_id = ?", [(row[1],) for row in gone])
                self._advance(replace(self._head, counts=records.encode(counts)))
                self._counts = counts
            self._unchecked_bytes += PAGE_BYTES * 3 * len(gone)
        if len(rows) < self._config.trim_rows or rows[-1][4] >= older_than_at:
            return None
        last: int = rows[-1][0]
        return last

    def purge_dead_letter(self, task_id: str) -> None:
        """Delete the task of a dead letter, and what else is kept of its text; its outcome stays, as outcomes do.

        Nothing happens when it is not there.
        """
        with self._transaction("purge a dead letter"):
            self._check_fence()
            gone = self._connection.execute("DELETE FROM dead_letters WHERE task_id = ?", (task_id,)).rowcount
            if gone:
                self._connection.execute(
                    "DELETE FROM asked WHERE id = (SELECT id FROM outcomes WHERE task_id = ?)", (task_id,)
                )
                self._connection.execute("DELETE FROM chunks WHERE task_id = ?", (task_id,))
            self._advance(self._head)

    def confirm_epoch(self) -> None:
        """Raise StoreFenced unless this epoch is in force."""
        with schema.translated("look at the epoch"):
            self._check_fence()

    def close(self) -> None:
        """Let go of the database. Again: nothing."""
        self._connection.close()

    @contextlib.contextmanager
    def _transaction(self, doing: str) -> Iterator[None]:
        before = self._head, self._counts
        try:
            with schema.translated(doing):
                self.begin()
                yield
                self.commit()
        except BaseException:
            self._head, self._counts = before
            self.roll_back()
            raise

    def _advance(self, head: Head) -> None:
        self._head = replace(head, changes=head.changes + 1)
        schema.write_head(self._connection, self._head)

    def _check_fence(self) -> None:
        if self._epoch_in_force() != self._head.epoch:
            self._raise_fenced()

    def _epoch_in_force(self) -> int:
        epoch: int = self._connection.execute("SELECT v FROM meta WHERE k = 'epoch'").fetchone()[0]
        return epoch

    def _raise_fenced(self) -> None:
        rows = self._connection.execute("SELECT v FROM meta WHERE k IN ('epoch', 'owner') ORDER BY k").fetchall()
        raise StoreFenced(
            f"epoch {self._head.epoch} is over: {rows[1][0]!r} began epoch {rows[0][0]} in {self._place}; "
            "this process must stop"
        )

    def _insert_outcomes(self, resolved: Sequence[ResolveTask], bodies: Sequence[bytes]) -> dict[str, int]:
        counts = dict(self._counts)
        rows: list[tuple[object, ...]] = []
        for command, body in zip(resolved, bodies, strict=True):
            outcome = command.outcome
            state = STATE_NAMES[outcome.state]
            counts[state] = counts.get(state, 0) + 1
            sha = records.body_sha(body)
            rows.append((outcome.task_id, state, outcome.resolved_at, outcome.key, outcome.fingerprint, body, sha))
        try:
            self._insert("outcomes", f"({', '.join(records.OUTCOME_COLUMNS)})", rows)
        except Exception as error:
            if not self.is_taken(error):
                raise
            ids = ", ".join(str(row[0]) for row in rows[:_ROWS_SMALL])
            raise StoreError(
                f"a task or a key has an outcome already, and the first one stands: {error}: {ids}"
            ) from error
        return counts

    def _insert_asked(self, resolved: Sequence[ResolveTask]) -> int:
        """The texts of outcomes that were just inserted, in this order, under their ids. Returns how many bytes."""
        # Ids rise by one from row to row, as there is one writer, so the newest ids are those of these outcomes.
        newest = self._connection.execute("SELECT max(id) FROM outcomes").fetchone()[0]
        rows: list[tuple[object, ...]] = []
        size_bytes = 0
        for outcome_id, command in enumerate(resolved, newest - len(resolved) + 1):
            if command.asked is not None:
                body = records.encode(command.asked)
                size_bytes += len(body)
                rows.append((outcome_id, body, records.asked_sha(command.outcome.task_id, body)))
        self._insert("asked", "(id, body, sha)", rows)
        return size_bytes

    def _insert_grades(self, commands: Sequence[GradeTask]) -> None:
        """The newest of a task stands. One whose outcome was trimmed meanwhile goes nowhere, as nothing is about it."""
        rows = []
        for command in commands:
            body = records.encode(Grade(command.task_id, command.quality, command.at, command.by))
            rows.append((body, records.body_sha(body), command.task_id))
        self._connection.executemany(
            "INSERT INTO grades (id, body, sha) SELECT id, ?, ? FROM outcomes WHERE task_id = ? "
            "ON CONFLICT (id) DO UPDATE SET body = excluded.body, sha = excluded.sha",
            rows,
        )

    def _write_chunks(self, commands: Sequence[RecordChunks]) -> None:
        """In their order: those that a restart withdraws go, and a row of which a part stands becomes shorter."""
        columns = f"({', '.join(records.CHUNK_COLUMNS)})"
        rows: list[tuple[object, ...]] = []
        restarted: dict[str, int] = {}  # what has been withdrawn before
        for command in commands:
            task_id, first = command.task_id, command.first
            count = len(command.digests) // DIGEST_BYTES
            if command.restarts > restarted.get(task_id, 0):
                self._insert("chunks", columns, rows)
                rows.clear()
                self._withdraw_chunks(task_id, first)
                restarted[task_id] = command.restarts
            if count:
                where = (task_id, first, count, command.skip, command.restarts)
                rows.append((*where, command.body, records.chunk_sha(*where, command.body)))
        self._insert("chunks", columns, rows)

    def _withdraw_chunks(self, task_id: str, first: int) -> None:
        """Chunks from `first` on do not stand any more. Where they have gone already, nothing happens."""
        connection = self._connection
        connection.execute("DELETE FROM chunks WHERE task_id = ? AND first >= ?", (task_id, first))
        last = connection.execute(
            f"SELECT {', '.join(records.CHUNK_COLUMNS)} FROM chunks WHERE task_id = ? ORDER BY first DESC LIMIT 1",
            (task_id,),
        ).fetchone()
        found = records.decode_chunks(*last) if last is not None else None
        if found is not None and found.first + found.count > first:
            stands = first - found.first
            sha = records.chunk_sha(task_id, found.first, stands, found.skip, found.restarts, found.body)
            connection.execute(
                "UPDATE chunks SET count = ?, sha = ? WHERE task_id = ? AND first = ?",
                (stands, sha, task_id, found.first),
            )

    def _insert(self, table: str, columns: str, rows: Sequence[tuple[object, ...]]) -> None:
        start = 0
        while start < len(rows):
            left = len(rows) - start
            size = _ROWS_LARGE if left >= _ROWS_LARGE else min(left, _ROWS_SMALL)
            flat = list(itertools.chain.from_iterable(rows[start : start + size]))
            self._connection.executemany(_insert(table, columns, size), [flat])
            start += size


@functools.cache
def _insert(table: str, columns: str, rows: int) -> str:
    row = f"({', '.join('?' * (columns.count(',') + 1))})"
    return f"INSERT INTO {table} {columns} VALUES " + ", ".join([row] * rows)
