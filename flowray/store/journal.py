"""The store's transactions, one method each. All of them are fenced: they happen in our epoch or not at all.

Used by one thread at a time: by the caller of `begin_epoch` first, by the writer's thread from then on.
"""

from __future__ import annotations

import contextlib
import functools
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from flowray.core.commands import DurableCommand, GradeTask, RecordChunks, ResolveTask
from flowray.core.model import Grade, Outcome, Snapshot
from flowray.core.streaming import DIGEST_BYTES
from flowray.errors import StoreError, StoreFenced
from flowray.store import records, recovery, schema, takeover
from flowray.store.config import StoreConfig
from flowray.store.records import Head
from flowray.store.recovery import Recovery
from flowray.store.witness import Witness

_FENCE = "(SELECT v FROM meta WHERE k = 'epoch')"
_INSERT_ROW = f"INSERT INTO journal (seq, epoch, at, commands, body, sha) SELECT ?, ?, ?, ?, ?, ? WHERE {_FENCE} = ?"
# One statement for many rows: sqlite3 gives up the interpreter's lock for each statement it runs, and beside a busy
# event loop each time costs a switch interval (5 ms by default) to get it back. Any number up to 64 has a statement
# of its own, so that a usual group needs one; they stay prepared.
_ROWS_SMALL, _ROWS_LARGE = 64, 512
_PAGE_BYTES = 4096


