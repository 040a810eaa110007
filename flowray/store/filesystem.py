"""Refuse the places that cannot keep the store's promise: file systems where fsync or locks mean less than they say."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

from flowray.errors import StoreError, StoreUnsupported
from flowray.store.config import StoreConfig

MOUNTINFO = Path("/proc/self/mountinfo")

VOLATILE = frozenset({"tmpfs", "ramfs", "devtmpfs"})
# WAL needs memory shared by mmap and POSIX locks that hold; these give them on one host only, or not at all,
# or (overlay) lose the upper file with the container.
SHARED = frozenset({"nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "ncpfs", "afs", "coda", "davfs"})
SHARED |= {"9p", "virtiofs", "vboxsf", "vmhgfs", "prl_fs", "fuse", "fuseblk"}
SHARED |= {"ceph", "glusterfs", "lustre", "beegfs", "gpfs", "orangefs", "pvfs2", "gfs2", "ocfs2"}
SHARED |= {"overlay", "overlayfs", "aufs", "unionfs", "ecryptfs"}


def filesystem_of(path: Path, mountinfo: str) -> str:
    """The type of the file system that holds this absolute path, from the text of /proc/<pid>/mountinfo.

    The longest mount point that contains the path wins, and of equal ones the last, which lies on top.
    "unknown" where no line fits.
    """
    best, found = -1, "unknown"
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        fields, types = before.split(" "), after.split(" ")
        if not separator or len(fields) < 5 or not types[0]:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4]))
        if path.is_relative_to(point) and len(point.parts) >= best:
            best, found = len(point.parts), types[0]
    return found


def refuse_unfit(directory: Path, config: StoreConfig, mountinfo: str | None = None) -> None:
    """Raises StoreUnsupported when this directory's file system cannot hold a journal."""
    if mountinfo is None:
        try:
            mountinfo = MOUNTINFO.read_text()
        except OSError:
            mountinfo = ""
    name = filesystem_of(directory.resolve(), mountinfo)
    if name in config.allow_filesystems:
        return
    way_out = f"choose a directory on a local disk, or accept the risk with store.allow_filesystems=({name!r},)"
    if name in VOLATILE:
        if not config.allow_volatile:
            raise StoreUnsupported(
                f"{directory} is on {name}, which a power loss empties: choose a directory on a local disk, "
                "or accept that with store.allow_volatile=True"
            )
    elif name in SHARED or name.startswith("fuse."):
        raise StoreUnsupported(f"{directory} is on {name}, where locks and fsync cannot be relied on: {way_out}")
    elif name == "unknown":
        raise StoreUnsupported(f"cannot tell on which file system {directory} is: {way_out}")


def make_directory(directory: Path) -> None:
    """Make it and what is missing above it, private and durable. Raises StoreUnsupported."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    for path in reversed(missing):
        try:
            path.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise StoreUnsupported(f"{directory} cannot be made: {error}") from error
        sync_directory(path.parent)
    if not directory.is_dir():
        raise StoreUnsupported(f"{directory} cannot be made: a file of this name is there")


def require_room(directory: Path, size_bytes: int) -> None:
    """Is so much of the disk to be had? It is taken and given back. Raises StoreError when it is not."""
    path = directory / f"{secrets.token_hex(8)}.room"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            path.unlink()
            os.posix_fallocate(descriptor, 0, size_bytes)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StoreError(f"the disk of {directory} is full: {size_bytes:,} bytes cannot be had ({error})") from error


def sync_directory(directory: Path) -> None:
    """Make the directory's entries durable. Raises StoreUnsupported where that fails."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StoreUnsupported(f"fsync of the directory {directory} fails ({error}): choose another disk") from error
