"""Large payloads as files named by their content: written once, never changed, checked whenever they are read.

A file is complete or absent: it is written under another name, synced, and then renamed. Two levels of directories
keep each of them small.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

from flowray.errors import StoreCorrupt, StoreError
from flowray.store import filesystem

_REF = re.compile(r"sha256:([0-9a-f]{64})")
_TEMPORARY = ".part"


class PayloadStore:
    """The files under one directory. Any number of threads and processes may share it."""

    def __init__(self, directory: Path) -> None:
        """Makes the directory where it is missing. Raises StoreError when it cannot."""
        self._directory = directory
        filesystem.make_directory(directory)

    def put(self, data: bytes | memoryview) -> str:
        """Keep these bytes and return their reference, "sha256:<hex>". They are on disk when it returns."""
        ref = f"sha256:{hashlib.sha256(data).hexdigest()}"
        path = self.path(ref)
        try:
            with self._locked(fcntl.LOCK_SH):
                if self._is_there(path, ref):
                    os.utime(path)  # young again: `delete_unused` must not take it before its new user is recorded
                else:
                    self._make_parents(path)
                    self._write(path, data)
                filesystem.sync_directory(path.parent)
        except OSError as error:
            raise StoreError(f"payload {ref} cannot be written: {error}") from error
        return ref

    def get(self, ref: str) -> bytes:
        """Raises StoreCorrupt when the content does not match, StoreError when it is not there."""
        path = self.path(ref)
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise self._absent(ref) from error
        except OSError as error:
            raise StoreError(f"payload {ref} cannot be read: {error}") from error
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != ref:
            raise StoreCorrupt(f"payload {ref} does not match its digest: {path}")
        return data

    def path(self, ref: str) -> Path:
        """Where the bytes are or would be. Raises StoreError for what is not a reference."""
        match = _REF.fullmatch(ref)
        if match is None:
            raise StoreError(f'{ref[:100]!r} is not a payload reference: "sha256:" and 64 hexadecimal digits')
        digest = match[1]
        return self._directory / digest[:2] / digest[2:4] / digest

    def size(self, ref: str) -> int:
        """In bytes. Raises StoreError when it is not there."""
        try:
            return self.path(ref).stat().st_size
        except FileNotFoundError as error:
            raise self._absent(ref) from error

    def delete_unused(self, keep: Callable[[str], bool], *, older_than_s: float, now_s: float) -> int:
        """Delete what `keep` does not want and what is older than this, by wall time. Returns how many.

        The age protects what was just written and is not yet recorded anywhere. Left-over partial files go too.
        """
        deleted = 0
        for path in sorted(self._directory.glob("??/??/*")):
            ref = f"sha256:{path.name}"
            try:
                if not path.name.endswith(_TEMPORARY) and (not _REF.fullmatch(ref) or keep(ref)):
                    continue
                with self._locked(fcntl.LOCK_EX):
                    if now_s - path.stat().st_mtime >= older_than_s:
                        path.unlink()
                        deleted += 1
            except FileNotFoundError:
                continue  # another process was faster
            except OSError as error:
                raise StoreError(f"{path} cannot be deleted: {error}") from error
        return deleted

    def _is_there(self, path: Path, ref: str) -> bool:
        """A damaged file counts as absent: writing it again heals it."""
        try:
            return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" == ref
        except FileNotFoundError:
            return False

    @contextlib.contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        """Keep `put` and `delete_unused` apart, across processes: what was just touched must not be deleted."""
        descriptor = os.open(self._directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, kind)
            yield
        finally:
            os.close(descriptor)

    def _make_parents(self, path: Path) -> None:
        for parent in (path.parent.parent, path.parent):
            if not parent.is_dir():
                parent.mkdir(mode=0o700, exist_ok=True)
                filesystem.sync_directory(parent.parent)

    def _write(self, path: Path, data: bytes | memoryview) -> None:
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}{_TEMPORARY}")
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _absent(self, ref: str) -> StoreError:
        return StoreError(f"payload {ref} is not in {self._directory}: deleted, or never written here")
