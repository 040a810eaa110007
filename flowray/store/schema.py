"""Tables, connections and their settings: how an SQLite file becomes a store."""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from flowray.errors import StoreCorrupt, StoreError, StoreUnsupported
from flowray.store.config import StoreConfig
from flowray.store.connection import Connection
from flowray.store.records import Head

SCHEMA_VERSION = 3
FILE_NAME = "flowray.db"

_META = "CREATE TABLE meta (k TEXT PRIMARY KEY, v) WITHOUT ROWID"

# Plain SQL, of which the store in PostgreSQL is made too (`postgres_schema`).
# Outcomes keep their rowid: rows lie in the order of commit, which is the order of resolved_at. So the newest, and
# the oldest for `trim`, are found without another index to keep up at every commit.
TABLES = """
CREATE TABLE head (id INTEGER PRIMARY KEY CHECK (id = 1), seq INTEGER NOT NULL, sha BLOB NOT NULL,
    snapshot_seq INTEGER NOT NULL, changes INTEGER NOT NULL, last_at REAL NOT NULL, counts BLOB NOT NULL,
    "check" BLOB NOT NULL);
CREATE TABLE journal (seq INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, at REAL NOT NULL, commands INTEGER NOT NULL,
    body BLOB NOT NULL, sha BLOB NOT NULL);
CREATE TABLE snapshots (seq INTEGER NOT NULL, part INTEGER NOT NULL, body BLOB NOT NULL, sha BLOB NOT NULL,
    PRIMARY KEY (seq, part));
CREATE TABLE outcomes (id INTEGER PRIMARY KEY, task_id TEXT NOT NULL UNIQUE, state TEXT NOT NULL,
    resolved_at REAL NOT NULL, "key" TEXT NOT NULL, fingerprint TEXT NOT NULL, body BLOB NOT NULL, sha BLOB NOT NULL);
CREATE UNIQUE INDEX outcomes_by_key ON outcomes ("key") WHERE "key" <> '';
CREATE TABLE dead_letters (task_id TEXT PRIMARY KEY, at REAL NOT NULL, body BLOB NOT NULL, sha BLOB NOT NULL);
CREATE INDEX dead_letters_by_at ON dead_letters (at, task_id);
"""

# What lies beside outcomes, by their id: it comes later or is not for everybody, and goes with them.
BESIDE = """
CREATE TABLE asked (id INTEGER PRIMARY KEY, body BLOB NOT NULL, sha BLOB NOT NULL);
CREATE TABLE grades (id INTEGER PRIMARY KEY, body BLOB NOT NULL, sha BLOB NOT NULL);
"""

# What tasks gave out while they ran, of open ones and of those that have ended: `count` chunks from the number `first`
# on, after so many restarts. They are the ones of the body after its first `skip`.
CHUNKS = """
CREATE TABLE chunks (task_id TEXT NOT NULL, first INTEGER NOT NULL, count INTEGER NOT NULL, skip INTEGER NOT NULL,
    restarts INTEGER NOT NULL, body BLOB NOT NULL, sha BLOB NOT NULL, PRIMARY KEY (task_id, first));
"""


@contextlib.contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn the errors of SQLite and of the files into the store's, saying what was being done."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{doing}: {error}") from error
    except UnicodeDecodeError as error:  # the name of a table, in SQLite's own message
        raise StoreCorrupt(f"{doing}: a text in the database is damaged: {error}") from error
    except sqlite3.Error as error:
        if "decode to UTF-8" in str(error):  # sqlite3 has no name for that
            raise StoreCorrupt(f"{doing}: a text in the database is damaged: {error}") from error
        name = getattr(error, "sqlite_errorname", "") or type(error).__name__
        kind = StoreCorrupt if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")) else StoreError
        raise kind(f"{doing}: {error} ({name})") from error


def create(path: Path) -> None:
    """Make a store without content where there is none. It appears complete or not at all."""
    if path.exists():
        return
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.new")
    # Made here and not by SQLite, so that it is private from its first moment; WAL and SHM copy its mode.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    try:
        with contextlib.closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
            _create_tables(connection)
            # Last: until here each commit is in the file itself and synced, and there is no WAL to carry along.
            mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != "wal":
            raise StoreUnsupported(f"{path.parent}: SQLite offers journal mode {mode!r} here, not WAL")
        with contextlib.suppress(FileExistsError):  # another process was faster, and its store is as good
            path.hardlink_to(temporary)
    finally:
        temporary.unlink()


