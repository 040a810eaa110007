"""Values to bytes and back.

Plain data (None, bool, int, float, str, bytes, and lists and string-keyed dicts of these) becomes msgpack, anything
else a pickle. A value comes back equal and of the same type, so a tuple or a subclass of str is not plain.

Large values are not copied on their way: `encode_parts` gives what lies in memory already (bytes, the buffers of numpy
arrays, Arrow tables and torch tensors) as parts of its own, and `decode_value` lets them point into what it is given.

    codec            plain   the bytes
    msgpack          yes     one msgpack document
    bytes            yes     a large value of type bytes, and nothing else
    pickle           no      one pickle
    pickle-buffers   no      numbers of what follows, a pickle without its large buffers, then these, each aligned

Only plain codecs are taken from outside the cluster (`require_plain`): nothing that they can hold runs code.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from flowray.errors import PayloadError

Buffer = bytes | bytearray | memoryview
BufferCallback = Callable[[pickle.PickleBuffer], bool]

PLAIN_CODECS = frozenset({"msgpack", "bytes"})
APART_BYTES = 64 * 1024  # buffers from this size on are parts of their own
_ALIGNMENT = 64  # of each of them: what vector instructions and Arrow like
_COUNT = struct.Struct("<Q")
_SCALARS = (str, int, float, bool, type(None), bytes)
_MAX_INT = 1 << 63
_MAX_DEPTH = 50  # deeper nesting is left to pickle
_encode_in_order = msgspec.msgpack.Encoder(order="deterministic").encode


class Encoded(NamedTuple):
    """A value as bytes: the parts, one after the other, are the payload. They may be the value's own memory."""

    codec: str
    parts: list[Buffer]
    size_bytes: int


def pickled(value: Any, apart: BufferCallback | None) -> bytes:
    """A pickle of protocol 5. `apart` is told of each buffer and returns False for those it keeps."""
    if "torch" not in sys.modules:
        return pickle.dumps(value, protocol=5, buffer_callback=apart)
    file = io.BytesIO()
    _TensorPickler(file, protocol=5, buffer_callback=apart).dump(value)
    return file.getvalue()


