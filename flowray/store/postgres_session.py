"""One connection to PostgreSQL, spoken to as to SQLite's: `?` for values, StoreErrors in plain words.

Nothing here tries anything again but to connect. A statement whose answer is lost may have been done, and whoever
wanted it done has to find out; only reads on a connection for reading are asked once more on a new one.

Text columns cannot hold the character NUL, and keys may: it travels as two characters, and so does its escape.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from flowray.errors import ConfigError, MissingExtra, StoreCorrupt, StoreError, StoreUnsupported
from flowray.store.address import Address
from flowray.store.config import StoreConfig
from flowray.store.connection import Cursor

try:
    import psycopg
    from psycopg.abc import Buffer
    from psycopg.adapt import Loader
    from psycopg.types.string import StrDumper
except ImportError as missing:
    raise MissingExtra("a store in PostgreSQL needs psycopg: pip install 'flowray[postgres]'") from missing

OLDEST = 140_000  # pg_terminate_backend waits, client_connection_check_interval
_CONNECT_S = 10
_ESCAPE, _NUL, _ITSELF = "\x01", "\x010", "\x011"

# What a peer that is gone without a word costs: libpq's side and the server's notice within about ten seconds.
_KEEPALIVES: dict[str, Any] = {
    "keepalives": 1,
    "keepalives_idle": 3,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
_SETTINGS = {
    "tcp_keepalives_idle": "3",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "10s",
    "client_connection_check_interval": "1s",
    "idle_session_timeout": "0",  # a coordinator may have nothing to write for days
    "client_encoding": "UTF8",
}

# SQLSTATE, or its class, to what to do: https://www.postgresql.org/docs/15/errcodes-appendix.html
_WAYS_OUT = {
    "25006": "the server takes no writes (a standby?): name the primary, or several hosts with "
    "target_session_attrs=read-write",
    "25P03": "this process was stopped or too busy in the middle of a transaction (store.idle_transaction_s)",
    "28": "check user and password: PGPASSWORD, ~/.pgpass, or the URL of store.url=env:NAME",
    "3D000": "create the database first",
    "42501": "the role lacks a right: GRANT CREATE ON DATABASE, or let its owner make the schema for this role",
    "53100": "the server's disk is full",
    "53300": "the server has no connection left: raise max_connections",
    "55P03": "another process keeps a lock for longer than store.takeover_wait_s",
    "57014": "the server cancelled it: is its statement_timeout too short for this role?",
    "57P01": "the server ended the session",
    "57P02": "the server crashed",
    "57P03": "the server is starting or stopping",
}
_CORRUPT = ("XX001", "XX002")


class Session:
    """A connection. One thread at a time."""

    def __init__(self, config: StoreConfig, *, reads: bool) -> None:
        """`reads`: only that, each transaction of one moment; a lost connection is made again.

        Raises:
            StoreUnsupported: the server cannot keep the promise.
            StoreError: it cannot be reached, or lets nobody in, or where it is cannot be read.
        """
        self._config, self._reads = config, reads
        self._address = Address(config.url)
        self._connection = self._connected()

    @property
    def is_lost(self) -> bool:
        """Has the connection ended without `close`?"""
        return bool(self._connection.closed)

    @property
    def in_transaction(self) -> bool:
        """Is there one, failed or not?"""
        return self._connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE

    @property
    def place(self) -> str:
        """For people."""
        return f"{self._address}, schema {self._config.schema}"

    def execute(self, statement: str, values: Sequence[Any] = (), /) -> Cursor:
        """Raises StoreError. In a transaction nothing but ROLLBACK succeeds after that."""
        if not self._reads:
            return self._execute(statement, values)
        if self.is_lost:
            self._connection = self._connected()
        before = self.in_transaction
        try:
            return self._execute(statement, values)
        except StoreError:
            if not self.is_lost or before:
                raise
            self._connection = self._connected()
            return self._execute(statement, values)

    def begin_with(self, statement: str) -> Any:
        """Begin a transaction and ask this, without values, in one round trip: the first row. Raises StoreError."""
        with self._translated():
            cursor = self._connection.execute(f"BEGIN; {statement}")
            cursor.nextset()
            return cursor.fetchone()

    def commit(self) -> None:
        """Raises StoreError, also when the server has rolled back instead: it says so in no error."""
        with self._translated():
            done = self._connection.execute("COMMIT").statusmessage
        if done != "COMMIT":
            raise StoreError(f"{self.place}: the transaction had failed, and was rolled back ({done})")

    def executemany(self, statement: str, rows: Sequence[Sequence[Any]], /) -> Cursor:
        """Raises StoreError."""
        if len(rows) == 1:
            return self._execute(statement, rows[0])
        with self._translated():
            cursor = self._connection.cursor()
            cursor.executemany(_marked(statement), rows)
        return cursor

    def close(self) -> None:
        """Again: nothing."""
        self._connection.close()

    def _execute(self, statement: str, values: Sequence[Any]) -> Cursor:
        with self._translated():
            return self._connection.execute(_marked(statement), values or None, binary=True)

    def _translated(self) -> _Translated:
        return _Translated(self._address, self._config.schema)

    def _connected(self) -> psycopg.Connection[Any]:
        config = self._config
        try:
            url = self._address.read()
        except ConfigError as error:  # an environment variable that another node does not have
            raise StoreError(str(error)) from error
        settings = dict(_SETTINGS)
        if self._reads:
            settings |= {"default_transaction_read_only": "on", "default_transaction_isolation": "repeatable read"}
        else:
            settings |= {
                "lock_timeout": f"{config.takeover_wait_s * 1000:.0f}ms",
                "idle_in_transaction_session_timeout": f"{config.idle_transaction_s * 1000:.0f}ms",
                "default_transaction_isolation": "read committed",
            }
        with self._translated():
            connection = psycopg.connect(
                url,
                autocommit=True,
                connect_timeout=_CONNECT_S,
                application_name=f"flowray {config.schema} {'reader' if self._reads else 'writer'}",
                **_KEEPALIVES,
            )
        try:
            with self._translated():
                _require_fit(connection, config)
                for name, value in settings.items():
                    connection.execute("SELECT set_config(%s, %s, false)", (name, value))
                connection.execute("SELECT set_config('search_path', quote_ident(%s), false)", (config.schema,))
                if connection.execute("SHOW synchronous_commit").fetchone() != ("remote_apply",):  # more than we ask
                    connection.execute("SET synchronous_commit = on")
            connection.adapters.register_dumper(str, _TextDumper)
            for loader in (_TextLoader, _BinaryTextLoader):
                connection.adapters.register_loader("text", loader)
        except BaseException:
            connection.close()
            raise
        return connection


def _require_fit(connection: psycopg.Connection[Any], config: StoreConfig) -> None:
    version = connection.info.server_version
    if version < OLDEST:
        raise StoreUnsupported(f"the server is PostgreSQL {version // 10_000}, and 14 is the oldest that can be used")
    row = connection.execute("SELECT current_setting('fsync'), current_setting('server_encoding')").fetchone()
    fsync, encoding = row or ("", "")
    if fsync != "on" and not config.allow_volatile:
        raise StoreUnsupported(
            "the server runs with fsync=off, so a crash of its machine loses what was acknowledged: turn it on, or "
            "accept that with store.allow_volatile=True"
        )
    if encoding != "UTF8":
        raise StoreUnsupported(f"the database has the encoding {encoding}: create one with ENCODING 'UTF8'")


class _Translated:
    """psycopg's errors as the store's. A class, because it stands around every statement."""

    __slots__ = ("_address", "_schema")

    def __init__(self, address: Address, schema: str) -> None:
        self._address, self._schema = address, schema

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, psycopg.Error):
            raise self._as_store_error(error) from error

    def _as_store_error(self, error: psycopg.Error) -> StoreError:
        state = error.sqlstate or ""
        said = " ".join(self._address.hide(str(error)).split())
        text = f"{self._address}, schema {self._schema}: {said}"
        if state:
            text += f" ({state})"
        way_out = _WAYS_OUT.get(state) or _WAYS_OUT.get(state[:2]) or _refused(said)
        kind = StoreCorrupt if state in _CORRUPT else StoreError
        return kind(f"{text}: {way_out}" if way_out else text)


def _refused(said: str) -> str:
    """The way out of a refusal to connect, which has no SQLSTATE: libpq only has the server's words."""
    refused = ("authentication failed", "no password supplied", "no pg_hba.conf entry")
    return _WAYS_OUT["28"] if any(words in said for words in refused) else ""