def connect_writer(path: Path, config: StoreConfig) -> sqlite3.Connection:
    """The connection that writes."""
    connection = _connect(path, config, "rw")
    try:
        check_version(connection, path)
        # FULL: each commit waits for its fsync. No automatic checkpoints: the writer makes them after it has
        # acknowledged. secure_delete: what was trimmed or purged is overwritten.
        for setting in ("synchronous=FULL", "secure_delete=ON", "wal_autocheckpoint=0", "journal_size_limit=67108864"):
            connection.execute(f"PRAGMA {setting}").fetchall()
        mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
        if mode != "wal":
            raise StoreCorrupt(f"{path} is in journal mode {mode!r}, not WAL: it was changed by something else")
    except BaseException:
        connection.close()
        raise
    return connection


def connect_reader(path: Path, config: StoreConfig) -> sqlite3.Connection:
    """A connection that cannot write, nor checkpoint when it is the last to close.

    Once it has read something it also keeps the writing connection from being the last.
    """
    return _connect(path, config, "ro")


def read_head(connection: Connection) -> Head:
    """Raises StoreCorrupt when the head is missing or does not match its checksum."""
    meta = dict(connection.execute("SELECT k, v FROM meta WHERE k IN ('epoch', 'owner')").fetchall())
    row = connection.execute(
        'SELECT seq, sha, snapshot_seq, changes, last_at, counts, "check" FROM head WHERE id = 1'
    ).fetchone()
    if row is None or not isinstance(meta.get("epoch"), int) or not isinstance(meta.get("owner"), str):
        raise StoreCorrupt("the head of the journal is missing")
    seq, sha, snapshot_seq, changes, last_at, counts, check = row
    head = Head(
        epoch=meta["epoch"],
        owner=meta["owner"],
        seq=seq,
        sha=sha,
        snapshot_seq=snapshot_seq,
        changes=changes,
        last_at=last_at,
        counts=counts,
    )
    if head.check() != check:
        raise StoreCorrupt("the head of the journal does not match its checksum")
    return head


def write_head(connection: Connection, head: Head) -> None:
    connection.executemany(
        'UPDATE head SET seq = ?, sha = ?, snapshot_seq = ?, changes = ?, last_at = ?, counts = ?, "check" = ?',
        [(head.seq, head.sha, head.snapshot_seq, head.changes, head.last_at, head.counts, head.check())],
    )


def check_version(connection: sqlite3.Connection, path: Path) -> None:
    """Raises StoreUnsupported for a file that a newer flowray wrote."""
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone() is None:
        raise StoreCorrupt(f"{path} is not a store of flowray")
    row = connection.execute("SELECT v FROM meta WHERE k = 'schema'").fetchone()
    version = row[0] if row is not None else None
    if not isinstance(version, int) or version < 1:
        raise StoreCorrupt(f"{path} has no schema version")
    if version > SCHEMA_VERSION:
        raise StoreUnsupported(
            f"{path} has schema version {version} and this flowray knows up to {SCHEMA_VERSION}: use a newer flowray"
        )


def version(connection: Connection) -> int:
    """Of the schema, which `check_version` has found good."""
    found: int = connection.execute("SELECT v FROM meta WHERE k = 'schema'").fetchone()[0]
    return found


def upgrade(connection: sqlite3.Connection) -> None:
    """Add what an earlier flowray did not have; part of the caller's transaction. Nothing that is there changes."""
    found = version(connection)
    if found < 2:
        _run(connection, BESIDE)
    if found < 3:
        _run(connection, CHUNKS)
        connection.execute("UPDATE meta SET v = ? WHERE k = 'schema'", (SCHEMA_VERSION,))


def _run(connection: sqlite3.Connection, statements: str) -> None:
    for statement in statements.split(";"):
        connection.execute(statement)


def _connect(path: Path, config: StoreConfig, mode: str) -> sqlite3.Connection:
    # One thread at a time is our own rule (a writer thread, a lock for the reader), so SQLite need not check it.
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=config.busy_timeout_s,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
    )


def _create_tables(connection: sqlite3.Connection) -> None:
    head = Head()
    connection.execute("BEGIN IMMEDIATE")
    _run(connection, f"{_META};{TABLES}{BESIDE}{CHUNKS}")
    connection.executemany(
        "INSERT INTO meta VALUES (?, ?)", [("schema", SCHEMA_VERSION), ("epoch", head.epoch), ("owner", head.owner)]
    )
    connection.execute(
        "INSERT INTO head VALUES (1, ?, ?, ?, ?, ?, ?, ?)",
        (head.seq, head.sha, head.snapshot_seq, head.changes, head.last_at, head.counts, head.check()),
    )
    connection.execute("COMMIT")
