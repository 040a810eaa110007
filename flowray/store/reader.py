"""Questions to the store: outcomes and dead letters, each checked against its checksum before it is believed.

One connection behind a lock, its statements short; they see what is committed and never wait for the writer.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flowray.core.commands import AddAgents
from flowray.core.model import AgentSpec, Asked, Grade, Outcome, Recorded, Task
from flowray.core.states import TaskState
from flowray.errors import StoreCorrupt, UnknownTask
from flowray.store import reading, records, recovery, schema
from flowray.store.config import StoreConfig
from flowray.store.connection import Connection
from flowray.store.records import ChunkRow, Head

_BESIDE = 1 + len(records.OUTCOME_COLUMNS)  # where what lies beside an outcome begins in a row that starts with its id
_OUTCOME = ", ".join(f"o.{column}" for column in records.OUTCOME_COLUMNS)
_BATCH = 500  # ids in one statement; outcomes, or rows of chunks, in one answer
# The row in which the first number lies and those after it, until they have so many bytes. Sizes first, because
# PostgreSQL sends all that is selected, whether it is fetched or not.
_CHUNKS = f"""
WITH found AS (SELECT first AS number, length(body) AS size_bytes FROM chunks WHERE task_id = ? AND first >= coalesce(
    (SELECT max(first) FROM chunks WHERE task_id = ? AND first <= ?), 0) AND first + count > ? ORDER BY first LIMIT ?),
sums AS (SELECT number, sum(size_bytes) OVER (ORDER BY number) - size_bytes AS before_bytes FROM found)
SELECT {", ".join(records.CHUNK_COLUMNS)} FROM chunks WHERE task_id = ?
    AND first BETWEEN (SELECT min(number) FROM sums) AND (SELECT max(number) FROM sums WHERE before_bytes < ?)