@functools.lru_cache(maxsize=1024)
def _marked(statement: str) -> Any:
    return statement.replace("%", "%%").replace("?", "%s") if "?" in statement else statement


class _TextDumper(StrDumper):
    def dump(self, obj: str) -> Buffer | None:
        if "\0" in obj or _ESCAPE in obj:
            obj = obj.replace(_ESCAPE, _ITSELF).replace("\0", _NUL)
        return super().dump(obj)


class _TextLoader(Loader):
    def load(self, data: Buffer) -> str:
        text = bytes(data).decode()
        return text.replace(_NUL, "\0").replace(_ITSELF, _ESCAPE) if _ESCAPE in text else text


class _BinaryTextLoader(_TextLoader):
    format = psycopg.pq.Format.BINARY


def is_taken(error: Exception) -> bool:
    """Was it a row that is there already?"""
    return isinstance(error.__cause__, psycopg.errors.UniqueViolation)


def is_away(error: Exception) -> bool:
    """Was it the connection, or none to be had: may the server be back in a moment?"""
    cause = error.__cause__
    state = getattr(cause, "sqlstate", None) or ""
    return isinstance(cause, psycopg.OperationalError) and (not state or state[:2] == "08" or state[:3] == "57P")


def is_locked(error: Exception) -> bool:
    """Was it a lock that could not be had in time?"""
    return isinstance(error.__cause__, psycopg.errors.LockNotAvailable)
