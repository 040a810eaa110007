"""A connection for reading a store, wherever it is: beside a coordinator that writes, or of one that is gone."""

from __future__ import annotations

from pathlib import Path

from flowray.errors import StoreError
from flowray.store import schema
from flowray.store.config import StoreConfig
from flowray.store.connection import Connection


def has_journal(directory: Path, config: StoreConfig) -> bool:
    """Is there anything to read? Raises StoreError when that cannot be found out."""
    if config.url:
        from flowray.store import postgres_schema

        return postgres_schema.exists(config)
    return (directory / schema.FILE_NAME).exists()


def connect_reader(directory: Path, config: StoreConfig) -> Connection:
    """To the database that the configuration names, else to the file in this directory.

    Raises:
        StoreUnsupported: a newer flowray wrote it.
        StoreError: it cannot be opened; StoreCorrupt when it is not what flowray writes.
    """
    if config.url:
        from flowray.store import postgres_schema

        return postgres_schema.connect_reader(config)
    path = directory / schema.FILE_NAME
    with schema.translated(f"open {path}"):
        connection = schema.connect_reader(path, config)
        try:
            # From its first read on it holds SQLite's shared lock. So the writing connection is never the last to
            # go, and when it closes after a failed sync it does not checkpoint, which would sync again.
            schema.check_version(connection, path)
        except BaseException:
            connection.close()
            raise
    return connection


def require_journal(directory: Path, config: StoreConfig) -> str:
    """Where it is, for people. Raises StoreError when there is none."""
    place = describe(directory, config)
    if not has_journal(directory, config):
        raise StoreError(f"there is no journal in {place}")
    return place


def describe(directory: Path, config: StoreConfig) -> str:
    """Where the journal is or would be, without any secret."""
    if config.url:
        from flowray.store.address import Address

        return f"{Address(config.url)}, schema {config.schema}"
    return str(directory)
