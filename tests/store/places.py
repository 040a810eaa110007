"""Where a store under test is: a directory with an SQLite file, or a schema of a PostgreSQL server."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowray.store import Store, StoreConfig, VerifyReport, open_store, verify
from flowray.store.reader import Reader

from .builders import config

_numbers = itertools.count()


class Place:
    """A place for one store, whatever keeps it."""

    kind = ""

    def __init__(self, directory: Path, **fields: object) -> None:
        self.directory = directory
        self._fields = fields

    def config(self, **fields: object) -> StoreConfig:
        return config(**self._fields, **fields)

    @property
    def argument(self) -> str:
        """For `store.child` and `store.stopped`."""
        return str(self.directory)

    def open(self, **fields: object) -> Store:
        return open_store(self.directory, self.config(**fields))

    def opened(self, owner: str = "test", **fields: object) -> Store:
        """A store that has begun its epoch."""
        store = self.open(**fields)
        store.begin_epoch(owner)
        return store

    def verify(self) -> VerifyReport:
        return verify(self.directory, self.config())

    def reader(self) -> Reader:
        return Reader(self.directory, self.config())

    def another(self) -> Place:
        """Beside this one."""
        raise NotImplementedError

    def change(self, statement: str, *values: Any) -> list[Any]:
        """Behind the store's back."""
        raise NotImplementedError

    def set_meta(self, key: str, value: Any) -> None:
        """The epoch, its owner or the version of the schema; None removes it."""
        raise NotImplementedError


class SqlitePlace(Place):
    kind = "sqlite"

    def another(self) -> SqlitePlace:
        directory = self.directory / f"another-{next(_numbers)}"
        directory.mkdir()
        return SqlitePlace(directory)

    def change(self, statement: str, *values: Any) -> list[Any]:
        with contextlib.closing(sqlite3.connect(self.directory / "flowray.db")) as connection:
            found = connection.execute(statement, values).fetchall()
            connection.commit()
        return found

    def set_meta(self, key: str, value: Any) -> None:
        if value is None:
            self.change("DELETE FROM meta WHERE k = ?", key)
        else:
            self.change("UPDATE meta SET v = ? WHERE k = ?", value, key)


class PostgresPlace(Place):
    kind = "postgres"

    def __init__(self, directory: Path, url: str) -> None:
        super().__init__(directory, url=url, schema=f"t{next(_numbers)}")
        self._url = url

    @property
    def argument(self) -> str:
        return f"{self._url}#{self._fields['schema']}"

    def another(self) -> PostgresPlace:
        return PostgresPlace(self.directory, self._url)

    def change(self, statement: str, *values: Any) -> list[Any]:
        from flowray.store.postgres_session import Session

        with contextlib.closing(Session(self.config(), reads=False)) as session:
            cursor: Sequence[Any] = session.execute(statement, values)  # type: ignore[assignment]
            return cursor.fetchall() if statement.startswith("SELECT") else []  # type: ignore[attr-defined]

    def set_meta(self, key: str, value: Any) -> None:
        if value is None:
            self.change("DELETE FROM epoch")
        else:
            self.change(f"UPDATE epoch SET {key} = ?", value)
