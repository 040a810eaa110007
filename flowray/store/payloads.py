"""Large payloads as files named by their content, checked when they are read from the disk.

Every process of the journal's node reads and writes them directly. A payload can be read as soon as `write` returns,
and outlives a power cut once `sync` has returned for it: whoever records a reference calls that first. A file that is
known to be on disk is made read-only, so that nobody syncs it again.

A name is no proof of a content. What is there already is compared with what is to be kept: a file that was damaged,
or never reached the disk before a crash, is written again, and a second content under the same digest is kept under
its SHA-256.

What was written within the last half minute is still in memory, and is not hashed again to be read: half the time of
handing over a large array. A seal tells it from a file that was changed since: whoever wrote the content and hashed it
on the way sets the nanoseconds of the file's time of change to a hash of the reference and of this boot of the machine.
Any later write sets another time, and so does nobody after a crash. (A machine so short of memory that it drops a page
within half a minute reads it back unchecked.)
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import mmap
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import xxhash

from flowray.errors import StoreCorrupt, StoreError
from flowray.store import filesystem
from flowray.store.drafts import SUFFIX, Draft
from flowray.store.payload_bytes import read_bytes

_REF = re.compile(r"xxh3:([0-9a-f]{32})|sha256:([0-9a-f]{64})")
_IDENTITY = ".identity"
_PIECE_BYTES = 1 << 20
_FRESH_NS = 30 * 10**9  # what was sealed this long ago was not yet read back from the disk
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_ON_DISK = 0o400  # the mode of a file that is known to be there after a power cut

Buffer = bytes | bytearray | memoryview


class PayloadStore:
    """The files under one directory. Any number of threads and processes may share it."""

    def __init__(self, directory: Path) -> None:
        """Makes the directory where it is missing. Raises StoreError when it cannot."""
        self._directory = directory
        self._is_ready = False
        filesystem.make_directory(directory)

    @classmethod
    def found(cls, directory: Path, identity: str) -> PayloadStore | None:
        """The store with this `identity`, if it is what lies in `directory` on this machine and may be used; else None.

        For a process that was told of a directory without knowing whether it is on the same machine, or in the same
        container. Changes nothing.
        """
        try:
            if (directory / _IDENTITY).read_text() != identity:
                return None
        except (OSError, UnicodeDecodeError):
            return None
        return cls(directory) if os.access(directory, os.R_OK | os.W_OK | os.X_OK) else None

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────

    def put(self, *parts: Buffer) -> str:
        """Keep these bytes, one part after the other; their reference, once they are on disk. Raises StoreError."""
        ref = self._written(parts, disk_ahead=True)
        self.sync([ref])
        return ref

    def write(self, *parts: Buffer) -> str:
        """Keep these bytes; their reference, which everybody on this node can read from now on.

        They are not on disk before `sync`.

        Raises:
            StoreError: the disk is full, or does not take them.
        """
        return self._written(parts, disk_ahead=False)

    def _written(self, parts: tuple[Buffer, ...], *, disk_ahead: bool) -> str:
        with self.draft(sum(memoryview(part).nbytes for part in parts), disk_ahead=disk_ahead) as draft:
            try:
                for part in parts:
                    draft.append(part)
            except OSError as error:
                raise StoreError(f"a payload of {draft.size_bytes} bytes cannot be written: {error}") from error
            return self.adopt(draft)

    def draft(self, size_bytes: int, *, disk_ahead: bool = True) -> Draft:
        """A payload to be written bit by bit, then `adopt`ed. Raises StoreError when there is no room for it."""
        try:
            self._make_ready()
            return Draft(self._directory, size_bytes, disk_ahead=disk_ahead)
        except OSError as error:
            raise StoreError(f"a payload of {size_bytes} bytes cannot be written: {error}") from error

    def adopt(self, draft: Draft) -> str:
        """Make a complete draft a payload; its reference. Not on disk before `sync`. Raises StoreError."""
        ref = f"xxh3:{draft.digest()}"
        try:
            with self._locked(fcntl.LOCK_SH):
                if not self._take_name(draft, ref):
                    ref = f"sha256:{hashlib.sha256(draft.view()).hexdigest()}"
                    self._take_name(draft, ref)
        except OSError as error:
            raise StoreError(f"payload {ref} cannot be written: {error}") from error
        return ref

    def _take_name(self, draft: Draft, ref: str) -> bool:
        """Name the draft's content. False when another content has the name."""
        path = self.path(ref)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _seal(draft.path, ref)
        try:
            os.link(draft.path, path)
        except FileExistsError:
            wanted = draft.view()
            if not _is_same(path, wanted):
                if _digest_matches(path, ref):
                    return False
                draft.path.replace(path)  # it was damaged
            elif _is_on_disk(path.stat().st_mode):
                _seal(path, ref)  # young again: `delete_unused` must not take it before its new user is recorded
            else:
                # If a sync failed here before, the disk must be given the bytes once more. The same file, because
                # another process may be about to sync it.
                try:
                    with path.open("r+b", buffering=0) as file:
                        while wanted:
                            wanted = wanted[file.write(wanted) :]
                    _seal(path, ref)
                except PermissionError:
                    if not _is_on_disk(path.stat().st_mode):
                        raise
                    _seal(path, ref)  # that other process was faster
        return True

    def sync(self, refs: Iterable[str]) -> None:
        """Put what these name on disk, directory entries too. Many at once cost little more than one.

        Raises:
            StoreError: one is not there, or the disk does not take it. That one is removed: whether a file is on
                disk cannot be asked twice, for the second answer is always yes.
        """
        with contextlib.ExitStack() as opened, self._locked(fcntl.LOCK_SH):
            new: list[tuple[str, Path, int]] = []
            for ref in dict.fromkeys(refs):
                path = self.path(ref)
                try:
                    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError as error:
                    raise self._absent(ref) from error
                except OSError as error:
                    raise StoreError(f"payload {ref} cannot be put on disk: {error}") from error
                opened.callback(os.close, descriptor)
                if not _is_on_disk(os.fstat(descriptor).st_mode):
                    new.append((ref, path, descriptor))
            for ref, path, descriptor in new:
                try:
                    os.fdatasync(descriptor)
                except OSError as error:
                    path.unlink(missing_ok=True)
                    raise StoreError(f"payload {ref} cannot be put on disk: {error}") from error
            for directory in dict.fromkeys(above for _, path, _ in new for above in self._above(path)):
                filesystem.sync_directory(directory)
            for _, _, descriptor in new:
                os.fchmod(descriptor, _ON_DISK)

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────

    def get(self, ref: str) -> bytes:
        """Raises StoreCorrupt when the content does not match, StoreError when it is not there."""
        path = self.path(ref)
        try:
            with path.open("rb", buffering=0) as file:
                found = os.fstat(file.fileno())
                data = read_bytes(file.fileno(), found.st_size)
        except FileNotFoundError as error:
            raise self._absent(ref) from error
        except OSError as error:
            raise StoreError(f"payload {ref} cannot be read: {error}") from error
        self._check(ref, data, found)
        return data

    def map(self, ref: str) -> memoryview:
        """The same without a copy: a view of the file itself, valid for as long as it is held, whatever is deleted.

        It can be written to, which changes the caller's pages and never the file. Raises as `get` does.
        """
        try:
            with self.path(ref).open("rb", buffering=0) as file:
                found = os.fstat(file.fileno())
                size = found.st_size
                data = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) if size else bytearray()
        except FileNotFoundError as error:
            raise self._absent(ref) from error
        except OSError as error:
            raise StoreError(f"payload {ref} cannot be read: {error}") from error
        view = memoryview(data)
        self._check(ref, view, found)
        return view

    def _check(self, ref: str, data: bytes | memoryview, found: os.stat_result) -> None:
        if not _is_fresh(found, ref) and _digest(ref, data) != ref:
            raise StoreCorrupt(f"payload {ref} does not match its digest: {self.path(ref)}")

    def path(self, ref: str) -> Path:
        """Where the bytes are or would be. Raises StoreError for what is not a reference."""
        match = _REF.fullmatch(ref)
        if match is None:
            raise StoreError(
                f'{ref[:100]!r} is not a payload reference: "xxh3:" and 32 or "sha256:" and 64 hexadecimal digits'
            )
        short, long = match.groups()
        return self._directory / short[:2] / short if short else self._directory / long[:2] / long[2:4] / long

    def size(self, ref: str) -> int:
        """In bytes. Raises StoreError when it is not there."""
        try:
            return self.path(ref).stat().st_size
        except FileNotFoundError as error:
            raise self._absent(ref) from error

    def identity(self) -> str:
        """What tells this directory from any other, on whatever machine: random, made once. Raises StoreError."""
        try:
            self._make_ready()
            return (self._directory / _IDENTITY).read_text()
        except OSError as error:
            raise StoreError(f"{self._directory} cannot be used for payloads: {error}") from error

    # ── keeping the directory ────────────────────────────────────────────────────────────────────────────────────

    def delete_unused(self, keep: Callable[[str], bool], *, older_than_s: float, now_s: float) -> int:
        """Delete what `keep` does not want and what is older than this, by wall time. Returns how many.

        The age protects what was just written and is not yet recorded anywhere. Left-over drafts go too.
        """
        deleted = 0
        for path in self._files():
            kind = "xxh3" if path.parent.parent == self._directory else "sha256"
            ref = f"{kind}:{path.name}"
            try:
                if not path.name.endswith(SUFFIX) and (not _REF.fullmatch(ref) or keep(ref)):
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

    def _files(self) -> Iterator[Path]:
        yield from self._directory.glob(f"*{SUFFIX}")
        for directory in sorted(self._directory.glob("??")):
            for path in sorted(directory.iterdir()):
                yield from sorted(path.iterdir()) if path.is_dir() else (path,)

    @contextlib.contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        """Keep writers and `delete_unused` apart, across processes: what was just touched must not be deleted."""
        descriptor = os.open(self._directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, kind)
            yield
        finally:
            os.close(descriptor)

    def _make_ready(self) -> None:
        """Once in a directory's life: an identity, and all directories of the first level, so that they are on disk."""
        if self._is_ready:
            return
        identity = self._directory / _IDENTITY
        if not identity.exists():
            for number in range(256):
                (self._directory / f"{number:02x}").mkdir(mode=0o700, exist_ok=True)
            draft = self._directory / f"{secrets.token_hex(12)}{SUFFIX}"
            try:
                with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
                    file.write(secrets.token_hex(16))
                    file.flush()
                    os.fsync(file.fileno())
                os.link(draft, identity)
            except FileExistsError:
                pass  # another process was faster: its identity holds
            finally:
                draft.unlink(missing_ok=True)
            filesystem.sync_directory(self._directory)
        self._is_ready = True

    def _above(self, path: Path) -> Iterator[Path]:
        """Directories whose entries lead to this file and may not be on disk yet."""
        yield path.parent
        if path.parent.parent != self._directory:
            yield path.parent.parent

    def _absent(self, ref: str) -> StoreError:
        return StoreError(f"payload {ref} is not in {self._directory}: deleted, or never written here")


