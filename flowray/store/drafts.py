"""A payload that is being written: a private file, hashed on its way, that becomes a payload when it is complete."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import secrets
from pathlib import Path
from types import TracebackType

import xxhash

from flowray.errors import StoreError

SUFFIX = ".part"
_PIECE_BYTES = (
    2 << 20
)  # hashed, then written while it is in the processor's cache; as large as the kernel's largest page
_AHEAD_BYTES = 8 << 20  # the disk begins with what is written each time that it is as much

# Begins to write back a range and waits for nothing: sync_file_range(descriptor, offset, bytes, WRITE).
_sync_file_range = ctypes.CDLL(None, use_errno=True).sync_file_range
_sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
_WRITE = 2


class Draft:
    """One file under a name of its own. A context manager: the file is gone afterwards.

    XXH3 (128 bits) runs at the memory's speed where SHA-256 took three times as long as writing. It tells damage from
    content just as well, and is never trusted to tell one content from another: see `PayloadStore`.
    """

    def __init__(self, directory: Path, size_bytes: int, *, disk_ahead: bool) -> None:
        """Takes `size_bytes` of the disk at once: it is full now or not at all. Raises OSError.

        `disk_ahead` has the disk work while bytes still come. A sync right after the last of them returns a third
        earlier; without one the bytes are readable a third earlier.
        """
        self.path = directory / f"{secrets.token_hex(12)}{SUFFIX}"
        self.size_bytes = size_bytes
        self.written_bytes = 0
        self._disk_ahead = disk_ahead
        self._begun_bytes = 0  # what the disk was given to write back
        self._hash = xxhash.xxh3_128()
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if size_bytes:
                os.posix_fallocate(self._descriptor, 0, size_bytes)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def append(self, part: bytes | bytearray | memoryview) -> None:
        """Write the next bytes.

        Raises:
            StoreError: more than was announced.
            OSError: the disk does not take them.
        """
        view = memoryview(part).cast("B")
        if self.written_bytes + len(view) > self.size_bytes:
            raise StoreError(f"a payload of {self.size_bytes} bytes was announced, and more come")
        while view:
            piece = view[:_PIECE_BYTES]
            self._hash.update(piece)
            while piece:
                written = os.write(self._descriptor, piece)
                piece, view = piece[written:], view[written:]
                self.written_bytes += written
            if self._disk_ahead and self.written_bytes - self._begun_bytes >= _AHEAD_BYTES:
                # Advice: whether the disk took it is what fdatasync says.
                _sync_file_range(self._descriptor, self._begun_bytes, self.written_bytes - self._begun_bytes, _WRITE)
                self._begun_bytes = self.written_bytes

    def digest(self) -> str:
        """Hexadecimal, of all bytes. Raises StoreError when some are missing."""
        if self.written_bytes != self.size_bytes:
            raise StoreError(f"a payload of {self.size_bytes} bytes was announced, and {self.written_bytes} came")
        return self._hash.hexdigest()

    def view(self) -> memoryview:
        """What was written, read-only."""
        if not self.size_bytes:
            return memoryview(b"")
        return memoryview(mmap.mmap(self._descriptor, self.size_bytes, prot=mmap.PROT_READ))

    def close(self) -> None:
        """Give up the name. The payload, if this became one, has a name of its own."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            with contextlib.suppress(OSError):  # what is left over goes by `PayloadStore.delete_unused`
                self.path.unlink()
