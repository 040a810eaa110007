"""Results as a table: Parquet or JSONL, sorted by key, the same bytes for the same results in whatever order they came.

Results are spooled to a temporary SQLite database until the end: a table of any length is sorted without being
held in memory. The finished table takes the place of an earlier one at once, so nobody ever reads half of it.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from flowray.errors import ConfigError
from flowray.jobs import Result

COLUMNS = ("key", "state", "value", "error")
TIMING_COLUMNS = ("agent_id", "attempts", "run_s")  # these differ from run to run
EXTENSIONS = (".parquet", ".jsonl", ".ndjson")
_BATCH = 4096  # rows written at once
_INT64 = 1 << 63
Scalar = str | int | float | bool | None


def output_file(out: Path) -> Path:
    """Where the table goes: `out` itself if it names a table, else `results.parquet` in the directory `out`.

    Raises:
        ConfigError: an extension that cannot be written, or a directory that cannot be made.
    """
    extension = out.suffix.lower()
    if extension in EXTENSIONS:
        if out.is_dir():
            raise ConfigError(str(out), f"is a directory; {extension} names a file")
        directory = out.parent
    elif out.is_file() or (extension and not out.is_dir()):
        raise ConfigError(
            str(out), f"cannot write {extension or 'this file'}", f"known: {', '.join(EXTENSIONS)}, or a directory"
        )
    else:
        directory = out
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(str(directory), f"cannot be made: {error.strerror}") from error
    if not os.access(directory, os.W_OK):
        raise ConfigError(str(directory), "cannot be written to")
    return out if extension in EXTENSIONS else out / "results.parquet"


def as_scalar(value: Any) -> Scalar:
    """The value itself if it is a scalar, else its JSON text. What JSON does not know is described by `str`."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _utf8(value)
    if isinstance(value, int):
        return value if -_INT64 <= value < _INT64 else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    tolist = getattr(value, "tolist", None)  # numpy's scalars and arrays
    if callable(tolist):
        return as_scalar(tolist())
    for encode in (_encode, _encode_any):
        try:
            return encode(value)
        except (TypeError, ValueError, OverflowError, RecursionError):
            continue  # keys that are no text, half characters, a list within itself
    return _utf8(str(value))


def _encode(value: Any) -> str:
    return msgspec.json.encode(value, enc_hook=_other, order="deterministic").decode()


def _encode_any(value: Any) -> str:
    return json.dumps(value, default=_other, sort_keys=True, separators=(",", ":"))


def _utf8(text: str) -> str:
    """The text with lone surrogates (half characters, as undecodable file names have them) spelled out."""
    return text.encode("utf-8", "backslashreplace").decode()


def _other(value: Any) -> Any:
    tolist = getattr(value, "tolist", None)
    return tolist() if callable(tolist) else str(value)


class Spool:
    """Results on their way to a table. For one thread."""

    def __init__(self) -> None:
        # A database without a name lies in SQLite's cache, then in a temporary file that goes with the process.
        self._db = sqlite3.connect("", isolation_level=None)
        # Lost with the process: the journal has the outcomes, so there is nothing to sync for.
        for setting in ("journal_mode=OFF", "synchronous=OFF"):
            self._db.execute(f"PRAGMA {setting}").fetchall()
        columns = "key TEXT PRIMARY KEY, state TEXT, value TEXT, error TEXT, agent_id TEXT, attempts INT, run_s REAL"
        self._db.execute(f"CREATE TABLE results ({columns}) WITHOUT ROWID")
        self._types: set[type] = set()

    def add(self, result: Result) -> None:
        """Keep a result; one of the same key replaces it."""
        value = as_scalar(result.value) if not result.error else None
        if value is not None:
            self._types.add(type(value))
        row: tuple[Any, ...] = (
            _utf8(result.key),
            result.state,
            json.dumps(value),
            _utf8(result.error) or None,
            result.agent_id or None,
            result.attempts,
            result.run_s,
        )
        self._db.execute("INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def write(self, file: Path, *, timing: bool = True) -> int:
        """Write the table, sorted by key; returns how many rows it has. Raises ConfigError if it cannot be written."""
        part = file.with_name(f".{file.name}.part")
        try:
            count = (_write_parquet if file.suffix.lower() == ".parquet" else _write_jsonl)(part, self, timing)
            part.replace(file)
        except OSError as error:
            raise ConfigError(str(file), f"cannot be written: {error.strerror or error}") from error
        finally:
            part.unlink(missing_ok=True)
        return count

    def batches(self, timing: bool) -> Iterator[list[tuple[Any, ...]]]:
        """The rows in order, some at a time. Values of several types are all text: a column has one type."""
        names = COLUMNS + (TIMING_COLUMNS if timing else ())
        cursor = self._db.execute(f"SELECT {', '.join(names)} FROM results ORDER BY key")
        mixed = len(self._types) > 1
        while rows := cursor.fetchmany(_BATCH):
            yield [(*row[:2], _as_text(json.loads(row[2])) if mixed else json.loads(row[2]), *row[3:]) for row in rows]

    @property
    def value_type(self) -> type:
        """Of the value column."""
        return next(iter(self._types)) if len(self._types) == 1 else str

    def close(self) -> None:
        """Forget everything."""
        self._db.close()


def _as_text(value: Scalar) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _write_jsonl(part: Path, spool: Spool, timing: bool) -> int:
    names = COLUMNS + (TIMING_COLUMNS if timing else ())
    count = 0
    with part.open("w", encoding="utf-8") as file:
        for rows in spool.batches(timing):
            count += len(rows)
            file.writelines(json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) + "\n" for row in rows)
    return count


def _write_parquet(part: Path, spool: Spool, timing: bool) -> int:
    import pyarrow as pa  # heavy: only for those who write Parquet
    import pyarrow.parquet as pq

    kinds: dict[type, Any] = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    types: dict[str, Any] = {"value": kinds[spool.value_type], "attempts": pa.int64(), "run_s": pa.float64()}
    names = COLUMNS + (TIMING_COLUMNS if timing else ())
    schema = pa.schema([(name, types.get(name, pa.string())) for name in names])
    count = 0
    with pq.ParquetWriter(part, schema) as writer:
        for rows in spool.batches(timing):
            count += len(rows)
            columns = [
                pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), schema, strict=True)
            ]
            writer.write_table(pa.table(columns, schema=schema))
    return count