def _is_on_disk(mode: int) -> bool:
    return not mode & 0o200


def _seal(path: Path, ref: str) -> None:
    """Set the time of change to now, or a second less: see the module."""
    now_ns = time.time_ns()
    os.utime(path, ns=(now_ns, now_ns - (now_ns - _seal_ns(ref)) % 10**9))


def _is_fresh(found: os.stat_result, ref: str) -> bool:
    sealed_at_ns = found.st_mtime_ns
    return sealed_at_ns % 10**9 == _seal_ns(ref) and 0 <= time.time_ns() - sealed_at_ns < _FRESH_NS


def _seal_ns(ref: str) -> int:
    return xxhash.xxh3_64_intdigest(f"{ref} {_boot()}".encode()) % 10**9


@functools.cache
def _boot() -> str:
    """What no other boot of any machine is called."""
    try:
        return _BOOT_ID.read_text()
    except OSError:
        return secrets.token_hex(16)  # this process believes nobody's seal but its own


def _digest(ref: str, data: Buffer | mmap.mmap) -> str:
    """The reference of this content, of the same kind as `ref`."""
    if ref.startswith("xxh3:"):
        return f"xxh3:{xxhash.xxh3_128_hexdigest(data)}"
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _digest_matches(path: Path, ref: str) -> bool:
    return _digest(ref, path.read_bytes()) == ref


def _is_same(path: Path, wanted: memoryview) -> bool:
    """Is this the file's content? Compared byte by byte, in pieces."""
    with path.open("rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_size != len(wanted):
            return False
        piece = bytearray(min(_PIECE_BYTES, max(len(wanted), 1)))
        at = 0
        while read := file.readinto(piece):
            if piece[:read] != bytes(wanted[at : at + read]):
                return False
            at += read
    return at == len(wanted)
