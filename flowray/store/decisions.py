"""What a journal says of the router's versions, read only: beside a running coordinator, or of one that is gone."""

from __future__ import annotations

import contextlib
from pathlib import Path

from flowray.core.book import Book
from flowray.core.commands import RecordVersion
from flowray.core.model import RouterRecord
from flowray.store import reading, recovery, schema
from flowray.store.config import StoreConfig


def router_records(directory: Path, config: StoreConfig | None = None) -> tuple[RouterRecord, ...]:
    """The newest decisions, oldest first; the last one stands.

    Raises:
        StoreCorrupt: the snapshot or a row is not what was written.
        StoreError: there is no journal, or it cannot be read.
    """
    config = config or StoreConfig()
    place = reading.require_journal(directory, config)
    book = Book()
    with (
        contextlib.closing(reading.connect_reader(directory, config)) as connection,
        schema.translated(f"read {place}"),
    ):
        connection.execute("BEGIN")  # one moment
        head = schema.read_head(connection)
        snapshot, previous = recovery.read_snapshot(connection, head)
        book.routers = list(snapshot.routers) if snapshot is not None else []
        for group in recovery.read_journal(connection, head, previous, None):
            for command in group:
                if isinstance(command, RecordVersion):
                    book.apply(command)
    return tuple(book.routers)
