"""Questions to the store: outcomes and dead letters, each checked against its checksum before it is believed.

One connection behind a lock, its statements short; they see what is committed and never wait for the writer.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flowray.core.model import Outcome, Task
from flowray.core.states import TaskState
from flowray.errors import UnknownTask
from flowray.store import records, schema
from flowray.store.config import StoreConfig
from flowray.store.records import Head

_OUTCOME = ", ".join(f"o.{column}" for column in records.OUTCOME_COLUMNS)
_BATCH = 500  # ids in one statement, outcomes in one answer


class Reader:
    """The reading connection."""

    def __init__(self, directory: Path, config: StoreConfig) -> None:
        path = directory / schema.FILE_NAME
        self._lock = threading.Lock()
        with schema.translated(f"open {path}"):
            self._connection = schema.connect_reader(path, config)
            # From its first read on it holds SQLite's shared lock. So the writing connection is never the last to
            # go, and when it closes after a failed sync it does not checkpoint, which would sync again.
            schema.check_version(self._connection, path)

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
