"""A payload that is being written: a private file, hashed on its way, that becomes a payload when it is complete."""

from __future__ import annotations

import mmap
import os
import secrets
import threading
from pathlib import Path
from types import TracebackType

import xxhash

from flowray.errors import StoreError

SUFFIX = ".part"
_BESIDE_BYTES = 2 << 20  # parts from this size on are hashed by another thread, while they are written


class Draft:
    """One file under a name of its own. A context manager: the file is gone afterwards.

    XXH3 (128 bits) runs at the memory's speed where SHA-256 took three times as long as writing. It tells damage from
    content just as well, and is never trusted to tell one content from another: see `PayloadStore`.
    """

    def __init__(self, directory: Path, size_bytes: int) -> None:
        """Takes `size_bytes` of the disk at once: it is full now or not at all. Raises OSError."""
        self.path = directory / f"{secrets.token_hex(12)}{SUFFIX}"
        self.size_bytes = size_bytes
        self.written_bytes = 0
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
        if len(view) < _BESIDE_BYTES:
            self._hash.update(view)
            self._write(view)
            return
        hashing = threading.Thread(target=self._hash.update, args=(view,), name="payload-hash")
        hashing.start()
        try:
            self._write(view)
        finally:
            hashing.join()

    def _write(self, view: memoryview) -> None:
        self.written_bytes += len(view)
        while view:
            view = view[os.write(self._descriptor, view) :]

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
            self.path.unlink(missing_ok=True)
