"""Read the journal back, believing nothing: each row is checked against the chain before it is used.

Read row after row, in order of seq, the chain proves that every row is what was written, that none is missing between
the snapshot and the head, and that none was added. The head proves where it ends, and the witness beside the
database proves that this end is not an earlier one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowray.core.commands import DurableCommand
from flowray.core.model import Snapshot
from flowray.errors import StoreCorrupt, StoreError
from flowray.store import reading, records, schema, witness
from flowray.store.config import StoreConfig
from flowray.store.connection import Connection
from flowray.store.records import Head

QUARANTINE = "quarantine"
_PAGE_ROWS = 256  # of a table, read at once
_LOWEST_ID = -(2**63)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What a coordinator that just began its epoch must know."""

    epoch: int  # its own, higher than any before
    snapshot: Snapshot | None  # None when there never was one
    commands: list[DurableCommand] = field(repr=False)  # those after the snapshot, in order
    last_at: float  # the highest time known; the new life's time-line must not start below it


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What an offline check found. Nothing is repaired."""

    epoch: int = 0
    journal_rows: int = 0
    commands: int = 0  # after the snapshot
    outcomes: int = 0
    dead_letters: int = 0
    texts: int = 0  # of tasks that a router had a word in
    grades: int = 0
    chunks: int = 0  # that tasks gave out while they ran
    problems: tuple[str, ...] = ()  # in the order found; empty when all is well

    @property
    def ok(self) -> bool:
        return not self.problems


def read_snapshot(connection: Connection, head: Head) -> tuple[Snapshot | None, bytes]:
    """The snapshot, and the checksum that the first journal row after it builds on."""
    if head.snapshot_seq < 0:
        return None, records.GENESIS
    rows = connection.execute(
        "SELECT part, body, sha FROM snapshots WHERE seq = ? ORDER BY part", (head.snapshot_seq,)
    ).fetchall()
    # Part 0 is the checksum of the last row covered, so the parts are chained to the journal and to one another.
    if not rows or rows[0][0] != 0:
        raise StoreCorrupt(f"the snapshot at {head.snapshot_seq} is missing")
    previous = records.GENESIS
    for index, (part, body, sha) in enumerate(rows):
        intact = part == index and isinstance(body, bytes)
        if not intact or records.row_sha(previous, head.snapshot_seq, part, body) != sha:
            raise StoreCorrupt(f"part {index} of the snapshot at {head.snapshot_seq} does not match its checksum")
        previous = sha
    if rows[-1][1] != b"end" or len(rows) < 3:
        raise StoreCorrupt(f"the end of the snapshot at {head.snapshot_seq} is missing")
    return records.join_snapshot(head.snapshot_seq, [row[1] for row in rows[1:-1]]), rows[0][1]


def read_journal(
    connection: Connection, head: Head, previous: bytes, directory: Path | None
) -> Iterator[list[DurableCommand]]:
    """The groups of commands after the snapshot, each checked first.

    `directory` is where the bytes of a bad row are kept; None keeps nothing (read only).
    Raises StoreCorrupt naming the row.
    """
    seq = max(head.snapshot_seq, 0)
    page = "SELECT seq, epoch, body, sha FROM journal WHERE seq > ? ORDER BY seq LIMIT ?"
    while rows := connection.execute(page, (seq, _PAGE_ROWS)).fetchall():
        for found, epoch, body, sha in rows:
            seq += 1
            if found != seq:
                raise StoreCorrupt(f"journal row {seq} is missing: the next one is {found}")
            intact = isinstance(body, bytes) and isinstance(epoch, int) and 0 <= epoch <= head.epoch
            if not intact or records.row_sha(previous, seq, epoch, body) != sha:
                kept = quarantine(directory, f"journal-{seq}", body) if directory is not None else ""
                raise StoreCorrupt(f"journal row {seq} does not match its checksum{kept}")
            previous = sha
            yield records.decode_commands(seq, body)
    if (seq, previous) != (head.seq, head.sha):
        raise StoreCorrupt(f"the journal ends at row {seq} and should end at row {head.seq}")


def quarantine(directory: Path, name: str, content: object) -> str:
    """Keep a copy of what is damaged, for whoever looks into it. Returns the end of a sentence."""
    path = directory / QUARANTINE / f"{name}.bin"
    data = content if isinstance(content, bytes) else repr(content).encode()
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
    except OSError as error:
        return f"; its bytes could not be copied to {path}: {error}"
    return f"; its bytes are in {path}"


def check_structure(connection: Connection) -> None:
    """SQLite's own check: pages, order, and that indexes and rows agree, so that no lookup misses a row.

    Raises StoreCorrupt.
    """
    found = [row[0] for row in connection.execute("PRAGMA integrity_check(10)").fetchall()]
    if found != ["ok"]:
        raise StoreCorrupt(f"the database is damaged: {'; '.join(str(line) for line in found)}")


def verify(directory: Path, config: StoreConfig | None = None) -> VerifyReport:
    """Check everything in a store, read only. Works beside a running coordinator; it sees one moment."""
    config = config if config is not None else StoreConfig()
    place = reading.require_journal(directory, config)
    problems: list[str] = []
    # Before the first read, so that a commit in between cannot look like a loss.
    acknowledged = witness.read(directory) if not config.url else None
    rows = commands = epoch = 0
    counts: dict[str, int] = {}
    try:
        opened = reading.connect_reader(directory, config)
    except StoreError as error:
        return VerifyReport(problems=(str(error),))
    with contextlib.closing(opened) as connection:
        try:
            with schema.translated(f"verify {place}"):
                connection.execute("BEGIN")
                head = schema.read_head(connection)
                epoch = head.epoch
                witness.compare(directory, acknowledged, head)
                _, previous = read_snapshot(connection, head)
                for group in read_journal(connection, head, previous, None):
                    rows, commands = rows + 1, commands + len(group)
        except StoreError as error:
            problems.append(str(error))
        for name, check in _CHECKS.items():
            if check is check_structure and config.url:
                continue  # a question to SQLite; for PostgreSQL there is pg_amcheck
            try:
                with schema.translated(f"verify {place}"):
                    counts[name] = check(connection) or 0
            except StoreError as error:
                problems.append(str(error))
    return VerifyReport(
        epoch=epoch,
        journal_rows=rows,
        commands=commands,
        outcomes=counts.get("outcomes", 0),
        dead_letters=counts.get("dead_letters", 0),
        texts=counts.get("texts", 0),
        grades=counts.get("grades", 0),
        chunks=counts.get("chunks", 0),
        problems=tuple(problems),
    )


def _paged(connection: Connection, page: str, after: object) -> Iterator[Any]:
    """All rows of a query for some after a key, which is their first column: few at a time are in memory."""
    while rows := connection.execute(page, (after, _PAGE_ROWS)).fetchall():
        after = rows[-1][0]
        yield from rows


def _check_outcomes(connection: Connection) -> int:
    found: dict[str, int] = {}
    columns = ", ".join(records.OUTCOME_COLUMNS)
    for row in _paged(connection, f"SELECT id, {columns} FROM outcomes WHERE id > ? ORDER BY id LIMIT ?", _LOWEST_ID):
        outcome = records.decode_outcome(*row[1:])
        found[outcome.state.value] = found.get(outcome.state.value, 0) + 1
    counts = records.decode_counts(schema.read_head(connection).counts)
    counted = {state: count for state, count in counts.items() if count}
    if counted != found:
        raise StoreCorrupt(f"there should be outcomes {counted} and there are {found}")
    return sum(found.values())


def _check_dead_letters(connection: Connection) -> int:
    count = 0
    page = "SELECT task_id, body, sha FROM dead_letters WHERE task_id > ? ORDER BY task_id LIMIT ?"
    for row in _paged(connection, page, ""):
        records.decode_task(*row)
        count += 1
    return count


def _check_texts(connection: Connection) -> int:
    return _check_beside(connection, "asked", records.decode_asked)


def _check_grades(connection: Connection) -> int:
    return _check_beside(connection, "grades", records.decode_grade)


def _check_chunks(connection: Connection) -> int:
    """Each row is what was written, and a task's chunks are numbered from 0 without a gap, up to what it ended with."""
    if schema.version(connection) < 3:
        return 0
    count, task, stands = 0, "", 0
    for row in _chunk_rows(connection):
        found = records.decode_chunks(*row)
        if row[0] != task:
            _check_end(connection, task, stands)
            task, stands = row[0], 0
        if found.first != stands:
            raise StoreCorrupt(f"chunk {stands} of task {task} is missing: the next one is {found.first}")
        stands = found.first + found.count
        count += found.count
    _check_end(connection, task, stands)
    return count


