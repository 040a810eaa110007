"""One file that only its owner may read, replaced as a whole, and noticed by other processes when it is replaced.

Keys, tokens and tickets lie in such files. Each is complete or absent, and a file that others can read is refused
rather than repaired: whoever could read it may have done so.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

from flowray.errors import MeshError

DIRECTORY = "identity"  # where a runtime keeps its authority and its tokens, below its journal
MAX_BYTES = 4 << 20  # of one file; ours are kilobytes
_LOCK_S = 10.0  # a writer holds the lock for milliseconds; longer means that one was stopped in the middle


class PrivateFile:
    """A file of mode 0600. Writers take `locked()` around reading, deciding and writing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held: tuple[int, int, int, int] | None = None
        self._release: weakref.finalize[[int], PrivateFile] | None = None

    def read(self) -> bytes | None:
        """What is in it; None when there is no such file. Remembers the version for `is_changed`.

        Raises:
            MeshError: others than the owner may read or write it, it is no plain file, or it cannot be read.
        """
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            self._hold(None)
            return None
        except OSError as error:
            raise MeshError(f"{self.path} cannot be read: {error.strerror}") from error
        try:
            status = os.fstat(descriptor)
            _refuse_shared(self.path, status, wanted="0600")
            if not stat.S_ISREG(status.st_mode):
                raise MeshError(f"{self.path} is not a plain file")
            if status.st_size > MAX_BYTES:
                raise MeshError(f"{self.path} has {status.st_size} bytes, more than the {MAX_BYTES} that it ever needs")
            data = b"".join(iter(lambda: os.read(descriptor, 1 << 20), b""))
        except OSError as error:
            os.close(descriptor)
            raise MeshError(f"{self.path} cannot be read: {error.strerror}") from error
        except BaseException:
            os.close(descriptor)
            raise
        self._hold(descriptor, _version(status))
        return data

    def is_changed(self) -> bool:
        """Has it been replaced, made or removed since `read`? Costs one stat.

        The version that was read is kept open, so that the kernel cannot give its inode number to the next one.
        """
        try:
            return _version(self.path.stat()) != self._held
        except FileNotFoundError:
            return self._held is not None
        except OSError as error:
            raise MeshError(f"{self.path} cannot be read: {error.strerror}") from error

    def write(self, data: bytes) -> None:
        """Replace the whole file, durably. Raises MeshError."""
        part = self.path.with_name(f".{self.path.name}.{secrets.token_hex(8)}.part")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            try:
                with os.fdopen(os.open(part, flags, 0o600), "wb") as file:
                    os.fchmod(file.fileno(), 0o600)  # whatever the umask left of it
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                part.replace(self.path)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            descriptor = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise MeshError(f"{self.path} cannot be written: {error.strerror}") from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other writers out, in this process and in others. Raises MeshError when it takes too long."""
        path = self.path.with_name(f".{self.path.name}.lock")
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise MeshError(f"{path} cannot be made: {error.strerror}") from error
        try:
            give_up_at = time.monotonic() + _LOCK_S
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > give_up_at:
                        raise MeshError(
                            f"another process has held {path} for {_LOCK_S:g} s: find it with `fuser -v {path}`"
                        ) from None
                    time.sleep(0.002)
            yield
        finally:
            os.close(descriptor)

    def _hold(self, descriptor: int | None, version: tuple[int, int, int, int] | None = None) -> None:
        if self._release is not None:
            self._release()
        self._release = None if descriptor is None else weakref.finalize(self, os.close, descriptor)
        self._held = version


def make_private_directory(directory: Path) -> None:
    """Make it where it is missing, for its owner alone. Raises MeshError for one that others may use."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
    except OSError as error:
        raise MeshError(f"{directory} cannot be made: {error.strerror}") from error
    _refuse_shared(directory, status, wanted="0700")


def _refuse_shared(path: Path, status: os.stat_result, *, wanted: str) -> None:
    own = os.geteuid()
    if own not in (0, status.st_uid) and status.st_uid != 0:
        raise MeshError(f"{path} belongs to another user (id {status.st_uid}), and is not to be trusted")
    rights = stat.S_IMODE(status.st_mode)
    if rights & 0o077:
        raise MeshError(
            f"{path} has mode {rights:04o}: others on this machine can use it. If nobody has: chmod {wanted} {path}; "
            "else remove it and have it made again"
        )


def _version(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
