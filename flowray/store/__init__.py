"""Durable state: the journal and outcomes in SQLite or PostgreSQL, and large payloads as files or beside them.

A `Store` is for the coordinator, one writer at a time, fenced by epochs. A `PayloadStore` is for every process of
the node. Nothing here decides anything: it keeps what the core decided and gives it back, or says that it cannot.
"""

from flowray.store.config import StoreConfig
from flowray.store.opening import open_store
from flowray.store.payloads import PayloadStore
from flowray.store.recovery import Recovery, VerifyReport, verify
from flowray.store.sqlite import SqliteStore
from flowray.store.store import Store
from flowray.store.writer import Done

__all__ = [
    "Done",
    "PayloadStore",
    "Recovery",
    "SqliteStore",
    "Store",
    "StoreConfig",
    "VerifyReport",
    "open_store",
    "verify",
]