def _chunk_rows(connection: Connection) -> Iterator[Any]:
    """All of them, few at a time in memory."""
    columns = ", ".join(records.CHUNK_COLUMNS)
    page = f"SELECT {columns} FROM chunks WHERE (task_id, first) > (?, ?) ORDER BY task_id, first LIMIT ?"
    after: tuple[str, int] = "", 0
    while rows := connection.execute(page, (*after, _PAGE_ROWS)).fetchall():
        after = rows[-1][:2]
        yield from rows


def _check_end(connection: Connection, task_id: str, stands: int) -> None:
    """Has a task ended with as many chunks as there are? An open one has no outcome."""
    row = connection.execute(
        f"SELECT {', '.join(records.OUTCOME_COLUMNS)} FROM outcomes WHERE task_id = ?", (task_id,)
    ).fetchone()
    if row is not None and records.decode_outcome(*row).chunks != stands:
        raise StoreCorrupt(f"there are {stands} chunks of task {task_id}, and its outcome says something else")


def _check_beside(connection: Connection, table: str, decode: Callable[[str, object, bytes], object]) -> int:
    """Each row belongs to an outcome and is what was written."""
    if schema.version(connection) < 2:
        return 0
    count = 0
    page = (
        f"SELECT b.id, o.task_id, b.body, b.sha FROM {table} b LEFT JOIN outcomes o ON o.id = b.id "
        "WHERE b.id > ? ORDER BY b.id LIMIT ?"
    )
    for row_id, task_id, body, sha in _paged(connection, page, _LOWEST_ID):
        if task_id is None:
            raise StoreCorrupt(f"row {row_id} of {table} belongs to no outcome")
        decode(task_id, body, sha)
        count += 1
    return count


_CHECKS: dict[str, Callable[[Connection], int | None]] = {
    "structure": check_structure,
    "outcomes": _check_outcomes,
    "dead_letters": _check_dead_letters,
    "texts": _check_texts,
    "grades": _check_grades,
    "chunks": _check_chunks,
}
