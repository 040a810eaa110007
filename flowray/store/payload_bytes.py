"""Reading a large file into bytes on large pages, as numpy allocates its arrays.

Most of the time of reading 100 MB into new memory goes into the first touch of 25,000 pages: 60 ms, and 20 ms when
the kernel may give 2 MB at once. Python offers no way to say so between allocating bytes and filling them; its C API
does: https://docs.python.org/3/c-api/bytes.html#c.PyBytes_FromStringAndSize
"""

from __future__ import annotations

import ctypes
import mmap
import os

_LARGE_BYTES = 4 << 20  # below, malloc gives memory that was used before

_new = ctypes.pythonapi.PyBytes_FromStringAndSize
_new.argtypes, _new.restype = [ctypes.c_char_p, ctypes.c_ssize_t], ctypes.py_object
_address_of = ctypes.pythonapi.PyBytes_AsString
_address_of.argtypes, _address_of.restype = [ctypes.py_object], ctypes.c_void_p
_madvise = ctypes.CDLL(None).madvise
_madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def read_bytes(descriptor: int, size_bytes: int) -> bytes:
    """The first `size_bytes` of a file; less where it ends before. Raises OSError."""
    if size_bytes < _LARGE_BYTES:
        return _read_small(descriptor, size_bytes)
    data: bytes = _new(None, size_bytes)  # not filled yet, and nobody else has it
    address: int = _address_of(data)
    first_page = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    # Advice: a kernel that does not take it gives small pages.
    _madvise(first_page, address + size_bytes - first_page, mmap.MADV_HUGEPAGE)
    room = memoryview((ctypes.c_char * size_bytes).from_address(address)).cast("B")
    at = 0
    while at < size_bytes and (read := os.preadv(descriptor, [room[at:]], at)):
        at += read
    return data if at == size_bytes else data[:at]


def _read_small(descriptor: int, size_bytes: int) -> bytes:
    data = os.pread(descriptor, size_bytes, 0)
    while len(data) < size_bytes and (more := os.pread(descriptor, size_bytes - len(data), len(data))):
        data += more
    return data
