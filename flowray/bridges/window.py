"""The last ids seen, in a SQLite file: for servers that cannot remember them."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from flowray.errors import StoreError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS seen (
    route  TEXT NOT NULL,
    number INTEGER NOT NULL,
    id     TEXT NOT NULL,
    PRIMARY KEY (route, number),
    UNIQUE (route, id)
) STRICT, WITHOUT ROWID
"""
_AT_ONCE = 500  # SQLite's oldest limit is 999 variables in a statement
Found = TypeVar("Found")


class IdWindow:
    """The last `max_ids` ids of each route. What `add` has returned from survives the loss of power (WAL, full sync).

    The file belongs to one running bridge. Work on it is done in a thread, one piece at a time.
    """

    def __init__(self, file: Path, max_ids: int) -> None:
        """Open the file, made if missing with its directory. Raises StoreError when that cannot be."""
        self._file, self._max_ids = file, max_ids
        self._lock = asyncio.Lock()
        self._last: dict[str, int] = {}  # number of each route's newest id
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(file, isolation_level=None, check_same_thread=False, timeout=5)
            for line in ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL", _SCHEMA):
                self._database.execute(line)
            self._last.update(self._database.execute("SELECT route, MAX(number) FROM seen GROUP BY route"))
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{file}: {error}") from error

    async def known(self, route: str, ids: Sequence[str]) -> set[str]:
        """Those of the ids that were added before and are still in the window."""
        return await self._run(lambda: self._known(route, ids))

    async def add(self, route: str, ids: Iterable[str]) -> None:
        """Remember these. Raises StoreError when they could not be written."""
        await self._run(lambda: self._add(route, list(ids)))

    async def close(self) -> None:
        await self._run(self._database.close)

    def _known(self, route: str, ids: Sequence[str]) -> set[str]:
        found: set[str] = set()
        for start in range(0, len(ids), _AT_ONCE):
            part = ids[start : start + _AT_ONCE]
            marks = ",".join("?" * len(part))
            query = f"SELECT id FROM seen WHERE route=? AND id IN ({marks})"
            found.update(row[0] for row in self._database.execute(query, (route, *part)))
        return found

    def _add(self, route: str, ids: Sequence[str]) -> None:
        first = self._last.get(route, 0) + 1
        last = first + len(ids) - 1
        rows = [(route, number, message_id) for number, message_id in enumerate(ids, first)]
        self._database.execute("BEGIN IMMEDIATE")
        try:
            self._database.executemany("INSERT OR REPLACE INTO seen (route, number, id) VALUES (?, ?, ?)", rows)
            self._database.execute("DELETE FROM seen WHERE route=? AND number<=?", (route, last - self._max_ids))
            self._database.execute("COMMIT")
        except sqlite3.Error:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise
        self._last[route] = last

    async def _run(self, work: Callable[[], Found]) -> Found:
        async with self._lock:
            # A thread cannot be interrupted: who is cancelled here waits for it, or two would use the file at once.
            job = asyncio.ensure_future(asyncio.to_thread(work))
            try:
                return await asyncio.shield(job)
            except asyncio.CancelledError:
                await asyncio.wait({job})
                raise
            except sqlite3.Error as error:
                raise StoreError(f"{self._file}: {error}") from error