ORDER BY first
"""


class Reader:
    """The reading connection."""

    def __init__(self, directory: Path, config: StoreConfig) -> None:
        """Of the journal that `config` names, else of the one in `directory`. Raises StoreError."""
        self._begin(reading.connect_reader(directory, config))

    @classmethod
    def on(cls, connection: Connection) -> Reader:
        """By this connection, which it closes."""
        reader = cls.__new__(cls)
        reader._begin(connection)
        return reader

    def _begin(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._version = 0  # of the schema, as far as is known: the first epoch of this flowray makes it the newest

    def outcomes(self, column: str, values: Sequence[str]) -> Iterator[Outcome]:
        """Those whose task_id or key is among the values."""
        for start in range(0, len(values), _BATCH):
            batch = values[start : start + _BATCH]
            # The key's index leaves out "", so the statement must say the same to use it.
            extra = " AND o.\"key\" <> ''" if column == "key" else ""
            marks = ", ".join("?" * len(batch))
            for row in self._rows(f'SELECT {_OUTCOME} FROM outcomes o WHERE o."{column}" IN ({marks}){extra}', batch):
                yield records.decode_outcome(*row)

    def all_outcomes(self) -> Iterator[Outcome]:
        """Every outcome kept, in the order of commit; a few hundred at a time are in memory.

        It sees no single moment: what is committed meanwhile comes too, what is trimmed meanwhile may not.
        """
        last_id = 0
        while rows := self._rows(
            f"SELECT o.id, {_OUTCOME} FROM outcomes o WHERE o.id > ? ORDER BY o.id LIMIT ?", (last_id, _BATCH)
        ):
            last_id = rows[-1][0]
            for row in rows:
                yield records.decode_outcome(*row[1:])

    def all_recorded(self) -> Iterator[Recorded]:
        """The same with what lies beside the outcomes: what was asked, and the newest grade."""
        if not self._has(2):
            yield from (Recorded(outcome=outcome) for outcome in self.all_outcomes())
            return
        last_id = 0
        while rows := self._rows(
            f"SELECT o.id, {_OUTCOME}, a.body, a.sha, g.body, g.sha FROM outcomes o LEFT JOIN asked a ON a.id = o.id "
            "LEFT JOIN grades g ON g.id = o.id WHERE o.id > ? ORDER BY o.id LIMIT ?",
            (last_id, _BATCH),
        ):
            last_id = rows[-1][0]
            for row in rows:
                text, text_sha, grade, grade_sha = row[_BESIDE:]
                yield Recorded(
                    outcome=records.decode_outcome(*row[1:_BESIDE]),
                    asked=records.decode_asked(row[1], text, text_sha) if text is not None else None,
                    grade=records.decode_grade(row[1], grade, grade_sha) if grade is not None else None,
                )

    def asked(self, task_id: str) -> Asked | None:
        """What a router read of a task that has ended."""
        found = self._beside("asked", task_id)
        return records.decode_asked(task_id, *found) if found is not None else None

    def grade(self, task_id: str) -> Grade | None:
        """The newest one."""
        found = self._beside("grades", task_id)
        return records.decode_grade(task_id, *found) if found is not None else None

    def chunks(self, task_id: str, first: int, restarts: int, most_bytes: int) -> list[ChunkRow]:
        """What a task gave out from the number `first` on, without a gap: about so many bytes, one row at least, and
        some hundred rows at most.

        The first row may begin before `first`. What was recorded after a later restart than `restarts` is left out.
        """
        if not self._has(3):
            return []
        found: list[ChunkRow] = []
        for row in self._rows(_CHUNKS, (task_id, task_id, first, first, _BATCH, task_id, most_bytes)):
            one = records.decode_chunks(*row)
            expected = found[-1].first + found[-1].count if found else first
            if one.restarts > restarts or one.first > expected:
                break
            found.append(one)
        return found

    def specs(self) -> dict[str, AgentSpec]:
        """The classes of agents of the team, by name. Reads all that is journalled since the snapshot."""
        with self._lock, schema.translated("read the journal"):
            self._connection.execute("BEGIN")
            try:
                head = schema.read_head(self._connection)
                snapshot, previous = recovery.read_snapshot(self._connection, head)
                found = {spec.name: spec for spec in snapshot.specs} if snapshot is not None else {}
                for group in recovery.read_journal(self._connection, head, previous, None):
                    found.update((one.spec.name, one.spec) for one in group if isinstance(one, AddAgents))
            finally:
                self._connection.execute("COMMIT")
        return found

    def recent(self, limit: int) -> list[Outcome]:
        rows = self._rows(f"SELECT {_OUTCOME} FROM outcomes o ORDER BY o.id DESC LIMIT ?", (limit,))
        return [records.decode_outcome(*row) for row in rows]

    def dead_letters(self, limit: int, after: str) -> list[tuple[Task, Outcome]]:
        """Raises UnknownTask when `after` names no task; a dead letter purged meanwhile still marks its place."""
        where, values = "", []
        if after:
            found = self._rows("SELECT resolved_at FROM outcomes WHERE task_id = ?", (after,))
            if not found:
                raise UnknownTask(f"no dead letter {after} to go on from")
            where, values = "WHERE (d.at, d.task_id) < (?, ?)", [found[0][0], after]
        return self._letters(f"{where} ORDER BY d.at DESC, d.task_id DESC LIMIT ?", (*values, limit))

    def dead_letter(self, task_id: str) -> tuple[Task, Outcome] | None:
        found = self._letters("WHERE d.task_id = ?", (task_id,))
        return found[0] if found else None

    def files(self) -> dict[str, bytes]:
        """Small files of the runtime, where the store is no file itself."""
        rows = self._rows("SELECT name, body, sha FROM files", ())
        for name, body, sha in rows:
            if records.body_sha(body) != sha:
                raise StoreCorrupt(f"the file {name} does not match its checksum")
        return {name: body for name, body, _ in rows}

    def counts(self) -> dict[TaskState, int]:
        counts = records.decode_counts(self.head().counts)
        return {TaskState(state): count for state, count in sorted(counts.items()) if count}

    def head(self) -> Head:
        with self._lock, schema.translated("read the journal's head"):
            # One transaction: the head spans two tables and must be of one moment.
            self._connection.execute("BEGIN")
            try:
                return schema.read_head(self._connection)
            finally:
                self._connection.execute("COMMIT")

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def _beside(self, table: str, task_id: str) -> tuple[bytes, bytes] | None:
        if not self._has(2):
            return None
        found = self._rows(
            f"SELECT b.body, b.sha FROM {table} b JOIN outcomes o ON o.id = b.id WHERE o.task_id = ?", (task_id,)
        )
        return found[0] if found else None

    def _has(self, version: int) -> bool:
        """Is there what this version of the schema has? Not before the first epoch of such a flowray."""
        if self._version < version:
            with self._lock, schema.translated("read from the store"):
                self._version = schema.version(self._connection)
        return self._version >= version

    def _letters(self, rest: str, values: Sequence[object]) -> list[tuple[Task, Outcome]]:
        rows = self._rows(
            f"SELECT d.task_id, d.body, d.sha, {_OUTCOME} FROM dead_letters d "
            f"JOIN outcomes o ON o.task_id = d.task_id {rest}",
            values,
        )
        return [(records.decode_task(*row[:3]), records.decode_outcome(*row[3:])) for row in rows]

    def _rows(self, statement: str, values: Sequence[object]) -> list[Any]:
        with self._lock, schema.translated("read from the store"):
            return self._connection.execute(statement, tuple(values)).fetchall()