class Journal:
    """The writing connection and what it knows of the file: the head of this epoch."""

    def __init__(self, directory: Path, config: StoreConfig) -> None:
        self._directory = directory
        self._config = config
        self._path = directory / schema.FILE_NAME
        with schema.translated(f"open {self._path}"):
            schema.create(self._path)
            self._connection = schema.connect_writer(self._path, config)
        try:
            self._witness = Witness(directory)
        except StoreError:
            self._connection.close()
            raise
        self._head = Head()
        self._counts: dict[str, int] = {}
        self._unchecked_bytes = 0  # written since the last checkpoint, estimated

    @property
    def head(self) -> Head:
        return self._head

    def begin_epoch(self, owner: str) -> Recovery:
        """Take the journal over: from here on every earlier owner's transactions fail."""
        with schema.translated("begin an epoch"):
            takeover.make_way(self._connection, self._path, self._config.takeover_wait_s)
        with self._transaction("begin an epoch"):
            connection = self._connection
            head = schema.read_head(connection)
            self._witness.compare(head)
            size = connection.execute("PRAGMA page_count").fetchone()[0] * _PAGE_BYTES
            if size <= self._config.full_check_bytes:
                recovery.check_structure(connection)
            snapshot, previous = recovery.read_snapshot(connection, head)
            groups = recovery.read_journal(connection, head, previous, self._directory)
            commands = [command for group in groups for command in group]
            schema.upgrade(connection)
            epoch = connection.execute("UPDATE meta SET v = v + 1 WHERE k = 'epoch' RETURNING v").fetchone()[0]
            connection.execute("UPDATE meta SET v = ? WHERE k = 'owner'", (owner,))
            self._counts = records.decode_counts(head.counts)
            self._advance(replace(head, epoch=epoch, owner=owner))
        return Recovery(epoch=epoch, snapshot=snapshot, commands=commands, last_at=self._head.last_at)

    def settle(self) -> None:
        """Copy what the log has into the database, before anything more is acknowledged. Once, after `begin_epoch`.

        The process before may have ended because a sync failed. What it could not sync is still in the kernel's
        memory: it looks written, and no later sync writes it again. A log that went on behind it would end there
        after a power cut, with all that was acknowledged since. Copied, it is written anew.
        """
        for _ in range(2):
            with schema.translated("checkpoint the journal"):
                busy, logged, copied = self._connection.execute("PRAGMA wal_checkpoint(FULL)").fetchone()
            # Somebody was in the way. A reader goes by itself, and the next checkpoint copies the rest; one that was
            # stopped while it copied would be in the way for ever.
            if (not busy and logged == copied) or not takeover.end_holders(self._path):
                return

    def write_group(self, commands: Sequence[DurableCommand]) -> None:
        """One journal row for all of them, and their projections."""
        head, connection = self._head, self._connection
        body = records.encode_commands(commands)
        seq = head.seq + 1
        sha = records.row_sha(head.sha, seq, head.epoch, body)
        at = max(map(records.command_at, commands))
        resolved = [command for command in commands if isinstance(command, ResolveTask)]
        with self._transaction("write to the journal"):
            row = (seq, head.epoch, at, len(commands), body, sha, head.epoch)
            if connection.executemany(_INSERT_ROW, [row]).rowcount != 1:
                self._raise_fenced()
            counts = self._insert_outcomes([command.outcome for command in resolved]) if resolved else self._counts
            texts = self._insert_asked(resolved)
            if grades := [command for command in commands if isinstance(command, GradeTask)]:
                self._insert_grades(grades)
            if chunks := [command for command in commands if isinstance(command, RecordChunks)]:
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
        self._unchecked_bytes += 2 * len(body) + texts + _PAGE_BYTES * pages

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
            self._unchecked_bytes += _PAGE_BYTES * 3 * len(gone)
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

    def checkpoint_if_due(self) -> None:
        """Copy the WAL into the database now and then. Called after the acknowledgements: nobody waits for it."""
        if self._unchecked_bytes < self._config.checkpoint_bytes:
            return
        self._unchecked_bytes = 0
        with schema.translated("checkpoint the journal"):
            _, logged, copied = self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if logged != copied and logged * _PAGE_BYTES > 8 * self._config.checkpoint_bytes:
                # A reader was in the way each time: wait for it once, or the WAL grows without bound.
                self._connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()

    def checkpoint(self) -> bool:
        """Copy the whole WAL into the database. False when a later epoch has begun: then that is not ours to do."""
        with schema.translated("checkpoint the journal"):
            if self._epoch_in_force() != self._head.epoch:
                return False
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return True

    def close(self) -> None:
        self._witness.close()
        self._connection.close()

    @contextlib.contextmanager
    def _transaction(self, doing: str) -> Iterator[None]:
        before = self._head, self._counts
        connection = self._connection
        try:
            with schema.translated(doing):
                connection.execute("BEGIN IMMEDIATE")
                yield
                connection.execute("COMMIT")
            self._witness.record(self._head)
        except BaseException:
            self._head, self._counts = before
            if connection.in_transaction:
                # SQLite may have rolled back itself; a second error adds nothing to the first.
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
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
            f"epoch {self._head.epoch} is over: {rows[1][0]!r} began epoch {rows[0][0]} in {self._directory}; "
            "this process must stop"
        )

    def _insert_outcomes(self, outcomes: Sequence[Outcome]) -> dict[str, int]:
        counts = dict(self._counts)
        rows: list[tuple[object, ...]] = []
        for outcome in outcomes:
            state = outcome.state.value
            counts[state] = counts.get(state, 0) + 1
            body = records.encode(outcome)
            sha = records.body_sha(body)
            rows.append((outcome.task_id, state, outcome.resolved_at, outcome.key, outcome.fingerprint, body, sha))
        try:
            self._insert("outcomes", f"({', '.join(records.OUTCOME_COLUMNS)})", rows)
        except sqlite3.IntegrityError as error:
            ids = ", ".join(str(row[0]) for row in rows[:_ROWS_SMALL])
            raise StoreError(
                f"a task or a key has an outcome already, and the first one stands: {error}: {ids}"
            ) from error
        return counts

    def _insert_asked(self, resolved: Sequence[ResolveTask]) -> int:
        """The texts of outcomes that were just inserted, in this order, under their ids. Returns how many bytes."""
        if all(command.asked is None for command in resolved):
            return 0
        # SQLite gives each new row the highest id plus one, so the newest ids are those of these outcomes.
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
            "INSERT OR REPLACE INTO grades (id, body, sha) SELECT id, ?, ? FROM outcomes WHERE task_id = ?", rows
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
            flat = [value for row in rows[start : start + size] for value in row]
            self._connection.executemany(_insert(table, columns, size), [flat])
            start += size


@functools.cache
def _insert(table: str, columns: str, rows: int) -> str:
    row = f"({', '.join('?' * (columns.count(',') + 1))})"
    return f"INSERT INTO {table} {columns} VALUES " + ", ".join([row] * rows)
