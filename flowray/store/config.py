"""The bounds and choices of the store, each with its reason."""

from __future__ import annotations

import re
from dataclasses import dataclass

from flowray.errors import ConfigError
from flowray.store import address

_SCHEMA = re.compile(r"[A-Za-z0-9_-]{1,63}")  # what PostgreSQL keeps of a name


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """How much the store may hold back, how often it tidies up, and where it may live."""

    url: str = ""  # postgresql://user@host/database without a password, env:NAME or file:PATH; "" for SQLite's file
    schema: str = ""  # of a runtime's tables in PostgreSQL; "" for flowray_<name of the runtime>
    queue_commands: int = 65_536  # commands handed in and not yet on disk; beyond it `append` blocks its caller
    queue_bytes: int = 256 * 1024 * 1024  # the same, by memory held
    group_commands: int = 4_096  # commands in one commit: bounds what one crash can leave unknown
    group_bytes: int = 16 * 1024 * 1024  # the same, by size; one larger append still goes, alone
    busy_timeout_s: float = 5.0  # wait for another process's write lock
    takeover_wait_s: float = 1.0  # an earlier owner that keeps the write lock for longer, stopped perhaps, is killed
    idle_transaction_s: float = 2.0  # PostgreSQL ends who is silent for longer while it holds locks
    checkpoint_bytes: int = 16 * 1024 * 1024  # written to the WAL (estimated) before it is copied into the database
    trim_rows: int = 512  # outcomes looked at in one transaction of `trim`, so that appends wait briefly
    full_check_bytes: int = 512 * 1024 * 1024  # a larger database is checked at start only in journal and snapshot
    allow_volatile: bool = False  # accept tmpfs and ramfs: survives a crash of the process, not of the machine
    allow_filesystems: tuple[str, ...] = ()  # file systems accepted by name although they are usually refused

    def __post_init__(self) -> None:
        for name in ("queue_commands", "queue_bytes", "group_commands", "group_bytes", "checkpoint_bytes", "trim_rows"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"store.{name}", f"must be a whole number of at least 1, not {value!r}")
        if isinstance(self.full_check_bytes, bool) or not isinstance(self.full_check_bytes, int):
            raise ConfigError("store.full_check_bytes", f"must be a whole number, not {self.full_check_bytes!r}")
        if self.full_check_bytes < 0:
            raise ConfigError("store.full_check_bytes", "must not be negative", "0 turns the full check off")
        if not 0 < self.busy_timeout_s <= 3600:
            raise ConfigError("store.busy_timeout_s", f"must be within (0, 3600] seconds, not {self.busy_timeout_s!r}")
        if not 0 < self.takeover_wait_s <= 3600:
            raise ConfigError(
                "store.takeover_wait_s", f"must be within (0, 3600] seconds, not {self.takeover_wait_s!r}"
            )
        if not 0 < self.idle_transaction_s <= 3600:
            raise ConfigError(
                "store.idle_transaction_s", f"must be within (0, 3600] seconds, not {self.idle_transaction_s!r}"
            )
        if self.url:
            address.check(self.url)
        if self.schema and not _SCHEMA.fullmatch(self.schema):
            raise ConfigError(
                "store.schema", f"wants 1 to 63 letters, digits, '-' and '_', not {self.schema!r}", "flowray_audit"
            )
        if self.group_commands > self.queue_commands:
            raise ConfigError("store.group_commands", "is larger than store.queue_commands", "a group never fills")
        if self.group_bytes > self.queue_bytes:
            raise ConfigError("store.group_bytes", "is larger than store.queue_bytes", "a group never fills")
        names: object = self.allow_filesystems
        if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
            raise ConfigError("store.allow_filesystems", "must be a tuple of names", 'for example ("overlay",)')
