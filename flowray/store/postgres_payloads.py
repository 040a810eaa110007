"""Large payloads in PostgreSQL, beside the journal: pieces of a content under its SHA-256.

For a runtime whose coordinator may move: no node's disk is asked. A payload is there for everybody, whatever happens,
once `put` has returned. One process of the runtime does this for all others (the keeper), so that the server has few
connections; the others reach it through Ray's object store.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from flowray.errors import StoreCorrupt, StoreError
from flowray.store import postgres_schema
from flowray.store.config import StoreConfig
from flowray.store.postgres_session import Session, is_away

_PIECE_BYTES = 1 << 20  # a row: the server holds it in memory several times over
_PAGE_ROWS = 1_000  # names looked at in one statement of `delete_unused`
_LOCK_S = 120  # another process may be writing the same payload

_PATIENCE_S = 20.0  # with a server that is being restarted
_AGAIN_S = 0.2

Buffer = bytes | bytearray | memoryview
T = TypeVar("T")


class PostgresPayloads:
    """The payloads of one runtime. Any thread; each that is inside at one time has a connection of its own."""

    def __init__(self, config: StoreConfig) -> None:
        """The tables are there: their coordinator has made them."""
        self._config = config
        self._idle: list[Session] = []
        self._lock = threading.Lock()

    def put(self, *parts: Buffer) -> str:
        """Keep these bytes, one part after the other; their reference, once they are on the server's disk.

        What is there already is not written again, but is as good as new for `delete_unused`. Raises StoreError.
        """
        views = [memoryview(part).cast("B") for part in parts]
        digest = hashlib.sha256()
        for view in views:
            digest.update(view)
        ref, size = f"sha256:{digest.hexdigest()}", sum(map(len, views))

        def write(session: Session) -> None:
            session.execute("BEGIN")
            session.execute("SELECT set_config('lock_timeout', ?, true)", (f"{_LOCK_S}s",))
            is_new = session.execute(
                "INSERT INTO payloads (ref, size_bytes, written_at) VALUES (?, ?, ?) ON CONFLICT (ref) "
                "DO UPDATE SET written_at = greatest(payloads.written_at, excluded.written_at) RETURNING xmax = 0",
                (ref, size, time.time()),
            ).fetchone()[0]
            if is_new:
                for number, piece in enumerate(_pieces(views)):
                    session.execute(
                        "INSERT INTO payload_pieces (ref, number, body) VALUES (?, ?, ?)", (ref, number, piece)
                    )
            session.commit()

        self._done(write)
        return ref

    write = put

    def sync(self, refs: Iterable[str]) -> None:
        """Nothing is left to be done."""

    def get(self, ref: str) -> bytes:
        """Raises StoreCorrupt when the content does not match, StoreError when it is not there."""

        def read(session: Session) -> bytearray:
            row = session.execute("SELECT size_bytes FROM payloads WHERE ref = ?", (ref,)).fetchone()
            if row is None:
                raise StoreError(f"payload {ref[:100]} is not in {session.place}: deleted, or never written there")
            data = bytearray()
            while len(data) < row[0]:
                number = len(data) // _PIECE_BYTES
                piece = session.execute(
                    "SELECT body FROM payload_pieces WHERE ref = ? AND number = ?", (ref, number)
                ).fetchone()
                if piece is None or not piece[0]:
                    raise StoreCorrupt(f"payload {ref} in {session.place} lacks its piece {number}")
                data += piece[0]
            if f"sha256:{hashlib.sha256(data).hexdigest()}" != ref:
                raise StoreCorrupt(f"payload {ref} in {session.place} does not match its digest")
            return data

        return bytes(self._done(read))

    def map(self, ref: str) -> memoryview:
        """The same as a view, which may be written to."""
        return memoryview(bytearray(self.get(ref)))

    def delete_unused(self, keep: Callable[[str], bool], *, older_than_s: float, now_s: float) -> int:
        """Delete what `keep` does not want and what is older than this, by wall time. Returns how many."""
        deleted, after = 0, ""
        with self._session() as session:
            while rows := session.execute(
                "SELECT ref, written_at FROM payloads WHERE ref > ? ORDER BY ref LIMIT ?", (after, _PAGE_ROWS)
            ).fetchall():
                after = rows[-1][0]
                for ref, written_at in rows:
                    if now_s - written_at >= older_than_s and not keep(ref):
                        deleted += session.execute(
                            "DELETE FROM payloads WHERE ref = ? AND written_at = ?", (ref, written_at)
                        ).rowcount
        return deleted

    def close(self) -> None:
        """Let go of the server."""
        with self._lock:
            idle, self._idle = self._idle, []
        for session in idle:
            session.close()

    def _done(self, work: Callable[[Session], T]) -> T:
        """Do it, and once more on another connection while the server is away: a payload is the same each time."""
        give_up_at = time.monotonic() + _PATIENCE_S
        while True:
            try:
                with self._session() as session:
                    return work(session)
            except StoreError as error:
                if not is_away(error) or time.monotonic() > give_up_at:
                    raise
                time.sleep(_AGAIN_S)

    @contextlib.contextmanager
    def _session(self) -> Iterator[Session]:
        """For one call; kept for the next one unless something went wrong."""
        with self._lock:
            session = self._idle.pop() if self._idle else None
        if session is None or session.is_lost:
            session = postgres_schema.connect_writer(self._config)
        try:
            yield session
        except BaseException:
            session.close()
            raise
        with self._lock:
            self._idle.append(session)


def _pieces(views: list[memoryview]) -> Iterator[bytes]:
    """Of equal size, but for the last one."""
    piece = bytearray()
    for view in views:
        while view:
            room = _PIECE_BYTES - len(piece)
            piece += view[:room]
            view = view[room:]
            if len(piece) == _PIECE_BYTES:
                yield bytes(piece)
                piece.clear()
    if piece:
        yield bytes(piece)
