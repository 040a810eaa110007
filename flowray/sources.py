"""Tasks from files: a row of JSONL, CSV or Parquet, or a file of a directory, becomes one task.

A source is read twice: once by `check`, which finds everything that is wrong with it before anything is started and
counts its rows, and once by `rows`, which streams. Nothing here holds more than one row (Parquet: one batch) and the
keys seen so far.
"""

from __future__ import annotations

import csv
import fnmatch
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from flowray.errors import ConfigError

EXTENSIONS = (".jsonl", ".ndjson", ".csv", ".parquet")
_PARQUET_BATCH = 1024
_HASH_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What becomes one task."""

    key: str  # unique within the source
    prompt: str
    payload: Any
    digest: str = ""  # of content that the payload only points at (a file's); "" when the payload is all there is


class Source(Protocol):
    """Where tasks come from."""

    def check(self) -> int:
        """How many rows there are. Raises ConfigError naming the line of the first that is wrong."""
        ...

    def rows(self) -> Iterator[Row]:
        """All rows, in the order of the source."""
        ...


def open_source(
    path: Path, *, prompt: str = "", key: str = "", glob: str = "**/*", leave_out: Path | None = None
) -> Source:
    """The source for a path, by what it is: a directory, or a file by its extension.

    `leave_out` is a directory of ours (the output) that may lie below the input.

    Raises:
        ConfigError: it does not exist, cannot be read, or has an extension that nobody knows.
    """
    if path.is_dir():
        return DirectorySource(path, glob, leave_out)
    if not path.exists():
        raise ConfigError(str(path), "there is no such file or directory")
    readers = {".jsonl": _jsonl, ".ndjson": _jsonl, ".csv": _csv, ".parquet": _parquet}
    extension = path.suffix.lower()
    if extension not in readers:
        raise ConfigError(str(path), f"cannot read {extension or 'a file without extension'}", f"known: {_known()}")
    return TableSource(path, readers[extension], prompt, key)


def _known() -> str:
    return f"{', '.join(EXTENSIONS)}, or a directory"


@dataclass(frozen=True, slots=True)
class TableSource:
    """Rows of a file. The whole row is the payload, unless a column of it is the prompt."""

    path: Path
    read: Any  # (path) -> iterator of (line, columns by name)
    prompt: str = ""
    key: str = ""

    def check(self) -> int:
        """Read it all once."""
        return sum(1 for _ in self.rows())

    def rows(self) -> Iterator[Row]:
        """All rows. Without a key column a row's key is its number, padded so that text sorts as numbers do."""
        seen: dict[str, int] = {}
        for number, (line, columns) in enumerate(self.read(self.path)):
            where = f"{self.path}:{line}"
            key = f"{number:08d}"
            if self.key:
                key = str(_column(columns, self.key, where, "job.key"))
                if key in seen:
                    raise ConfigError(where, f"{self.key} {key!r} appears again", f"first on line {seen[key]}")
                seen[key] = line
            if self.prompt:
                text = _column(columns, self.prompt, where, "job.prompt")
                rest = {name: value for name, value in columns.items() if name != self.prompt}
                yield Row(key=key, prompt="" if text is None else str(text), payload=rest or None)
            else:
                yield Row(key=key, prompt="", payload=columns)


def _column(columns: dict[str, Any], name: str, where: str, setting: str) -> Any:
    if name not in columns:
        raise ConfigError(where, f"has no column {name!r} ({setting})", f"it has: {', '.join(columns) or 'none'}")
    return columns[name]


@dataclass(frozen=True, slots=True)
class DirectorySource:
    """Files below a directory. The prompt is the path from there, the payload says where the file is."""

    root: Path
    glob: str = "**/*"
    leave_out: Path | None = None

    def check(self) -> int:
        """Count the files. Their content is read only when it is their turn."""
        count = sum(1 for _ in map(self._relative, self._files()))
        if not count:
            raise ConfigError(str(self.root), f"has no file that matches {self.glob!r} (job.glob)")
        return count

    def rows(self) -> Iterator[Row]:
        """All files, sorted by path."""
        for path in self._files():
            relative = self._relative(path)
            yield Row(key=relative, prompt=relative, payload={"path": str(path.resolve())}, digest=_sha256(path))

    def _relative(self, path: Path) -> str:
        relative = path.relative_to(self.root).as_posix()
        if not relative.isprintable():
            raise ConfigError(str(self.root), f"has a file name that is no printable UTF-8: {relative!a}")
        return relative

    def _files(self) -> Iterator[Path]:
        try:
            found = sorted(path for path in self.root.glob(self.glob) if path.is_file() and self._wanted(path))
        except (OSError, ValueError, NotImplementedError) as error:
            raise ConfigError("job.glob", f"{self.glob!r} cannot be used: {error}") from error
        return iter(found)

    def _wanted(self, path: Path) -> bool:
        """Hidden files and directories are nobody's work unless the pattern asks for them by their dot."""
        parts = path.relative_to(self.root).parts
        patterns = [part for part in self.glob.split("/") if part.startswith(".")]
        hidden = [part for part in parts if part.startswith(".")]
        if any(not any(fnmatch.fnmatch(part, pattern) for pattern in patterns) for part in hidden):
            return False
        return self.leave_out is None or not path.resolve().is_relative_to(self.leave_out.resolve())


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_HASH_BLOCK_BYTES):
                digest.update(block)
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def _jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open("rb") as file:
            for line, text in enumerate(file, start=1):
                if text.strip():
                    yield line, _object(text, f"{path}:{line}")
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read: {error.strerror}") from error


def _object(text: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(where, f"is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(where, f"wants an object, got {type(value).__name__}", 'for example {"text": "..."}')
    return value


def _csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            names = next(reader, [])
            if len(set(names)) != len(names):
                raise ConfigError(f"{path}:1", f"a column name appears twice: {', '.join(names)}")
            for cells in reader:
                where = f"{path}:{reader.line_num}"
                if cells and len(cells) != len(names):
                    raise ConfigError(where, f"has {len(cells)} cells and the header has {len(names)}")
                if cells:
                    yield reader.line_num, dict(zip(names, cells, strict=True))
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), f"is not UTF-8: {error}") from error
    except csv.Error as error:
        raise ConfigError(f"{path}:{reader.line_num}", f"is not CSV: {error}") from error


def _parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow  # heavy: only for those who read Parquet
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            line = 0
            for batch in file.iter_batches(batch_size=_PARQUET_BATCH):
                for columns in batch.to_pylist():
                    line += 1
                    yield line, columns
    except (OSError, pyarrow.ArrowException) as error:
        raise ConfigError(str(path), f"is no Parquet file that can be read: {error}") from error
