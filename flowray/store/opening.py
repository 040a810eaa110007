"""The store that a configuration names."""

from __future__ import annotations

from pathlib import Path

from flowray.errors import MissingExtra, StoreUnsupported
from flowray.store.config import StoreConfig
from flowray.store.sqlite import SqliteStore
from flowray.store.store import Store


def open_store(directory: Path, config: StoreConfig) -> Store:
    """In PostgreSQL where the configuration says so, else in this directory.

    Raises:
        StoreUnsupported: it cannot be kept there, or a newer flowray made it, or psycopg is not installed.
        StoreError: it cannot be opened for another reason; StoreCorrupt when it is damaged.
    """
    if not config.url:
        return SqliteStore.open(directory, config)
    try:
        from flowray.store.postgres import PostgresStore
    except MissingExtra as error:
        raise StoreUnsupported(str(error)) from error
    return PostgresStore.open(config)
