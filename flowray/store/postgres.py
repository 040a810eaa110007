"""The store in PostgreSQL, for a coordinator that may run on any node: the same rows, checks and transactions."""

from __future__ import annotations

from collections.abc import Mapping

from flowray.errors import StoreError
from flowray.store.config import StoreConfig
from flowray.store.postgres_journal import PostgresJournal
from flowray.store.postgres_schema import connect_reader
from flowray.store.reader import Reader
from flowray.store.store import Store
from flowray.store.writer import Done


class PostgresStore(Store):
    """One process's hold on the store in a schema."""

    _journal: PostgresJournal

    @classmethod
    def open(cls, config: StoreConfig) -> PostgresStore:
        """Open the store that the configuration names, made if missing. Nothing is written but empty tables.

        Raises:
            StoreUnsupported: the server cannot keep the promise, or a newer flowray made the tables.
            StoreError: it cannot be reached or lets nobody in.
        """
        journal = PostgresJournal(config)
        try:
            reader = Reader.on(connect_reader(config))
        except StoreError:
            journal.close()
            raise
        return cls(journal, reader, config)

    def require_room(self, size_bytes: int) -> None:
        """See Store.require_room. Before `begin_epoch` only: it uses the connection that writes."""
        self._journal.require_room(size_bytes)

    def files(self) -> dict[str, bytes]:
        """Small files of the runtime, by name. Raises StoreCorrupt when one is not what was kept."""
        return self._reader.files()

    def keep_files(self, files: Mapping[str, bytes], done: Done) -> None:
        """Keep these, in place of those of the same names; fenced and answered as everything is."""
        self._require_epoch()

        def step() -> bool:
            self._journal.keep_files(files)
            return True

        self._writer.add(step, done)

    def _let_go(self, *, began: bool) -> None:
        self._reader.close()
        self._journal.close()
