"""The store in one SQLite file, beside the payloads of its node: the default, which needs no server."""

from __future__ import annotations

from pathlib import Path

from flowray.errors import StoreError
from flowray.store import filesystem
from flowray.store.config import StoreConfig
from flowray.store.reader import Reader
from flowray.store.sqlite_journal import SqliteJournal
from flowray.store.store import Store


class SqliteStore(Store):
    """One process's hold on the store in a directory."""

    _journal: SqliteJournal

    def __init__(self, journal: SqliteJournal, reader: Reader, directory: Path, config: StoreConfig) -> None:
        """For `open` only."""
        super().__init__(journal, reader, config)
        self._directory = directory

    @classmethod
    def open(cls, directory: Path, config: StoreConfig | None = None) -> SqliteStore:
        """Open the store in this directory, made if missing. Nothing is written but, the first time, empty tables.

        Raises:
            StoreUnsupported: the file system cannot keep the promise, or a newer flowray wrote the file.
            StoreCorrupt: the file is damaged.
            StoreError: it cannot be opened for another reason.
        """
        config = config if config is not None else StoreConfig()
        filesystem.refuse_unfit(directory, config)
        filesystem.make_directory(directory)
        filesystem.sync_directory(directory)
        journal = SqliteJournal(directory, config)
        try:
            filesystem.sync_directory(directory)
            reader = Reader(directory, config)
        except StoreError:
            journal.close()
            raise
        return cls(journal, reader, directory, config)

    def require_room(self, size_bytes: int) -> None:
        """See Store.require_room."""
        filesystem.require_room(self._directory, size_bytes)

    def _let_go(self, *, began: bool) -> None:
        """Raises StoreError when the last checkpoint fails; what was acknowledged is on disk all the same."""
        tidy = False
        try:
            if began and self._writer.failure is None:
                tidy = self._journal.checkpoint()
        finally:
            # The last to go takes the log with it, and syncs once more to do so. After a failure that must not be:
            # then the reader goes last, which cannot write.
            for part in (self._reader, self._journal) if tidy else (self._journal, self._reader):
                part.close()
