"""What the store asks of a database's connection: as much of `sqlite3.Connection` as PostgreSQL can be given too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol


class Cursor(Protocol):
    """The answer to a statement."""

    @property
    def rowcount(self) -> int:
        """Rows that it changed."""
        ...

    def fetchone(self) -> Any:
        """The next row, None after the last."""
        ...

    def fetchall(self) -> list[Any]:
        """All rows that are left."""
        ...

    def __iter__(self) -> Iterator[Any]: ...


class Connection(Protocol):
    """Each statement is a transaction of its own, but between BEGIN and COMMIT. `?` stands for a value."""

    def execute(self, statement: str, values: Sequence[Any] = (), /) -> Cursor:
        """Raises the database's own errors, or StoreError."""
        ...

    def executemany(self, statement: str, rows: Sequence[Sequence[Any]], /) -> Cursor:
        """One statement for each row of values."""
        ...

    def close(self) -> None:
        """Again: nothing."""
        ...