def encode_parts(
    value: Any, field: str, pickled: Callable[[Any, BufferCallback | None], bytes] | None = pickled
) -> Encoded:
    """Encode without copying what is large. `pickled` is for what is not plain; with None that is refused.

    The parts are to be used before the value is changed.

    Raises:
        PayloadError: it cannot be pickled, or is not plain and has to be; names `field`.
    """
    if type(value) is bytes and len(value) >= APART_BYTES:
        return Encoded("bytes", [value], len(value))
    if _is_plain(value, 0):
        with contextlib.suppress(OverflowError, msgspec.MsgspecError, UnicodeEncodeError):
            data = msgspec.msgpack.encode(value)
            return Encoded("msgpack", [data], len(data))
    kind = type(value).__name__
    if pickled is None:
        raise PayloadError(
            field,
            f"a {kind} that is not plain data: from outside the cluster only None, bool, int (64 bits), float, str, "
            "bytes, lists and dicts with str keys are taken, 50 levels deep at most (convert it, or make it bytes)",
        )
    buffers: list[memoryview] = []

    def apart(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < APART_BYTES:
            return True
        buffers.append(raw)
        return False

    try:
        data = pickled(value, apart)
    except Exception as error:  # pickling calls arbitrary __reduce__ methods
        raise PayloadError(field, f"a {kind} that cannot be pickled: {type(error).__name__}: {error}") from error
    if not buffers:
        return Encoded("pickle", [data], len(data))
    return _with_buffers(data, buffers)


def encode_value(
    value: Any, field: str, pickled: Callable[[Any, BufferCallback | None], bytes] | None = pickled
) -> tuple[str, bytes]:
    """(codec, bytes): the same in one piece. Raises PayloadError."""
    encoded = encode_parts(value, field, pickled)
    first = encoded.parts[0]
    return encoded.codec, first if len(encoded.parts) == 1 and isinstance(first, bytes) else b"".join(encoded.parts)


def plain_bytes(value: Any, field: str) -> bytes:
    """Plain data as msgpack with the keys of its dicts in order: equal bytes for equal values.

    Raises:
        PayloadError: it is not plain; names `field`.
    """
    if _is_plain(value, 0):
        with contextlib.suppress(OverflowError, msgspec.MsgspecError, UnicodeEncodeError):
            return _encode_in_order(value)
    raise PayloadError(
        field,
        f"a {type(value).__name__} that is not plain data: None, bool, int (64 bits), float, str, bytes, lists and "
        f"dicts with str keys, {_MAX_DEPTH} levels deep at most (make a tuple or a set a sorted list)",
    )


def decode_value(codec: str, data: Any) -> Any:
    """The inverse of `encode_value`, from bytes or any buffer. Arrays of "pickle-buffers" point into a writable one.

    A buffer that cannot be written to is copied first: whether an array may be changed must not depend on its size.

    Raises:
        PayloadError: the codec is unknown, or these are not bytes that it made.
    """
    if codec == "msgpack":
        return msgspec.msgpack.decode(data)
    if codec == "bytes":
        return bytes(data)
    if codec == "pickle":
        return pickle.loads(data)
    if codec == "pickle-buffers":
        return _from_buffers(data)
    raise PayloadError(
        "codec", f"{codec!r:.60} is not one of {', '.join(sorted(PLAIN_CODECS))}, pickle, pickle-buffers"
    )


def require_plain(codec: str, field: str) -> None:
    """For what comes from outside the cluster. Raises PayloadError when decoding it could run code."""
    if codec not in PLAIN_CODECS:
        raise PayloadError(
            field,
            f"has codec {codec!r:.60}; from outside the cluster only plain data is taken "
            f"({', '.join(sorted(PLAIN_CODECS))}), because unpickling runs code",
        )


def tensor_reduction(value: Any) -> Any:
    """How to pickle a large torch tensor without copying it, by its numpy array; NotImplemented for anything else.

    torch's own way copies, and more than once. Tensors that share memory come back as separate ones.
    """
    torch = sys.modules.get("torch")
    if torch is None or type(value) is not torch.Tensor:
        return NotImplemented
    plain = value.device.type == "cpu" and value.layout is torch.strided and value.is_contiguous()
    if not plain or value.nbytes < APART_BYTES or value.requires_grad or value.is_conj() or value.is_neg():
        return NotImplemented
    try:
        array = value.numpy()
    except (TypeError, RuntimeError):  # a kind of number or tensor that numpy does not have
        return NotImplemented
    return torch.from_numpy, (array,)


class _TensorPickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        return tensor_reduction(value)


def _with_buffers(data: bytes, buffers: list[memoryview]) -> Encoded:
    sizes = [len(data), *(buffer.nbytes for buffer in buffers)]
    head = _COUNT.pack(len(sizes)) + struct.pack(f"<{len(sizes)}Q", *sizes)
    parts: list[Buffer] = [head, data]
    size = len(head) + len(data)
    for buffer in buffers:
        gap = -size % _ALIGNMENT
        if gap:
            parts.append(bytes(gap))
        parts.append(buffer)
        size += gap + buffer.nbytes
    return Encoded("pickle-buffers", parts, size)


def _from_buffers(data: Any) -> Any:
    view = memoryview(data).cast("B")
    if view.readonly:
        view = memoryview(bytearray(view))
    pieces: list[memoryview] = []
    try:
        (count,) = _COUNT.unpack_from(view)
        if not 1 <= count <= len(view):
            raise ValueError(f"{count} parts")
        sizes = struct.unpack_from(f"<{count}Q", view, _COUNT.size)
        at = _COUNT.size * (1 + count)
        for index, size in enumerate(sizes):
            if index:
                at += -at % _ALIGNMENT
            if at + size > len(view):
                raise ValueError(f"part {index} ends after the last byte")
            pieces.append(view[at : at + size])
            at += size
    except (struct.error, ValueError) as error:
        raise PayloadError("payload", f"is not what the codec pickle-buffers makes: {error}") from error
    return pickle.loads(pieces[0], buffers=pieces[1:])


def _is_plain(value: Any, depth: int) -> bool:
    """Would msgpack give back exactly this?"""
    kind = type(value)
    if kind in _SCALARS:
        return kind is not int or -_MAX_INT <= value < 2 * _MAX_INT
    if depth > _MAX_DEPTH:
        return False
    if kind is list:
        return all(_is_plain(item, depth + 1) for item in value)
    if kind is dict:
        return all(type(key) is str and _is_plain(item, depth + 1) for key, item in value.items())
    return False
