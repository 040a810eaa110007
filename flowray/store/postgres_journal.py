"""The journal in PostgreSQL: how it is taken over, fenced and written, wherever its coordinator runs.

A writer's transaction begins by reading the one row of `epoch` with a lock that it keeps (FOR SHARE); a successor
begins its epoch by changing that row, so it waits for the transaction under way, and every later one finds its epoch
over. A writer that was stopped in the middle would keep that lock: the server ends it after
`store.idle_transaction_s`, and the successor, after `store.takeover_wait_s`, ends the session that is on record as the
writer's. It does so in any case once its own epoch is on disk: who is fenced has nothing to write.

A connection that is lost while COMMIT is under way leaves open whether it was committed. Nothing is tried again then:
as after a failed sync, the store takes nothing more, the process ends, and its successor reads what there is.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace

from flowray.errors import StoreError, StoreFenced
from flowray.store import postgres_schema, records, recovery, schema
from flowray.store.config import StoreConfig
from flowray.store.journal import Journal
from flowray.store.postgres_session import Session, is_locked, is_taken
from flowray.store.recovery import Recovery

_TAKEOVER_IDLE_S = 60  # between two statements of a takeover: a large snapshot is decoded meanwhile
_END_MS = 5_000  # for the server to end a session
_ROOM_SEQ = -2  # in place of a snapshot's, for a row that is taken back
_END_WRITER = (
    "SELECT pg_terminate_backend(a.pid, ?) FROM pg_stat_activity a JOIN epoch e "
    "ON a.pid = e.writer_pid AND a.backend_start = e.writer_began WHERE a.pid <> pg_backend_pid()"
)


class PostgresJournal(Journal):
    """See the module."""

    EPOCH = "(SELECT epoch FROM epoch)"
    _connection: Session

    def __init__(self, config: StoreConfig) -> None:
        """Makes schema and tables where they are missing. Raises StoreError."""
        session = postgres_schema.connect_writer(config)
        super().__init__(session, config, session.place)

    def begin_epoch(self, owner: str) -> Recovery:
        """See Journal.begin_epoch."""
        session = self._connection
        try:
            self._lock_epoch()
            session.execute(
                "SELECT set_config('idle_in_transaction_session_timeout', ?, true)", (f"{_TAKEOVER_IDLE_S}s",)
            )
            head = schema.read_head(session)
            snapshot, previous = recovery.read_snapshot(session, head)
            commands = [command for group in recovery.read_journal(session, head, previous, None) for command in group]
            former = session.execute("SELECT writer_pid, writer_began FROM epoch").fetchone()
            epoch = session.execute(
                "UPDATE epoch SET epoch = epoch + 1, owner = ?, writer_pid = pg_backend_pid(), writer_began = "
                "(SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()) RETURNING epoch",
                (owner,),
            ).fetchone()[0]
            self._counts = records.decode_counts(head.counts)
            self._advance(replace(head, epoch=epoch, owner=owner))
            session.commit()
        except BaseException:
            self.roll_back()
            raise
        self._end_former(former)
        return Recovery(epoch=epoch, snapshot=snapshot, commands=commands, last_at=self._head.last_at)

    def require_room(self, size_bytes: int) -> None:
        """Is so much of the server's disk to be had? It is taken and given back. Raises StoreError when it is not."""
        self._connection.execute("BEGIN")
        try:
            # Random: what can be compressed would take less.
            values = (_ROOM_SEQ, 0, os.urandom(size_bytes), b"")
            self._connection.execute("INSERT INTO snapshots (seq, part, body, sha) VALUES (?, ?, ?, ?)", values)
        finally:
            self.roll_back()

    def keep_files(self, files: Mapping[str, bytes]) -> None:
        """Replace these files of the runtime."""
        with self._transaction("keep files"):
            self._connection.executemany(
                "INSERT INTO files (name, body, sha) VALUES (?, ?, ?) "
                "ON CONFLICT (name) DO UPDATE SET body = excluded.body, sha = excluded.sha",
                [(name, body, records.body_sha(body)) for name, body in files.items()],
            )

    def settle(self) -> None:
        """Nothing: a server whose sync failed stops, and repeats its log before it goes on."""

    def checkpoint_if_due(self, *, idle: bool) -> None:
        """Nothing: that is the server's business."""

    def begin(self) -> None:
        """Also takes the lock that keeps this epoch in force until the end."""
        found = self._connection.begin_with("SELECT epoch FROM epoch FOR SHARE")
        if found is None or found[0] != self._head.epoch:
            self._raise_fenced()

    def commit(self) -> None:
        try:
            self._connection.commit()
        except StoreError as error:
            if not self._connection.is_lost:
                raise
            raise StoreError(f"{error}. Whether this was committed is not known") from error

    def roll_back(self) -> None:
        # A session that is lost is rolled back by the server; a second error adds nothing to the first.
        with contextlib.suppress(StoreError):
            if not self._connection.is_lost and self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def is_taken(self, error: Exception) -> bool:
        return is_taken(error)

    def confirm_epoch(self) -> None:
        """See Journal.confirm_epoch."""
        with self._fence_first():
            super().confirm_epoch()

    def trim(self, after_id: int, older_than_at: float, dead_letters_older_than_at: float | None) -> int | None:
        """See Journal.trim: it reads before its transaction begins."""
        with self._fence_first():
            return super().trim(after_id, older_than_at, dead_letters_older_than_at)

    @contextlib.contextmanager
    def _transaction(self, doing: str) -> Iterator[None]:
        with self._fence_first(), super()._transaction(doing):
            yield

    @contextlib.contextmanager
    def _fence_first(self) -> Iterator[None]:
        """Whoever lost the connection to a successor is told that, and not what the connection said."""
        try:
            yield
        except StoreError as error:
            if not self._connection.is_lost or isinstance(error, StoreFenced):
                raise
            try:
                with contextlib.closing(Session(self._config, reads=True)) as asking:
                    row = asking.execute("SELECT epoch, owner FROM epoch").fetchone()
            except StoreError:
                raise error from None  # nobody can tell: what the connection said is all that is known
            if row is not None and row[0] > self._head.epoch:
                raise StoreFenced(
                    f"epoch {self._head.epoch} is over: {row[1]!r} began epoch {row[0]} in {self._place}; "
                    "this process must stop"
                ) from error
            raise

    def _lock_epoch(self) -> None:
        """Begin a transaction that keeps every writer out. Ends the writer's session if it is in the way for long."""
        session = self._connection
        for is_last in (False, True):
            session.execute("BEGIN")
            try:
                session.execute("SELECT epoch FROM epoch FOR UPDATE")
            except StoreError as error:
                self.roll_back()
                if is_last or not is_locked(error):
                    raise
                session.execute(_END_WRITER, (_END_MS,))
            else:
                return

    def _end_former(self, former: tuple[int | None, object]) -> None:
        """The session of the epoch before, if it is there. It is fenced: whether it can be ended changes nothing."""
        with contextlib.suppress(StoreError):
            self._connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = ? AND backend_start = ? "
                "AND pid <> pg_backend_pid()",
                former,
            )
