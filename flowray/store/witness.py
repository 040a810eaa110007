"""Remember, outside the database, how far the journal was acknowledged.

SQLite takes a damaged WAL frame for the end of the log: a flipped bit there would silently undo every later commit.
So after each commit, and before anyone is told, its position is written to a small file beside the database. When
the database then ends earlier, something acknowledged is gone, and recovery says so instead of going on.

The file is written in place and not synced: it outlives the process, and after a power loss it may be older than
the database, never newer. An unreadable witness says nothing; the database has its own checksums.
"""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path

from flowray.errors import StoreCorrupt, StoreError
from flowray.store.records import Head

FILE_NAME = "witness"
_FORMAT = struct.Struct("<QQ32s")


class Witness:
    """The file, open for writing."""

    def __init__(self, directory: Path) -> None:
        """Raises StoreError when the file cannot be opened."""
        self._path = directory / FILE_NAME
        try:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"{self._path}: {error}") from error

    def record(self, head: Head) -> None:
        """Raises StoreError when it cannot be written: then nobody may be told either."""
        fields = _FORMAT.pack(head.epoch, head.changes, head.check())
        try:
            os.pwrite(self._descriptor, fields + hashlib.sha256(fields).digest(), 0)
        except OSError as error:
            raise StoreError(f"{self._path}: {error}") from error

    def compare(self, head: Head) -> None:
        """Raises StoreCorrupt when the journal ends before what was acknowledged."""
        compare(self._path.parent, read(self._path.parent), head)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def read(directory: Path) -> tuple[int, int, bytes] | None:
    """The epoch, changes and checksum of the head last acknowledged; None when that is not known."""
    try:
        content = (directory / FILE_NAME).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{directory / FILE_NAME}: {error}") from error
    fields, check = content[: _FORMAT.size], content[_FORMAT.size :]
    if len(fields) != _FORMAT.size or hashlib.sha256(fields).digest() != check:
        return None
    epoch, changes, head_check = _FORMAT.unpack(fields)
    return epoch, changes, head_check


def compare(directory: Path, acknowledged: tuple[int, int, bytes] | None, head: Head) -> None:
    """Raises StoreCorrupt when the head lies before what was acknowledged."""
    if acknowledged is None:
        return
    epoch, changes, head_check = acknowledged
    if head.changes < changes or head.epoch < epoch or (head.changes == changes and head.check() != head_check):
        raise StoreCorrupt(
            f"the journal in {directory} ends at change {head.changes} of epoch {head.epoch}, but change {changes} of "
            f"epoch {epoch} was acknowledged: the write-ahead log was damaged or removed. "
            f"Restore the files; or, to go on without what is missing, remove {directory / FILE_NAME}"
        )
