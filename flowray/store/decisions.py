"""What a journal says of the router's versions, read only: beside a running coordinator, or of one that is gone."""

from __future__ import annotations

import contextlib
from pathlib import Path

from flowray.core.book import Book
from flowray.core.commands import RecordVersion
from flowray.core.model import RouterRecord
from flowray.errors import StoreError
from flowray.store import recovery, schema
from flowray.store.config import StoreConfig


def router_records(directory: Path, config: StoreConfig | None = None) -> tuple[RouterRecord, ...]:
    """The newest decisions, oldest first; the last one stands.

    Raises:
        StoreCorrupt: the snapshot or a row is not what was written.
        StoreError: there is no journal, or it cannot be read.
    """
    path = directory / schema.FILE_NAME
    if not path.is_file():
        raise StoreError(f"there is no journal in {directory}")
    book = Book()
    with (
        contextlib.closing(schema.connect_reader(path, config or StoreConfig())) as connection,
        schema.translated(f"read {path}"),
    ):
        connection.execute("BEGIN")  # one moment
        schema.check_version(connection, path)
        head = schema.read_head(connection)
        snapshot, previous = recovery.read_snapshot(connection, head)
        book.routers = list(snapshot.routers) if snapshot is not None else []
        for group in recovery.read_journal(connection, head, previous, None):
            for command in group:
                if isinstance(command, RecordVersion):
                    book.apply(command)
    return tuple(book.routers)
