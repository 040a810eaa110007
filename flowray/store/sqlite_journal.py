"""The journal in an SQLite file: how it is taken over, synced, and copied out of its write-ahead log."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from dataclasses import replace
from pathlib import Path

from flowray.errors import StoreError
from flowray.store import records, recovery, schema, takeover
from flowray.store.config import StoreConfig
from flowray.store.journal import PAGE_BYTES, Journal
from flowray.store.recovery import Recovery
from flowray.store.witness import Witness

_IDLE_SHARE = 8  # of `checkpoint_bytes` so much is enough where nothing waits to be written
# After a checkpoint none for so many times as long as it took, if it can wait: they take a twentieth of the time.
_REST = 20


class SqliteJournal(Journal):
    """See the module."""

    _connection: sqlite3.Connection

    def __init__(self, directory: Path, config: StoreConfig) -> None:
        """Makes the file where it is missing. Raises StoreError."""
        self._directory = directory
        self._path = directory / schema.FILE_NAME
        with schema.translated(f"open {self._path}"):
            schema.create(self._path)
            connection = schema.connect_writer(self._path, config)
        super().__init__(connection, config, str(directory))
        self._checkpoint_after = 0.0  # monotonic: not before, if that can wait
        try:
            self._witness = Witness(directory)
        except StoreError:
            connection.close()
            raise

    def begin_epoch(self, owner: str) -> Recovery:
        """See Journal.begin_epoch."""
        with schema.translated("begin an epoch"):
            takeover.make_way(self._connection, self._path, self._config.takeover_wait_s)
        with self._transaction("begin an epoch"):
            connection = self._connection
            head = schema.read_head(connection)
            self._witness.compare(head)
            size = connection.execute("PRAGMA page_count").fetchone()[0] * PAGE_BYTES
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

    def checkpoint_if_due(self, *, idle: bool) -> None:
        """Copy the WAL into the database now and then: a little of it whenever nothing waits to be written.

        What is handed in meanwhile waits, so how long that takes is how late the slowest commits are.
        """
        began_at = time.monotonic()
        if self._unchecked_bytes < self._config.checkpoint_bytes:
            rested = began_at >= self._checkpoint_after
            if not (idle and rested and self._unchecked_bytes >= self._config.checkpoint_bytes // _IDLE_SHARE):
                return
        self._unchecked_bytes = 0
        self._checkpoint()
        ended_at = time.monotonic()
        self._checkpoint_after = ended_at + _REST * (ended_at - began_at)

    def _checkpoint(self) -> None:
        with schema.translated("checkpoint the journal"):
            _, logged, copied = self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if logged != copied and logged * PAGE_BYTES > 8 * self._config.checkpoint_bytes:
                # A reader was in the way each time: wait for it once, or the WAL grows without bound.
                self._connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()

    def checkpoint(self) -> bool:
        """Copy the whole WAL into the database. False when a later epoch has begun: then that is not ours to do."""
        with schema.translated("checkpoint the journal"):
            if self._epoch_in_force() != self._head.epoch:
                return False
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return True

    def begin(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        self._connection.execute("COMMIT")
        self._witness.record(self._head)

    def roll_back(self) -> None:
        if self._connection.in_transaction:
            # SQLite may have rolled back itself; a second error adds nothing to the first.
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")

    def is_taken(self, error: Exception) -> bool:
        return isinstance(error, sqlite3.IntegrityError)

    def close(self) -> None:
        """See Journal.close."""
        self._witness.close()
        super().close()
